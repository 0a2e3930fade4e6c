import pytest
import trio

from backendai_mgr.db.turns import PgTurns
from backendai_mgr.services.ports import StoreUnavailable
from tests.db.samples import fetch

HOLDER = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 4203 AND granted"


async def test_one_has_the_turn_and_the_next_gets_it_from_him(db):
    order = []
    began = trio.Event()
    first, second = trio.Event(), trio.Event()

    async def worker(name: str, done: trio.Event) -> None:
        async with PgTurns(db, look_after=0.05).take():
            order.append(name)
            began.set()
            await done.wait()
            order.append(f"{name} leaves")

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker, "one", first)
            await began.wait()
            nursery.start_soon(worker, "two", second)
            await trio.sleep(0.3)  # several looks
            first.set()
            second.set()
    assert order == ["one", "one leaves", "two", "two leaves"]


async def test_whose_connection_is_lost_is_told(db):
    with trio.fail_after(20), pytest.RaisesGroup(StoreUnavailable, flatten_subgroups=True):
        async with PgTurns(db, look_after=0.05).take():
            ((pid,),) = await fetch(db, HOLDER)
            await fetch(db, f"SELECT pg_terminate_backend({pid})")
            await trio.sleep_forever()


async def test_who_stands_still_loses_the_turn(db):
    """As a process does that is stopped: its connection is open, and nothing comes from it."""
    stalled = PgTurns(db, look_after=60, stalled_after=0.2)
    with trio.fail_after(20):
        async with stalled.take(), PgTurns(db, look_after=0.05).take():
            pass
