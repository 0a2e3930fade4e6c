"""The worker's ear: follows the event log and wakes whoever waits. Listeners re-read; nothing depends on a
wake-up having been seen, since everyone who waits also looks again after `POLL` seconds at the latest."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from ..domain.ids import SessionId
from .ports import EventRow, Events, StoreUnavailable

log = logging.getLogger(__name__)

POLL = 2.0
RECONNECT = 0.5
BATCH = 500


class Wake:
    """A flag that one loop waits for: any number of `set` calls before a `wait` are one wake-up."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Let the present or next `wait` return."""
        self._event.set()

    async def wait(self, timeout: float) -> bool:
        """Wait until set, at most ``timeout`` seconds; whether it was set. Clears the flag."""
        with trio.move_on_after(timeout):
            await self._event.wait()
        was_set = self._event.is_set()
        self._event = trio.Event()
        return was_set


class Hub:
    """Fan-out of the event log in a worker. Listeners are plain functions; they neither block nor raise."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._on_event: list[Callable[[EventRow], None]] = []
        self._on_topic: dict[str, list[Callable[[], None]]] = {}
        self._on_connection: list[Callable[[bool], None]] = []
        self._waiters: dict[SessionId, set[Wake]] = {}
        self._stopped = False
        self.connected = False

    def on_event(self, listener: Callable[[EventRow], None]) -> None:
        """Call *listener* with each new event, in commit order."""
        self._on_event.append(listener)

    def on_topic(self, topic: str, listener: Callable[[], None]) -> None:
        """Call *listener* when *topic* is notified, and after each reconnection."""
        self._on_topic.setdefault(topic, []).append(listener)

    def on_connection(self, listener: Callable[[bool], None]) -> None:
        """Call *listener* with whether notifications are heard, when that changes."""
        self._on_connection.append(listener)

    @contextmanager
    def watch(self, session_id: SessionId) -> Iterator[Wake]:
        """A flag that is set whenever an event tells of this session, and when the hub stops."""
        wake = Wake()
        if self._stopped:
            wake.set()
        self._waiters.setdefault(session_id, set()).add(wake)
        try:
            yield wake
        finally:
            waiters = self._waiters[session_id]
            waiters.discard(wake)
            if not waiters:
                del self._waiters[session_id]

    @property
    def stopped(self) -> bool:
        """Whether waiting has become useless because the worker stops."""
        return self._stopped

    def stop(self) -> None:
        """Wake every watcher for good: the worker stops."""
        self._stopped = True
        for waiters in self._waiters.values():
            for wake in waiters:
                wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the event log for ever; started once notifications are heard."""
        cursor = -1
        while True:
            try:
                async with self._events.topics() as topics:
                    if cursor < 0:
                        cursor = await self._events.last_id()
                    self._set_connected(True)
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    while True:
                        cursor = await self._drain(cursor)
                        with trio.move_on_after(POLL):
                            topic = await anext(topics)
                            if topic != "events":
                                self._topic(topic)
            except (StoreUnavailable, StopAsyncIteration) as error:
                log.warning("notifications lost, trying again: %s", error)
            finally:
                self._set_connected(False)
            await trio.sleep(RECONNECT)

    async def _drain(self, cursor: int) -> int:
        while rows := await self._events.after(cursor, BATCH):
            for row in rows:
                self._dispatch(row)
            cursor = rows[-1].id
            if len(rows) < BATCH:
                break
        return cursor

    def _dispatch(self, row: EventRow) -> None:
        for listener in self._on_event:
            listener(row)
        if row.session_id is not None:
            for wake in self._waiters.get(row.session_id, ()):
                wake.set()

    def _topic(self, topic: str) -> None:
        for listener in self._on_topic.get(topic, ()):
            listener()

    def _set_connected(self, connected: bool) -> None:
        if connected == self.connected:
            return
        self.connected = connected
        for listener in self._on_connection:
            listener(connected)
        if connected:
            for topic in self._on_topic:
                self._topic(topic)
