from pathlib import Path

import pytest
import trio

from backendai_mgr.db.pool import open_database
from backendai_mgr.db.schema import SCHEMA_VERSION, SchemaMismatch, ensure_schema
from backendai_mgr.domain.status import AgentStatus, RunState, Status
from tests.db.samples import add_agent, fetch, fetchval
from tests.support.postgres import DEBIAN, TemporaryPostgres


async def test_an_empty_database_is_given_the_schema_once(postgres):
    async with open_database(postgres.database("template0")) as db:
        assert await db.run(ensure_schema) is True
        assert await db.run(ensure_schema) is False
        assert await fetchval(db, "SELECT max(version) FROM schema_migrations") == SCHEMA_VERSION


async def test_workers_that_start_together_make_the_schema_once(postgres):
    made = []

    async def start(db) -> None:
        made.append(await db.run(ensure_schema))

    async with open_database(postgres.database("template0")) as db, trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(start, db)
    assert sorted(made) == [False] * 5 + [True]


#: Everything that an upgrade may have to make, as text that two databases can be compared by.
SHAPE = """
SELECT concat_ws(' ', table_name, column_name, data_type, column_default, is_nullable)
  FROM information_schema.columns WHERE table_schema = current_schema()
UNION ALL SELECT conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid)
  FROM pg_constraint WHERE connamespace = current_schema()::regnamespace
UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema()
"""
#: What takes the tables of a version back to the one before.
BACK = {
    2: "ALTER TABLE agent_images DROP COLUMN aliases",
    3: """
ALTER TABLE agents DROP COLUMN public_key, DROP COLUMN joined_with, DROP COLUMN trouble;
DROP TABLE join_tokens, link_keys
""",
}


async def set_back(db, version: int) -> None:
    """Make the tables those of an older version."""

    async def work(conn) -> None:
        for newer in range(SCHEMA_VERSION, version, -1):
            await conn.execute(BACK[newer])
        await conn.execute("UPDATE schema_migrations SET version = $1", version)

    await db.run(work)


@pytest.mark.parametrize(("version", "age"), [(0, "older"), (99, "newer")])
async def test_another_version_is_refused(db, version, age):
    await fetch(db, "UPDATE schema_migrations SET version = $1", version)
    with pytest.raises(SchemaMismatch, match=age):
        await db.run(ensure_schema)


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
async def test_the_tables_of_older_versions_are_upgraded(db, version):
    shape = sorted(row[0] for row in await fetch(db, SHAPE))
    await set_back(db, version)
    assert sorted(row[0] for row in await fetch(db, SHAPE)) != shape
    assert await db.run(ensure_schema) is False
    assert await db.run(ensure_schema) is False
    assert sorted(row[0] for row in await fetch(db, SHAPE)) == shape
    versions = await fetch(db, "SELECT version FROM schema_migrations ORDER BY version")
    assert [row["version"] for row in versions] == list(range(version, SCHEMA_VERSION + 1))


async def test_what_an_agent_claims_is_stored_after_an_upgrade_although_its_report_says_nothing_new(db):
    await add_agent(db)
    await set_back(db, 1)
    await db.run(ensure_schema)
    await add_agent(db)
    assert await fetchval(db, "SELECT aliases FROM agent_images") == ["python"]


async def test_somebody_elses_tables_are_left_alone(postgres):
    async with open_database(postgres.database("template0")) as db:
        await fetch(db, "CREATE TABLE users (name text)")
        with pytest.raises(SchemaMismatch, match="not ours"):
            await db.run(ensure_schema)
        assert await fetchval(db, "SELECT to_regclass('domains') IS NULL")


@pytest.mark.parametrize(
    ("type_name", "members"),
    [
        ("kernelstatus", [status.value for status in Status]),
        ("agentstatus", [status.value for status in AgentStatus]),
        ("runstate", [state.value for state in RunState]),
    ],
)
async def test_enumerations_are_those_of_the_domain(db, type_name, members):
    labels = await fetchval(db, f"SELECT enum_range(NULL::{type_name})::text[]")
    assert labels == members


@pytest.mark.skipif(not Path(DEBIAN).exists(), reason="PostgreSQL 15 of Debian is not installed")
def test_the_schema_applies_on_postgresql_15():
    with TemporaryPostgres(DEBIAN) as server:
        parameters = server.database()
        assert server.sql("SELECT version FROM schema_migrations", database=parameters["database"]) == str(
            SCHEMA_VERSION
        )


#: (what, query as the code asks it, the index that must serve it)
HOT = [
    (
        "pending by scaling group",
        "SELECT 1 FROM sessions WHERE status = 'PENDING' AND scaling_group = 'a' ORDER BY created_at",
        "ix_sessions_pending",
    ),
    (
        "kernels on an agent",
        "SELECT 1 FROM kernels WHERE agent = 'a' AND status NOT IN ('PENDING', 'TERMINATED', 'CANCELLED')",
        "ix_kernels_occupying",
    ),
    ("deadlines", "SELECT 1 FROM kernels WHERE deadline <= now() ORDER BY deadline", "ix_kernels_deadline"),
    (
        "to start",
        "SELECT 1 FROM kernels WHERE status = 'SCHEDULED' ORDER BY status_changed, id",
        "ix_kernels_to_start",
    ),
    (
        "name prefix",
        "SELECT 1 FROM sessions WHERE access_key = 'a' AND name >= 'b' AND name < 'c'",
        "ix_sessions_access_key_name",
    ),
    (
        "sessions of an owner",
        "SELECT 1 FROM sessions WHERE access_key = 'a' ORDER BY created_at DESC, id DESC LIMIT 5",
        "ix_sessions_access_key_created_at",
    ),
    ("events", "SELECT 1 FROM events WHERE id > 5 ORDER BY id LIMIT 5", "pk_events"),
]


@pytest.mark.parametrize(("query", "index"), [row[1:] for row in HOT], ids=[row[0] for row in HOT])
async def test_hot_queries_have_their_index(db, query, index):
    async def explain(conn) -> str:
        await conn.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        return "\n".join(row[0] for row in await conn.fetch("EXPLAIN " + query))

    assert index in await db.run(explain)
