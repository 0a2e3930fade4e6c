"""Bring a database to the schema that this program needs, or say clearly why it cannot."""

import asyncpg

from ..runtime.resources import resource
from .pool import Conn

#: The version that ``schema.sql`` writes.
SCHEMA_VERSION = 3
#: What makes the tables of a version those of the next: only what is quick and leaves older programs
#: at work. Where reports fill a new column, they are stored anew.
UPGRADES = {
    1: """
ALTER TABLE agent_images ADD COLUMN aliases varchar[] NOT NULL DEFAULT '{}';
UPDATE agents SET report_digest = NULL;
INSERT INTO schema_migrations (version, name) VALUES (2, 'aliases that agents claim');
""",
    2: """
CREATE TABLE link_keys (
    only_one   boolean     CONSTRAINT pk_link_keys PRIMARY KEY DEFAULT true
        CONSTRAINT ck_link_keys_only_one CHECK (only_one),
    public_key text        NOT NULL,
    secret_key text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE join_tokens (
    id            text        CONSTRAINT pk_join_tokens PRIMARY KEY,
    digest        text        NOT NULL,
    scaling_group varchar(64) NOT NULL
        CONSTRAINT fk_join_tokens_scaling_group_scaling_groups
        REFERENCES scaling_groups (name) ON DELETE CASCADE,
    uses          integer     NOT NULL CONSTRAINT ck_join_tokens_uses CHECK (uses >= 0),
    created_at    timestamptz NOT NULL,
    expires_at    timestamptz NOT NULL
);
ALTER TABLE agents ADD COLUMN public_key text, ADD COLUMN joined_with text
    CONSTRAINT fk_agents_joined_with_join_tokens REFERENCES join_tokens (id) ON DELETE SET NULL,
    ADD COLUMN trouble text;
CREATE UNIQUE INDEX uq_agents_public_key ON agents (public_key);
INSERT INTO schema_migrations (version, name) VALUES (3, 'agents that join with a token');
""",
}
OLDEST_SERVER = 14


class SchemaMismatch(Exception):
    """The database cannot be used as it is; the message says what to do."""


# Several workers may start on an empty database at once; one of them makes the tables.
LOCK = "SELECT pg_advisory_xact_lock(4200)"
IS_EMPTY = "SELECT to_regclass('schema_migrations') IS NULL"
VERSION = "SELECT max(version) FROM schema_migrations"


def schema_sql() -> str:
    """The statements that make an empty database ours."""
    return resource("schema.sql").read_text("utf-8")


def mismatch(server: int, version: int | None) -> str | None:
    """Why this program cannot use a *server* of that major version, or tables of that *version* (None: there
    are none yet); None when it can, perhaps after an upgrade."""
    if server < OLDEST_SERVER:
        return f"PostgreSQL {OLDEST_SERVER} or newer is needed, the server is {server}"
    if version is None or version == SCHEMA_VERSION or version in UPGRADES:
        return None
    age = "newer" if version > SCHEMA_VERSION else "older"
    return f"its tables have version {version}, which is {age} than this program's {SCHEMA_VERSION}"


async def schema_version(conn: Conn) -> int | None:
    """The version of the tables, 0 when they do not tell; None in a database without ours."""
    if await conn.fetchval(IS_EMPTY):
        return None
    return await conn.fetchval(VERSION) or 0


async def ensure_schema(conn: Conn) -> bool:
    """Make the tables in an empty database, upgrade those of an older version; True when this call made them.

    Runs in the caller's transaction (`Database.run`). `SchemaMismatch` when the server is too old, when the
    tables are of a version that cannot be upgraded, or when tables of the same names are somebody else's.
    """
    server = conn.get_server_version().major
    if problem := mismatch(server, None):
        raise SchemaMismatch(problem)
    await conn.execute(LOCK)
    found = await schema_version(conn)
    if found is None:
        try:
            await conn.execute(schema_sql())
        except (asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError) as error:
            raise SchemaMismatch(f"the database is not empty and not ours: {error}") from error
        return True
    while found in UPGRADES:
        await conn.execute(UPGRADES[found])
        found = await schema_version(conn)
    if problem := mismatch(server, found):
        raise SchemaMismatch(f"the database cannot be used: {problem}")
    return False
