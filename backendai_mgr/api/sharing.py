"""Readers of one run who are at the same place share one stream from its agent, and each frame is made once.

A *window* holds the newest frames of a run in front of a stream. One of its readers *leads*: its task keeps
the stream; when it leaves another one takes over. A frame is fetched as soon as any reader waits for it, so
the fastest reader sets the pace. Whoever falls behind the window begins a window of its own, and comes back
into the other when it has caught up. So a reader that stands still costs nothing, and holds up nobody.
"""

from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Self

import attrs
import trio

from ..domain.accounts import Caller
from ..domain.sessions import PlacedSession
from ..wire.records import Record
from ..wire.rpc import RunStatus
from .body import to_json
from .context import installed
from .models.runs import records_reply
from .output import BATCH_SECONDS, Batch, Intake, Item, Joiner, of_streams
from .sockets import race

#: What a window with several readers keeps: payload bytes, and frames.
WINDOW_BYTES = 1 << 20
WINDOW_FRAMES = 64

#: Whatever names a run in this process.
Key = tuple[object, str]
#: Opens the stream of a run's items from an offset on.
Opener = Callable[[int], AbstractAsyncContextManager[AsyncIterator[Item]]]


@attrs.define(eq=False)
class Frame:
    """Records from ``start`` to ``end``, in whole characters; with the last ones the ended run's status."""

    start: int
    end: int
    records: list[Record]
    ended: RunStatus | None = None
    _text: str | None = None

    @property
    def text(self) -> str:
        """``{"records", "next_offset"}`` as JSON."""
        if self._text is None:
            self._text = to_json(records_reply(self.records, self.end))
        return self._text

    def rest(self, offset: int) -> "Frame":
        """What follows *offset*."""
        if offset <= self.start:
            return self
        parts = [_after(record, offset) for record in self.records if record.end > offset]
        return Frame(offset, self.end, Joiner().join(parts, final=True), self.ended)

    def only(self, streams: Collection[str]) -> "Frame":
        """The same with records of these streams alone; of all where none is named."""
        if not streams:
            return self
        return Frame(self.start, self.end, list(of_streams(self.records, streams)), self.ended)


def _after(record: Record, offset: int) -> Record:
    skip = max(0, offset - record.offset)
    if not skip:
        return record
    if record.gap:
        return attrs.evolve(record, offset=offset, gap=record.gap - skip)
    return attrs.evolve(record, offset=offset, data=record.data[skip:])


class Window:
    """The newest frames before ``end``, where the stream goes on."""

    def __init__(self, offset: int) -> None:
        self.end = offset
        self.readers = 0
        self.led = False
        #: Why the stream is over for those who wait.
        self.failure: Exception | None = None
        self._frames: list[Frame] = []
        self._bytes = 0
        self._ended: RunStatus | None = None
        self._changed = trio.Event()
        self._wanted = trio.Event()
        self._leading = trio.CancelScope()

    def has(self, offset: int) -> bool:
        """Whether a reader at *offset* finds something here at once."""
        if offset == self.end:
            return self._ended is not None
        return bool(self._frames) and self._frames[0].start <= offset < self.end

    def at(self, offset: int) -> Frame | None:
        """The frame that goes on at *offset*; None if it has to be waited for."""
        if not self.has(offset):
            return None
        if offset == self.end:
            return Frame(offset, offset, [], self._ended)
        index = bisect_right(self._frames, offset, key=lambda frame: frame.start) - 1
        return self._frames[index].rest(offset)

    async def wait(self) -> None:
        """Until there is more, or nobody leads any longer. `failure` as it is raised by the stream."""
        changed = self._changed
        self._wanted.set()
        await changed.wait()
        if self.failure is not None:
            raise self.failure

    async def lead(self, open_stream: Opener) -> None:
        """Fetch what is waited for, until the run's end, a failure, or `step_down`."""
        scope = self._leading = trio.CancelScope()
        with scope:
            try:
                async with open_stream(self.end) as items:
                    intake = Intake()
                    await race(partial(intake.feed, items), partial(self._fetch, intake, scope))
            except Exception as error:
                if scope is self._leading:  # each reader raises it
                    self.failure = error
                    self._wake()

    def step_down(self) -> None:
        """The leader leaves; one of those who wait takes over."""
        self._leading.cancel()
        # Whatever it was about to add is the next one's to add.
        self._leading = trio.CancelScope()
        self.led = False
        self._wake()

    async def _fetch(self, intake: Intake, scope: trio.CancelScope) -> None:
        joiner = Joiner()
        sent_at = trio.current_time() - BATCH_SECONDS
        while self._ended is None:
            await self._wanted.wait()
            batch = await intake.batch(until=sent_at + BATCH_SECONDS)
            if scope is not self._leading:
                return
            if self._add(joiner, batch):
                sent_at = trio.current_time()

    def _add(self, joiner: Joiner, batch: Batch) -> bool:
        records = joiner.join(batch.records, final=batch.ended is not None)
        if not records and batch.ended is None:
            return False
        last = batch.records or records
        end = joiner.next_offset(last[-1].end if last else self.end)
        frame = Frame(self.end, end, records, batch.ended)
        self.end, self._ended = end, batch.ended
        if records:
            self._frames.append(frame)
            self._bytes += _size(frame)
        while len(self._frames) > 1 and self._is_full():
            self._bytes -= _size(self._frames.pop(0))
        self._wanted = trio.Event()
        self._wake()
        return True

    def _is_full(self) -> bool:
        """A single reader needs only what comes next."""
        return self.readers < 2 or len(self._frames) > WINDOW_FRAMES or self._bytes > WINDOW_BYTES

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _size(frame: Frame) -> int:
    return sum(len(record.data) for record in frame.records)


class SharedRuns:
    """The windows of all runs that are being read."""

    def __init__(self) -> None:
        self._windows: dict[Key, list[Window]] = {}

    def find(self, key: Key, offset: int) -> Window:
        """Where to read on at *offset*; a new window if there is none."""
        windows = self._windows.setdefault(key, [])
        living = [window for window in windows if window.failure is None]
        found = next((window for window in living if window.has(offset)), None)
        found = found or next((window for window in living if window.end == offset), None)
        if found is None:
            found = Window(offset)
            windows.append(found)
        return found

    def drop(self, key: Key, window: Window) -> None:
        """Nobody reads there any more."""
        windows = self._windows[key]
        windows.remove(window)
        if not windows:
            del self._windows[key]


class Follower:
    """One reader, to be used in a ``with`` block. Its owner runs `lead` beside the task that takes frames."""

    def __init__(
        self, shared: SharedRuns, key: Key, offset: int, open_stream: Opener, streams: Collection[str] = ()
    ) -> None:
        """Of *streams* only, if any are named."""
        self.offset = offset
        self._streams = streams
        self._shared = shared
        self._key = key
        self._open_stream = open_stream
        self._window: Window | None = None
        self._leads: Window | None = None
        self._called = trio.Event()

    async def next(self) -> Frame:
        """The next frame. May be cancelled and called again. Raises what the stream raises."""
        await trio.lowlevel.checkpoint()
        while True:
            window = self._join()
            if (frame := window.at(self.offset)) is not None:
                self.offset = frame.end
                return frame.only(self._streams)
            if not window.led:
                window.led = True
                self._leads = window
                self._called.set()
            await window.wait()

    async def lead(self) -> None:
        """Lead whenever it is this reader's turn."""
        while True:
            await self._called.wait()
            self._called = trio.Event()
            if (window := self._leads) is not None:
                await window.lead(self._open_stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        window, self._window = self._window, None
        if window is None:
            return
        if self._leads is window:
            self._leads = None
            if window.led:
                window.step_down()
        window.readers -= 1
        if not window.readers:
            self._shared.drop(self._key, window)

    def _join(self) -> Window:
        window = self._window
        if window is None or not window.has(self.offset):
            found = self._shared.find(self._key, self.offset)
            if found is not window:
                self._leave()
                self._window = window = found
                window.readers += 1
        return window


def follow(
    caller: Caller, session: PlacedSession, run_id: str, offset: int, streams: Collection[str] = ()
) -> Follower:
    """A reader of this run, which the caller may read."""
    installation = installed()
    runs = installation.services.runs

    def open_stream(offset: int) -> AbstractAsyncContextManager[AsyncIterator[Item]]:
        # By its id: it may have another name when this reader's turn comes.
        return runs.stream(caller, str(session.id), run_id, offset=offset)

    return Follower(installation.shared, (session.id, run_id), offset, open_stream, streams)
