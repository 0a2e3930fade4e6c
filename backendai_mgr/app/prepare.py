"""What a worker makes true in the database before it serves: the schema, and in local mode the example
fixture, the administrator's key pair and the one agent."""

import platform
from typing import Any

from ..db.agents import PgAgents
from ..db.fixtures import example, populate
from ..db.pool import Database
from ..db.schema import ensure_schema
from ..domain.ids import AgentId
from .build import utc_now
from .config import EXAMPLE_KEYS, LocalConfig, ManagerConfig

SCALING_GROUP = "default"


async def prepare(database: Database, config: ManagerConfig) -> None:
    """Bring the database up to this version; populate it for local mode. Safe to repeat."""
    await database.run(ensure_schema)
    if config.local is None:
        return
    fixture = example_fixture(config.local)
    await database.run(lambda conn: populate(conn, fixture))
    await PgAgents(database).register(
        AgentId(config.local.agent_id),
        addr=f"tcp://{config.local.agent_addr}",
        scaling_group=SCALING_GROUP,
        architecture=platform.machine(),
        now=utc_now(),
    )


def example_fixture(local: LocalConfig) -> dict[str, Any]:
    """The example fixture; the administrator's own key pair, if it has one, replaces the published ones."""
    document: dict[str, Any] = dict(example("example-keypairs"))
    if local.access_key in EXAMPLE_KEYS:
        return document
    admin = document["keypairs"][0]
    document["keypairs"] = [{**admin, "access_key": local.access_key, "secret_key": local.secret_key}]
    return document
