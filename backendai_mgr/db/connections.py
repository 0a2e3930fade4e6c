"""The asyncio side of the pool: connections, and transactions on them.

asyncpg has a pool, but under trio-asyncio each take and return of its connections costs as much as a query.
Here a return is a list append. How many there may be at once is the Trio side's business (`pool.Database`).
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

import asyncpg

from ..services.ports import StoreUnavailable

T = TypeVar("T")

#: What the SQL of this package is run on; asyncio side only.
Conn: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Row: TypeAlias = asyncpg.Record

#: Seconds: to open a connection, to clean one up, and for which an unused one is kept.
CONNECT_TIMEOUT = 5.0
EXIT_TIMEOUT = 5.0
KEPT_IDLE = 300.0

SERVER_SETTINGS = {
    "application_name": "backendai-mgr",
    "timezone": "UTC",
    "jit": "off",  # compiling costs more than our statements
    "lock_timeout": "10000",
    "idle_in_transaction_session_timeout": "30000",
}

#: Whatever a lost or confused connection may raise.
BROKEN = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Connections:
    """Open connections that nobody uses, the one used last on top."""

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._parameters = {
            **parameters,
            "timeout": CONNECT_TIMEOUT,
            "server_settings": SERVER_SETTINGS,
        }
        self._idle: list[tuple[Conn, float]] = []
        self._in_use = 0
        self._closed = False

    @property
    def idle(self) -> int:
        """Open connections that nobody uses (some may be lost without our knowledge)."""
        return sum(not conn.is_closed() for conn, _ in self._idle)

    @property
    def in_use(self) -> int:
        """Connections that some work holds."""
        return self._in_use

    async def open(self) -> Conn:
        """A new connection that is the caller's to close. `StoreUnavailable` when there is none to be had."""
        try:
            conn: Conn = await asyncpg.connect(**self._parameters)
        except (OSError, asyncpg.PostgresError) as error:
            raise StoreUnavailable(describe(error)) from error
        try:
            for name in ("json", "jsonb"):
                await conn.set_type_codec(
                    name, schema="pg_catalog", encoder=json.dumps, decoder=json.loads, format="text"
                )
        except BaseException:
            conn.terminate()
            raise
        return conn

    async def use(self, work: Callable[[Conn], Awaitable[T]], begin: str | None) -> T:
        """Run *work* on a connection; with *begin* (a statement) in a transaction, committed at the end.

        A cancel is one `CancelledError` here, so that the clean-up after it is not cancelled in turn.
        """
        self._in_use += 1
        try:
            conn = await self._take()
            settled = True
            try:
                if begin is None:
                    return await work(conn)
                return await _in_transaction(conn, work, begin)
            except asyncio.CancelledError:
                settled = False
                raise
            except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
                if conn.is_closed():
                    raise StoreUnavailable(describe(error)) from error
                raise
            finally:
                await self._give_back(conn, settled=settled)
        finally:
            self._in_use -= 1

    async def close(self) -> None:
        """Close what is idle; connections in use are closed when they come back."""
        self._closed = True
        while self._idle:
            await close(self._idle.pop()[0])

    async def _take(self) -> Conn:
        while self._idle:
            conn, _ = self._idle.pop()
            if not conn.is_closed():
                return conn
            conn.terminate()  # its other end has gone: only the driver's records are left to clear
        return await self.open()

    async def _give_back(self, conn: Conn, *, settled: bool) -> None:
        """Keep the connection if it is clean or can be cleaned, else drop it."""
        clean = settled and not conn.is_in_transaction()
        if self._closed or conn.is_closed() or not (clean or await _clean(conn, settled=settled)):
            conn.terminate()
            return
        now = time.monotonic()
        self._idle.append((conn, now))
        oldest, since = self._idle[0]
        if now - since > KEPT_IDLE:
            del self._idle[0]
            await close(oldest)


async def _in_transaction(conn: Conn, work: Callable[[Conn], Awaitable[T]], begin: str) -> T:
    await conn.execute(begin)
    result = await work(conn)
    if await conn.execute("COMMIT") != "COMMIT":
        raise RuntimeError("the transaction had failed and its error was swallowed")
    return result


async def _clean(conn: Conn, *, settled: bool) -> bool:
    """Leave no transaction behind, and no statement that is still being cancelled; whether that succeeded."""
    try:
        async with asyncio.timeout(EXIT_TIMEOUT):
            if not settled:
                with suppress(asyncpg.InFailedSQLTransactionError):
                    await conn.execute("SELECT")  # is answered after whatever was cancelled
            if conn.is_in_transaction():
                await conn.execute("ROLLBACK")
    except BROKEN:
        return False
    return True


async def close(conn: Conn) -> None:
    """Close a connection politely if the server answers, else at once."""
    try:
        await conn.close(timeout=EXIT_TIMEOUT)
    except BROKEN:
        conn.terminate()


def describe(error: BaseException) -> str:
    """A sentence for `StoreUnavailable`."""
    return f"database: {str(error) or type(error).__name__}"
