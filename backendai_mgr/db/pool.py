"""PostgreSQL from Trio: a bounded number of asyncpg connections on a trio-asyncio loop.

`Database.run` takes a whole use case (an ``async def`` that runs on the asyncio side) over the bridge at
once. On that side a cancel arrives as one exception, not as a state, so that rollback and return run to their
end: no cancel loses a connection.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
import attrs
import trio
import trio_asyncio

from ..domain.errors import InvalidParameters
from ..services.ports import StoreUnavailable
from .connections import Conn, Connections, Row, close, describe

__all__ = ["Conn", "Database", "Dedicated", "PoolStatistics", "Row", "open_database"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds: to get a connection, and for a whole use case.
ACQUIRE_TIMEOUT = 5.0
RUN_TIMEOUT = 30.0

READ_COMMITTED = "BEGIN ISOLATION LEVEL READ COMMITTED"
SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

#: Two writers met; one of them is asked to try again.
_RETRIED = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
_ATTEMPTS = 5
_FIRST_PAUSE = 0.02

#: The server goes, comes, is full, or somebody holds a lock for too long. Subclasses included.
_AWAY = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)

#: Texts that PostgreSQL cannot store: a NUL, a lone surrogate, too long.
_UNSTORABLE = (
    asyncpg.CharacterNotInRepertoireError,
    asyncpg.UntranslatableCharacterError,
    asyncpg.StringDataRightTruncationError,
)


@attrs.frozen(kw_only=True)
class PoolStatistics:
    """Connections: the most there may be at once, those in use, and those open and unused."""

    size: int
    in_use: int
    idle: int


class Database:
    """The pool. Made by `open_database`; methods may be called from any task until that is left."""

    def __init__(self, loop: trio_asyncio.TrioEventLoop, connections: Connections, size: int) -> None:
        self._loop = loop
        self._connections = connections
        self._size = size
        # A task has its place before it asks for a connection: Trio's queue is fair, and its wait is bounded.
        self._places = trio.CapacityLimiter(size)

    async def run(self, work: Callable[[Conn], Awaitable[T]]) -> T:
        """Run *work* in a READ COMMITTED transaction and commit.

        *work* is asyncio-flavoured and may be run again from its start when two transactions collide, so it
        does nothing but SQL. `StoreUnavailable` when the server is away; whatever *work* raises rolls back.
        A task may not call this from within *work*.
        """
        return await self._cross(work, READ_COMMITTED)

    async def snapshot(self, work: Callable[[Conn], Awaitable[T]]) -> T:
        """As `run`, read-only, and all statements see the same moment."""
        return await self._cross(work, SNAPSHOT)

    async def read(self, work: Callable[[Conn], Awaitable[T]]) -> T:
        """As `run` without a transaction around *work*: for one statement, or reads that need not agree."""
        return await self._cross(work, None)

    def statistics(self) -> PoolStatistics:
        """What the pool holds at this moment."""
        return PoolStatistics(size=self._size, in_use=self._connections.in_use, idle=self._connections.idle)

    @asynccontextmanager
    async def dedicated(self) -> AsyncIterator["Dedicated"]:
        """A connection of one's own outside the pool, for what lives on a connection (LISTEN, locks)."""
        connection = await self._bridge(self._connections.open())
        try:
            yield Dedicated(self._loop, connection)
        finally:
            with trio.CancelScope(shield=True):
                await self._loop.run_aio_coroutine(close(connection))

    async def _cross(self, work: Callable[[Conn], Awaitable[T]], begin: str | None) -> T:
        try:
            with trio.fail_after(ACQUIRE_TIMEOUT):
                await self._places.acquire()
        except trio.TooSlowError:
            raise StoreUnavailable("every database connection is busy") from None
        try:
            return await self._bridge(self._persist(work, begin))
        finally:
            self._places.release()

    async def _bridge(self, work: Awaitable[T]) -> T:
        """Await on the asyncio side, bounded; a lost server and unstorable texts become our errors."""
        try:
            with trio.fail_after(RUN_TIMEOUT):
                return await self._loop.run_aio_coroutine(work)  # type: ignore[no-any-return]
        except trio.TooSlowError:
            raise StoreUnavailable(f"no answer from the database in {RUN_TIMEOUT:.0f} s") from None
        except _AWAY as error:
            raise StoreUnavailable(describe(error)) from error
        except _UNSTORABLE as error:
            raise InvalidParameters(f"a text cannot be stored: {error}") from error
        except asyncpg.DataError as error:
            if isinstance(error.__cause__, UnicodeEncodeError):
                raise InvalidParameters("a text cannot be stored: it is not valid Unicode") from error
            raise

    async def _persist(self, work: Callable[[Conn], Awaitable[T]], begin: str | None) -> T:
        for attempt in range(1, _ATTEMPTS):
            try:
                return await self._connections.use(work, begin)
            except _RETRIED as error:
                log.info("database transaction collided, attempt %d: %s", attempt, error)
                await asyncio.sleep(_FIRST_PAUSE * 2**attempt * random.random())
        return await self._connections.use(work, begin)


class Dedicated:
    """A connection that only its opener uses."""

    def __init__(self, loop: trio_asyncio.TrioEventLoop, connection: Conn) -> None:
        self._loop = loop
        self.connection = connection

    async def run(self, work: Callable[[Conn], Awaitable[T]], *, timeout: float) -> T:
        """Run *work* on it. `StoreUnavailable` when it is lost or silent for *timeout* seconds."""
        try:
            with trio.fail_after(timeout):
                return await self._loop.run_aio_coroutine(work(self.connection))  # type: ignore[no-any-return]
        except trio.TooSlowError:
            raise StoreUnavailable(f"no answer from the database in {timeout:.0f} s") from None
        except _AWAY as error:
            raise StoreUnavailable(describe(error)) from error
        except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
            if self.connection.is_closed():
                raise StoreUnavailable(describe(error)) from error
            raise


@asynccontextmanager
async def open_database(target: str | Mapping[str, Any], *, size: int = 16) -> AsyncIterator[Database]:
    """A `Database` of up to *size* connections; closed, with its connections, at the end.

    *target* is a PostgreSQL URL, or asyncpg's parameters (``host`` may be a socket directory).
    `StoreUnavailable` when the server cannot be reached now. Errors of the body come out as they are.
    """
    connections = Connections({"dsn": target} if isinstance(target, str) else target)
    failure: Exception | None = None
    async with trio_asyncio.open_loop() as loop:
        try:
            database = Database(loop, connections, size)
            await database.read(_greet)
            try:
                yield database
            finally:
                with trio.CancelScope(shield=True):
                    await loop.run_aio_coroutine(connections.close())
        except Exception as error:
            # The loop's nurseries would wrap it; it is raised again as soon as they are left.
            failure = error
    if failure is not None:
        raise failure


async def _greet(conn: Conn) -> None:
    """Nothing: to have had a connection is enough."""
