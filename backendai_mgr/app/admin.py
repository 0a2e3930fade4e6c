"""Work on the database, for operators: the schema, fixtures, and tokens for agents that are to join."""

import secrets
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import attrs

from ..db.fixtures import populate
from ..db.joining import PgJoining
from ..db.pool import Conn, open_database
from ..db.schema import UPGRADES, SchemaMismatch, ensure_schema, mismatch, schema_version
from ..domain.errors import InvalidParameters, NotFound
from ..domain.joining import TOKEN_ID_BYTES, TOKEN_SECRET_BYTES, TokenText
from ..services.ports import StoreUnavailable
from .build import utc_now
from .config import DatabaseConfig

__all__ = [
    "DatabaseFound",
    "InvalidParameters",
    "NotFound",
    "SchemaMismatch",
    "StoreUnavailable",
    "inspect_database",
    "make_join_token",
    "make_schema",
    "populate_fixture",
]


@attrs.frozen
class DatabaseFound:
    """The server's version, as (major, minor), and that of the tables; None without tables."""

    server: tuple[int, int]
    schema: int | None

    @property
    def problem(self) -> str | None:
        """Why a manager would not start with it."""
        return mismatch(self.server[0], self.schema)

    @property
    def state(self) -> str:
        """What there is, to go on after the server's version."""
        if self.schema is None:
            return "no tables yet; the manager makes them when it starts"
        if self.schema in UPGRADES:
            return f"tables of version {self.schema}; the manager upgrades them when it starts"
        return f"tables of version {self.schema}"


async def inspect_database(config: DatabaseConfig) -> DatabaseFound:
    """What a manager would find there. Changes nothing. `StoreUnavailable` when it is away or refuses."""

    async def look(conn: Conn) -> DatabaseFound:
        server = conn.get_server_version()
        return DatabaseFound((server.major, server.micro), await schema_version(conn))

    async with open_database(config.parameters, size=1) as database:
        return await database.read(look)


async def make_schema(config: DatabaseConfig) -> bool:
    """Make the tables in an empty database; False when they are there already.

    `SchemaMismatch` when the database is not ours or of another version, `StoreUnavailable` when it is away.
    """
    async with open_database(config.parameters) as database:
        return await database.run(ensure_schema)


async def populate_fixture(config: DatabaseConfig, document: Mapping[str, Any]) -> Mapping[str, int]:
    """Insert a fixture's rows where they are not there yet; the number of new rows by table.

    `InvalidParameters` names what does not fit; then nothing is inserted.
    """
    async with open_database(config.parameters) as database:
        return await database.run(lambda conn: populate(conn, document))


async def make_join_token(
    config: DatabaseConfig, *, scaling_group: str, lifetime: float, uses: int
) -> TokenText:
    """A new token that lets *uses* agents join *scaling_group* within *lifetime* seconds.

    The database is brought up to this version first. `NotFound` when the scaling group does not exist.
    """
    token = TokenText.make(secrets.token_bytes(TOKEN_ID_BYTES), secrets.token_bytes(TOKEN_SECRET_BYTES))
    now = utc_now()
    async with open_database(config.parameters) as database:
        await database.run(ensure_schema)
        await PgJoining(database).add_token(
            token,
            scaling_group=scaling_group,
            uses=uses,
            expires_at=now + timedelta(seconds=lifetime),
            now=now,
        )
    return token
