"""What a worker makes true in the database before it serves: the schema, and in local mode the example
fixture, the administrator's key pair and the one agent; and the managers' keys on the agent link."""

import platform
from typing import Any

from ..db.agents import PgAgents
from ..db.fixtures import example, populate
from ..db.joining import ensure_link_keys
from ..db.pool import Database
from ..db.schema import ensure_schema
from ..domain.ids import AgentId
from ..domain.joining import KeyPair
from ..runtime.curve import new_key_pair
from .build import utc_now
from .config import EXAMPLE_KEYS, LocalConfig, ManagerConfig

SCALING_GROUP = "default"


async def prepare(database: Database, config: ManagerConfig) -> KeyPair:
    """Bring the database up to this version; populate it for local mode. Safe to repeat.

    Returns the managers' keys on the agent link, which all workers share.
    """
    await database.run(ensure_schema)
    fresh = new_key_pair()
    keys = await database.run(lambda conn: ensure_link_keys(conn, fresh))
    if config.local is not None:
        await _prepare_local(database, config.local)
    return keys


async def _prepare_local(database: Database, local: LocalConfig) -> None:
    fixture = example_fixture(local)
    await database.run(lambda conn: populate(conn, fixture))
    await PgAgents(database).register(
        AgentId(local.agent_id),
        addr=f"tcp://{local.agent_addr}",
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
