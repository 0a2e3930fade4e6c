import pytest
import trio

from backendai_mgr.db.events import NewEvent, PgEvents, publish
from backendai_mgr.db.pool import open_database
from backendai_mgr.db.sessions import PgSessions
from backendai_mgr.services.ports import StoreUnavailable
from tests.db.samples import NOW, fetch, fetchval, new_session


async def next_topic(topics) -> str:
    with trio.fail_after(10):
        return await anext(topics)


async def test_an_event_reads_back_after_its_cursor(db):
    events = PgEvents(db)
    assert await events.last_id() == 0
    new = new_session()
    await PgSessions(db).enqueue(new)
    (row,) = await events.after(0, 10)
    assert (row.type, row.session_id, row.kernel_id, row.owner, row.time) == (
        "session_enqueued", new.id, new.id, new.access_key, NOW,
    )  # fmt: skip
    assert row.payload["session_name"] == "work"
    assert await events.last_id() == row.id
    assert await events.after(row.id, 10) == []


async def test_a_reader_that_resumes_at_its_cursor_misses_nothing_while_many_write(db):
    """Ids must commit in order; with plain sequences a reader would pass by ids that commit later."""
    events = PgEvents(db)
    read: list[int] = []
    done = trio.Event()

    async def write(writer: int) -> None:
        for n in range(15):
            told = [
                NewEvent(type="test", payload={"writer": writer, "n": n, "part": part}) for part in range(3)
            ]
            await db.run(lambda conn, told=told: publish(conn, told, NOW))

    async def follow() -> None:
        cursor = 0
        while True:
            finished = done.is_set()
            for row in await events.after(cursor, 7):
                read.append(row.id)
                cursor = row.id
            if finished and cursor == await events.last_id():
                return

    async with trio.open_nursery() as outer:
        outer.start_soon(follow)
        async with trio.open_nursery() as writers:
            for writer in range(6):
                writers.start_soon(write, writer)
        done.set()
    assert read == [row["id"] for row in await fetch(db, "SELECT id FROM events ORDER BY id")]
    assert len(read) == 6 * 15 * 3


async def test_an_event_of_a_transaction_that_fails_was_never_there(db):
    events = PgEvents(db)

    async def fail(conn) -> None:
        await publish(conn, [NewEvent(type="test")], NOW)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await db.run(fail)
    assert await events.after(0, 10) == []
    await db.run(lambda conn: publish(conn, [NewEvent(type="test")], NOW))  # the lock is free again


async def test_events_are_notified_when_they_can_be_read(db):
    events = PgEvents(db)
    async with events.topics() as topics:
        await PgSessions(db).enqueue(new_session())
        assert await next_topic(topics) == "events"
        assert len(await events.after(0, 10)) == 1


async def test_topics_that_nobody_took_are_told_once(db):
    async with PgEvents(db).topics() as topics:
        for n in range(5):
            await PgSessions(db).enqueue(new_session(f"session-{n}"))
        await fetch(db, "SELECT pg_notify('backendai_mgr', 'nonsense')")
        await fetch(db, "UPDATE keypairs SET is_active = false")
        told = {await next_topic(topics), await next_topic(topics)}
        assert told == {"events", "keys"}


async def test_a_cancelled_wait_loses_no_topic(db):
    async with PgEvents(db).topics() as topics:
        for n in range(10):
            with trio.move_on_after(0.001 * n):
                await anext(topics)
        await fetch(db, "UPDATE keypairs SET rate_limit = 5")
        assert await next_topic(topics) == "keys"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("UPDATE keypairs SET secret_key = 'x' WHERE access_key LIKE '%EXAMPLE'", True),
        ("UPDATE users SET status = 'inactive'", True),
        ("UPDATE keypair_resource_policies SET idle_timeout = 1", True),
        ("DELETE FROM keypairs WHERE access_key = 'AKIANAMONITOREXAMPLE'", True),
        ("UPDATE keypairs SET last_used = now(), num_queries = 7", False),
        ("UPDATE users SET full_name = 'x'", False),
    ],
)
async def test_what_credentials_are_made_of_notifies_the_caches(db, change, told):
    async with PgEvents(db).topics() as topics:
        await fetch(db, change)
        await PgSessions(db).enqueue(new_session())  # so that there is something to hear in any case
        heard = [await next_topic(topics)]
        if told:
            heard.append(await next_topic(topics))
        assert sorted(heard) == (["events", "keys"] if told else ["events"])


async def test_a_lost_listener_says_so_and_another_can_listen(db, parameters):
    events = PgEvents(db)
    async with open_database(parameters, size=1) as other:
        async with events.topics() as topics:
            me = await fetchval(
                other,
                "SELECT pid FROM pg_stat_activity"
                " WHERE query LIKE 'LISTEN%' AND datname = current_database()",
            )
            await fetch(other, "SELECT pg_terminate_backend($1)", me)
            with pytest.raises(StoreUnavailable), trio.fail_after(10):
                await anext(topics)
        async with events.topics() as topics:
            await fetch(other, "UPDATE keypairs SET rate_limit = 5")
            assert await next_topic(topics) == "keys"


async def test_listening_leaves_no_connection_behind(db):
    for _ in range(3):
        async with PgEvents(db).topics():
            pass
    with trio.fail_after(10):
        while await fetchval(
            db,
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%LISTEN%'",
        ):
            await trio.lowlevel.checkpoint()
