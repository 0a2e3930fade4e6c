"""Loops that are run by whoever has the turn."""

from contextlib import asynccontextmanager

import trio

from backendai_mgr.services.ports import StoreUnavailable
from backendai_mgr.services.turns import run_in_turn


class Turns:
    """One turn; a test takes it away by planting an error."""

    def __init__(self) -> None:
        self.free = trio.CapacityLimiter(1)
        self.lost = trio.Event()

    @asynccontextmanager
    async def take(self):
        async with self.free, trio.open_nursery() as nursery:
            nursery.start_soon(self._lose)
            yield
            nursery.cancel_scope.cancel()

    async def _lose(self) -> None:
        await self.lost.wait()
        self.lost = trio.Event()
        raise StoreUnavailable("lost")


async def test_loops_run_in_one_worker_and_move_when_it_goes(autojump_clock):
    turns, running = Turns(), []

    async def loop(name: str) -> None:
        running.append(name)
        try:
            await trio.sleep_forever()
        finally:
            running.remove(name)

    async def worker(name: str, scope: trio.CancelScope) -> None:
        async def reap() -> None:
            await loop(f"{name} reaps")

        async def schedule() -> None:
            await loop(f"{name} schedules")

        with scope:
            await run_in_turn(turns, {"reaper": reap, "scheduler": schedule})

    scopes = [trio.CancelScope(), trio.CancelScope()]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker, "one", scopes[0])
        await trio.sleep(0.1)
        nursery.start_soon(worker, "two", scopes[1])
        await trio.sleep(60)
        assert sorted(running) == ["one reaps", "one schedules"]
        scopes[0].cancel()
        await trio.sleep(1)
        assert sorted(running) == ["two reaps", "two schedules"]
        # Lost, as with its connection, it is taken again.
        turns.lost.set()
        await trio.sleep(0.5)
        assert running == []
        await trio.sleep(1)
        assert sorted(running) == ["two reaps", "two schedules"]
        scopes[1].cancel()
