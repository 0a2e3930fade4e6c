"""Whose turn it is: what one worker of a cluster does for all, under an advisory lock.

The lock lives on a connection of its own, so that PostgreSQL releases it when its holder dies, and when its
holder stands still. It saves work; nothing depends on there being one holder only.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from .pool import Conn, Database

TIMEOUT = 5.0

SET_STALLED = "SELECT set_config('idle_session_timeout', $1, false)"
TAKE = "SELECT pg_try_advisory_lock(4203)"
PROBE = "SELECT 1"


@attrs.frozen
class PgTurns:
    """`services.ports.Turns` in PostgreSQL. Looks every ``look_after`` seconds whether the turn is free, and
    whether it is still ours; a holder that has not done so for ``stalled_after`` seconds loses it."""

    _db: Database
    look_after: float = 1.0
    stalled_after: float = 10.0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for the turn, and have it for the length of the block, which is cancelled when it is lost.

        `StoreUnavailable`, perhaps in a group, then and when the database is away.
        """
        async with self._db.dedicated() as dedicated:

            async def ask(query: str, *arguments: object) -> object:
                async def work(conn: Conn) -> object:
                    return await conn.fetchval(query, *arguments)

                return await dedicated.run(work, timeout=TIMEOUT)

            async def keep() -> None:
                while True:
                    await trio.sleep(self.look_after)
                    await ask(PROBE)

            await ask(SET_STALLED, f"{self.stalled_after * 1000:.0f}ms")
            while not await ask(TAKE):  # noqa: ASYNC110 - a lock that becomes free tells nobody
                await trio.sleep(self.look_after)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep)
                yield
                nursery.cancel_scope.cancel()
