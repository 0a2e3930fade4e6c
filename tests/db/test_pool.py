import asyncio
import contextlib
import random
import signal

import asyncpg
import pytest
import trio
import trio.testing

from backendai_mgr.db import pool
from backendai_mgr.db.accounts import PgAccounts
from backendai_mgr.db.pool import Database, open_database
from backendai_mgr.db.sessions import PgSessions
from backendai_mgr.services.ports import StoreUnavailable
from tests.db.samples import KEY, fetch, fetchval, new_session
from tests.support.postgres import TemporaryPostgres

SIZE = 16
BUSY_OR_OPEN = """
SELECT count(*) FROM pg_stat_activity
 WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
"""


async def acquire_all(db: Database) -> None:
    """Have every connection in use at the same moment."""
    together = trio.Event()
    inside = 0

    async def hold() -> None:
        nonlocal inside

        async def work(conn) -> None:
            assert await conn.fetchval("SELECT 1") == 1
            # Another statement of this transaction can only run when all are inside.
            await conn.fetchval("SELECT pg_advisory_xact_lock_shared(77)")

        inside += 1
        if inside == SIZE:
            together.set()
        await db.run(work)

    async with db.dedicated() as gate:
        await gate.run(lambda conn: conn.execute("SELECT pg_advisory_lock(77)"), timeout=5)
        async with trio.open_nursery() as nursery:
            for _ in range(SIZE):
                nursery.start_soon(hold)
            await together.wait()
            with trio.fail_after(10):
                waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                while await gate.run(lambda conn: conn.fetchval(waiting), timeout=5) < SIZE:
                    await trio.lowlevel.checkpoint()
            assert db.statistics() == pool.PoolStatistics(size=SIZE, in_use=SIZE, idle=0)
            await gate.run(lambda conn: conn.execute("SELECT pg_advisory_unlock(77)"), timeout=5)


async def test_a_transaction_commits_whole_or_not_at_all(db):
    async def half(conn) -> None:
        await conn.execute("UPDATE domains SET description = 'changed'")
        raise LookupError("stop")

    with pytest.raises(LookupError):
        await db.run(half)
    assert await fetchval(db, "SELECT description FROM domains") == "The default domain"


async def test_a_swallowed_error_is_not_taken_for_a_commit(db):
    async def swallow(conn) -> None:
        with contextlib.suppress(asyncpg.DivisionByZeroError):
            await conn.execute("SELECT 1/0")

    with pytest.raises(RuntimeError, match="swallowed"):
        await db.run(swallow)


async def test_sql_errors_come_out_as_they_are(db):
    with pytest.raises(asyncpg.UndefinedTableError):
        await fetch(db, "SELECT * FROM nothing")
    assert db.statistics().in_use == 0


async def test_errors_of_the_body_come_out_of_the_context_as_they_are(parameters):
    with pytest.raises(LookupError, match="mine"):
        async with open_database(parameters):
            raise LookupError("mine")


async def test_a_snapshot_sees_one_moment(db, parameters):
    looked, written = trio.Event(), trio.Event()

    async def look(conn) -> tuple[int, int]:
        first = await conn.fetchval("SELECT count(*) FROM scaling_groups")
        looked.set()
        # Waits on the server until the writer has committed.
        await conn.fetchval("SELECT pg_advisory_xact_lock_shared(78)")
        return first, await conn.fetchval("SELECT count(*) FROM scaling_groups")

    async def write() -> None:
        async with db.dedicated() as other:
            await other.run(lambda conn: conn.execute("SELECT pg_advisory_lock(78)"), timeout=5)
            written.set()
            await looked.wait()
            insert = "INSERT INTO scaling_groups (name) VALUES ('x')"
            await other.run(lambda conn: conn.execute(insert), timeout=5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await written.wait()
        with trio.fail_after(10):
            assert await db.snapshot(look) == (1, 1)
    assert await fetchval(db, "SELECT count(*) FROM scaling_groups") == 2


async def test_a_snapshot_writes_nothing(db):
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await db.snapshot(lambda conn: conn.execute("INSERT INTO scaling_groups (name) VALUES ('y')"))


async def test_of_two_writers_that_deadlock_one_is_tried_again(db):
    await fetch(db, "INSERT INTO scaling_groups (name) VALUES ('a'), ('b')")
    attempts: list[str] = []
    holding: set[str] = set()
    both_hold_one = asyncio.Event()

    async def write(conn, names: str) -> None:
        attempts.append(names)
        update = "UPDATE scaling_groups SET description = $2 WHERE name = $1"
        await conn.execute(update, names[0], names)
        holding.add(names)
        if len(holding) == 2:
            both_hold_one.set()
        await both_hold_one.wait()
        await conn.execute(update, names[1], names)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.run, lambda conn: write(conn, "ab"))
            nursery.start_soon(db.run, lambda conn: write(conn, "ba"))
    assert sorted(attempts[:2]) == ["ab", "ba"]
    assert len(attempts) == 3
    described = await fetch(db, "SELECT DISTINCT description FROM scaling_groups WHERE name IN ('a', 'b')")
    assert [row["description"] for row in described] == [attempts[2]]


async def test_collisions_are_given_up_after_five_attempts(db):
    attempts = 0

    async def collide(conn) -> None:
        nonlocal attempts
        attempts += 1
        await conn.execute("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$")

    with pytest.raises(asyncpg.SerializationError):
        await db.run(collide)
    assert attempts == 5


async def test_a_storm_of_cancels_leaves_the_pool_whole(db):
    dice = random.Random(7)
    finished = 0

    async def work(conn) -> None:
        await conn.execute("UPDATE keypairs SET num_queries = num_queries + 1 WHERE access_key = $1", KEY)
        await conn.execute("SELECT pg_sleep(0.002)")
        await conn.fetch("SELECT * FROM users")

    async def one(patience: float) -> None:
        nonlocal finished
        with trio.move_on_after(patience):
            await db.run(work)
            finished += 1

    for _ in range(4):
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(one, dice.uniform(0, 0.15))
    assert 0 < finished < 240
    assert db.statistics().in_use == 0
    assert await fetchval(db, BUSY_OR_OPEN) == 0
    assert await fetchval(db, "SELECT num_queries FROM keypairs WHERE access_key = $1", KEY) >= finished
    await acquire_all(db)
    assert db.statistics() == pool.PoolStatistics(size=SIZE, in_use=0, idle=SIZE)


async def test_broken_connections_are_replaced(db, parameters):
    accounts = PgAccounts(db)
    await acquire_all(db)
    async with open_database(parameters, size=1) as killer:
        killed = await fetchval(
            killer,
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
    assert killed == SIZE
    failures = 0
    for _ in range(SIZE):
        try:
            assert await accounts.credential(KEY) is not None
        except StoreUnavailable:
            failures += 1  # a connection whose end had not been noticed yet
    assert failures < SIZE
    await acquire_all(db)


async def test_a_connection_that_breaks_in_the_middle_is_unavailability(db, parameters):
    sleeping = trio.Event()

    async def sleep(conn) -> None:
        sleeping.set()
        await conn.execute("SELECT pg_sleep(60)")

    async def kill() -> None:
        await sleeping.wait()
        async with open_database(parameters, size=1) as killer:
            with trio.fail_after(10):
                while not await fetchval(
                    killer,
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE query LIKE '%pg_sleep(60)%' AND pid <> pg_backend_pid()"
                    " AND datname = current_database()",
                ):
                    await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(kill)
        with trio.fail_after(10):
            try:
                await db.run(sleep)
            except StoreUnavailable:
                broken = True
    assert broken
    assert await fetchval(db, "SELECT 1") == 1


async def test_a_full_pool_is_unavailability_after_a_bounded_wait(db, monkeypatch):
    monkeypatch.setattr(pool, "ACQUIRE_TIMEOUT", 0.1)
    async with trio.open_nursery() as nursery:
        for _ in range(SIZE):
            nursery.start_soon(db.read, lambda conn: conn.execute("SELECT pg_sleep(30)"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(StoreUnavailable, match="busy"), trio.fail_after(10):
            await PgAccounts(db).credential(KEY)
        nursery.cancel_scope.cancel()
    assert await PgAccounts(db).credential(KEY) is not None


async def test_a_silent_server_is_unavailability_after_a_bounded_wait(db, monkeypatch):
    monkeypatch.setattr(pool, "RUN_TIMEOUT", 0.1)
    with pytest.raises(StoreUnavailable, match="no answer"), trio.fail_after(10):
        await db.run(lambda conn: conn.execute("SELECT pg_sleep(30)"))
    assert db.statistics().in_use == 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
async def test_a_server_that_goes_is_noticed_and_one_that_comes_is_used(how):
    with TemporaryPostgres() as server:
        parameters = server.database()
        async with open_database(parameters) as db:
            sessions = PgSessions(db)
            assert await sessions.live_owned() == []
            server.stop(how)
            for _ in range(3):
                with pytest.raises(StoreUnavailable), trio.fail_after(5):
                    await sessions.live_owned()
            server.start()
            with trio.fail_after(5):
                assert await sessions.live_owned() == []
                assert await sessions.match(KEY, "x", include_dead=True) == []


async def test_a_database_cannot_be_opened_without_its_server(tmp_path):
    with pytest.raises(StoreUnavailable), trio.fail_after(15):
        async with open_database({"host": str(tmp_path), "user": "x", "database": "x"}):
            pytest.fail("opened")


async def test_connections_are_set_up_for_us(db):
    names = ("jit", "timezone", "application_name", "lock_timeout")
    found = [await fetchval(db, "SELECT current_setting($1)", name) for name in names]
    assert found == ["off", "UTC", "backendai-mgr", "10s"]
    assert await fetchval(db, "SELECT $1::jsonb", {"a": [1, None, "ü"]}) == {"a": [1, None, "ü"]}


async def test_tasks_of_any_nursery_may_use_the_database(parameters):
    """The bridge must not depend on the context in which a task was made."""
    stored = []

    async def enqueue(send: trio.MemorySendChannel, receive: trio.MemoryReceiveChannel) -> None:
        await send.send(None)
        async for database in receive:
            stored.append(await PgSessions(database).enqueue(new_session()))

    ready, started = trio.open_memory_channel(0)
    give, take = trio.open_memory_channel(0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enqueue, ready, take)
        await started.receive()
        async with open_database(parameters) as db:
            await give.send(db)
            give.close()
            with trio.fail_after(10):
                while not stored:
                    await trio.lowlevel.checkpoint()
    assert stored == [True]
