"""The event log and its wake-ups.

Triggers of ``schema.sql`` take the log's lock before an insert draws its ids, and notify after it. Inserting
is therefore the last statement of a transaction: ids commit in order, and the lock lasts only for the commit.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import attrs
import trio

from ..domain.ids import AccessKey, AgentId, KernelId, SessionId
from ..services.ports import EventRow, StoreUnavailable
from .pool import Conn, Database, Dedicated, Row

#: The channel that ``schema.sql`` notifies; payloads are topics.
CHANNEL = "backendai_mgr"
TOPICS = frozenset({"events", "keys"})

#: Seconds of silence after which the listening connection is tried; a dead one is noticed after both.
PROBE_AFTER = 5.0
PROBE_TIMEOUT = 5.0


@attrs.frozen(kw_only=True)
class NewEvent:
    """An event to be written.

    ``type`` is a name of api-sessions §5.9, or agent_joined, agent_started, agent_changed, agent_lost.
    Payload of session and kernel events: reason, session_name, creation_id, domain, group_id, user_id,
    status, exit_code; of kernel events also cluster_role, cluster_idx, incarnation.
    """

    type: str
    session_id: UUID | None = None
    kernel_id: UUID | None = None
    agent_id: str | None = None
    user_id: UUID | None = None
    access_key: str | None = None
    payload: Mapping[str, Any] = attrs.field(factory=dict)


INSERT = """
INSERT INTO events (time, type, session_id, kernel_id, agent_id, user_uuid, access_key, payload)
SELECT $1, e.type, e.session_id, e.kernel_id, e.agent_id, e.user_uuid, e.access_key, e.payload
  FROM unnest($2::text[], $3::uuid[], $4::uuid[], $5::text[], $6::uuid[], $7::text[], $8::jsonb[])
       WITH ORDINALITY AS e (type, session_id, kernel_id, agent_id, user_uuid, access_key, payload, nth)
 ORDER BY e.nth
"""


async def publish(conn: Conn, events: Sequence[NewEvent], now: datetime) -> None:
    """Write *events* in this order and notify. The caller's transaction does nothing after this."""
    if events:
        await conn.execute(
            INSERT,
            now,
            [event.type for event in events],
            [event.session_id for event in events],
            [event.kernel_id for event in events],
            [event.agent_id for event in events],
            [event.user_id for event in events],
            [event.access_key for event in events],
            [dict(event.payload) for event in events],
        )


LAST_ID = "SELECT coalesce(max(id), 0) FROM events"

AFTER = """
SELECT id, time, type, session_id, kernel_id, agent_id, access_key, payload
  FROM events WHERE id > $1 ORDER BY id LIMIT $2
"""


class PgEvents:
    """`services.ports.Events` in PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def last_id(self) -> int:
        """Id of the newest event, 0 when there is none."""

        async def work(conn: Conn) -> int:
            found: int = await conn.fetchval(LAST_ID)
            return found

        return await self._db.read(work)

    async def after(self, cursor: int, limit: int) -> Sequence[EventRow]:
        """Events past the cursor, oldest first."""

        async def work(conn: Conn) -> list[EventRow]:
            return [_event(row) for row in await conn.fetch(AFTER, cursor, limit)]

        return await self._db.read(work)

    def topics(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Topics as they are notified: "events", "keys". Equal ones not yet taken are handed out once.

        Listening has begun when the context is entered: read everything then, for what was notified before is
        not told. A connection that is lost or does not answer ends the iteration with `StoreUnavailable`.
        """
        return _listen(self._db)


def _event(row: Row) -> EventRow:
    return EventRow(
        id=row["id"],
        time=row["time"],
        type=row["type"],
        session_id=None if row["session_id"] is None else SessionId(row["session_id"]),
        kernel_id=None if row["kernel_id"] is None else KernelId(row["kernel_id"]),
        agent_id=None if row["agent_id"] is None else AgentId(row["agent_id"]),
        owner=None if row["access_key"] is None else AccessKey(row["access_key"]),
        payload=row["payload"],
    )


@asynccontextmanager
async def _listen(db: Database) -> AsyncIterator[AsyncIterator[str]]:
    async with db.dedicated() as dedicated:
        topics = _Topics(dedicated)

        async def subscribe(connection: Conn) -> None:
            connection.add_termination_listener(topics.lost)
            await connection.add_listener(CHANNEL, topics.notified)

        await dedicated.run(subscribe, timeout=PROBE_TIMEOUT)
        try:
            yield topics
        finally:
            topics.close()


class _Topics(AsyncIterator[str]):
    """Waiting topics, each at most once, so that a slow reader costs nothing."""

    def __init__(self, dedicated: Dedicated) -> None:
        self._dedicated = dedicated
        self._waiting: dict[str, None] = {}
        self._changed = trio.Event()
        self._lost = False

    def notified(self, _connection: object, _pid: int, _channel: str, topic: object) -> None:
        if topic in TOPICS:
            self._waiting[str(topic)] = None
            self._changed.set()

    def lost(self, _connection: object) -> None:
        self._lost = True
        self._changed.set()

    def close(self) -> None:
        self._dedicated.connection.remove_termination_listener(self.lost)

    async def __anext__(self) -> str:
        while not self._waiting:
            if self._lost:
                raise StoreUnavailable("the listening connection was lost")
            self._changed = trio.Event()
            with trio.move_on_after(PROBE_AFTER) as silence:
                await self._changed.wait()
            if silence.cancelled_caught:
                await self._dedicated.run(_probe, timeout=PROBE_TIMEOUT)
        topic = next(iter(self._waiting))
        del self._waiting[topic]
        return topic


async def _probe(connection: Conn) -> None:
    await connection.execute("SELECT 1")
