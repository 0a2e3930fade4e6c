"""The output of one run for any number of readers: one watch at the shim, one reading of the files."""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import attrs
import trio

from ..domain.status import RunState
from ..shim.runlog import RunLogReader
from ..wire.records import Record
from ..wire.rpc import AgentRefusal, RunStatus
from .handler import Chunk
from .shimlink import ShimGone
from .window import Window

#: The most payload bytes of one chunk, whatever is asked for. Read inline: they are in the page cache.
MAX_CHUNK = 256 << 10
#: Readers at so many different places of one run find theirs again without searching.
_PLACES = 64
#: Places that are so far apart that their readers share nothing.
_WINDOWS = 2


class Arm(Protocol):
    """Arms the watch of a run past an offset; what comes of it is told to the feed. Raises `ShimGone`."""

    def __call__(self, run_id: str, offset: int, refused: Callable[[], None]) -> Awaitable[None]: ...


class RunFeed:
    """What is known of a run while it is being read. Told of changes by `update` and `advance`."""

    def __init__(self, folder: Path, run: RunStatus, arm: Arm, *, watched: bool = False) -> None:
        """*watched*: the run's first output will be told without asking for it."""
        self.run = run
        #: Held by the legacy poll that is being answered.
        self.turn = trio.Lock()
        self.readers = 0
        self._folder = folder
        self._arm = arm
        self._end = run.end_offset
        self._changed = trio.Event()
        #: The watch fires past this offset; None while none is armed.
        self._armed_past: int | None = 0 if watched else None
        self._places: OrderedDict[int, RunLogReader] = OrderedDict()
        #: Where the latest reading ended that was not at the end of the files.
        self._read_to = -1
        #: The last used first.
        self._windows: list[Window] = []

    # -- what the shim tells

    def update(self, run: RunStatus) -> None:
        """The run is now like this. What has ended stays ended."""
        if not self.run.ended:
            self.run = run
            self._end = max(self._end, run.end_offset)
            self._wake()

    def advance(self, end: int, ended: bool) -> None:
        """The watch fired: there is output up to *end*, or the run has *ended*, of which `update` tells."""
        if not ended:
            self._armed_past = None
        self._end = max(self._end, end)
        self._wake()

    def disarmed(self) -> None:
        """The watch is gone; whoever still waits has to look for another way."""
        self._armed_past = None
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def relocate(self, folder: Path) -> None:
        """The files are in another folder now."""
        self._folder = folder
        self._places.clear()

    # -- reading

    async def read(self, offset: int, max_bytes: int, wait: float) -> Chunk:
        """Output from *offset*; waits up to *wait* seconds for some, or for the end of the run.

        Raises `AgentRefusal` offset-past-end when the run has ended before *offset*.
        """
        chunk = self.chunk(offset, max_bytes)
        with trio.move_on_after(wait):
            while not chunk.records and not chunk.run.ended:
                # Beyond the known end: the shim counts bytes that a full disk has not taken yet.
                await self.wait(past=max(offset, self._end))
                chunk = self.chunk(offset, max_bytes)
        return chunk

    async def wait(self, *, past: int, or_event_past: int | None = None) -> None:
        """Until the run has ended, or has output past offset *past*; or, if an offset is given for that, asks
        for input or has ended a step past it."""
        while not (self.run.ended or self._end > past or self._has_event(or_event_past)):
            changed = self._changed
            if self._armed_past is None or past < self._armed_past:
                await self._watch(past)
            await changed.wait()

    def _has_event(self, past: int | None) -> bool:
        if past is None:
            return False
        return self.run.state == RunState.WAITING_INPUT or self.run.step_end > past

    async def _watch(self, past: int) -> None:
        self._armed_past = past
        try:
            await self._arm(self.run.run_id, past, self.disarmed)
        except ShimGone:
            return  # the kernel's end is on its way, and `update` will tell of the run's
        except BaseException:
            self.disarmed()  # the others that wait must arm it themselves
            raise

    def chunk(self, offset: int, max_bytes: int) -> Chunk:
        """What there is from *offset* on, at once."""
        run = self.run  # before reading: when it has ended, all its output is there
        if run.ended and offset > run.end_offset:
            raise AgentRefusal("offset-past-end", f"run {run.run_id} ended at offset {run.end_offset}")
        records = self._records(offset, max(1, min(max_bytes, MAX_CHUNK)), run)
        next_offset = records[-1].end if records else offset
        end = run.end_offset if run.ended else max(self._end, next_offset if records else 0)
        return Chunk(records=records, next_offset=next_offset, run=attrs.evolve(run, end_offset=end))

    def _records(self, offset: int, size: int, run: RunStatus) -> list[Record]:
        window = next((window for window in self._windows if window.reaches(offset)), Window())
        found = window.cut(offset, size)
        offset = found[-1].end if found else offset
        size -= sum(len(record.data) for record in found)
        if size > 0 and self._may_hold(offset, run) and (records := self._read_files(offset, size, run)):
            window.add(records)
            found += window.cut(offset, size)
        if found:
            self._windows = [window, *(other for other in self._windows if other is not window)][:_WINDOWS]
        return found

    def _may_hold(self, offset: int, run: RunStatus) -> bool:
        """Whether the files may have something at *offset*: it was told so, or they had more before."""
        if run.ended:
            return offset < run.end_offset
        return offset < self._end or offset == self._read_to

    def _read_files(self, offset: int, size: int, run: RunStatus) -> list[Record]:
        size = size if self.readers < 2 else MAX_CHUNK  # for the others, who may ask for less or more
        reader = self._places.pop(offset, None) or RunLogReader(self._folder)
        found = reader.read(offset, size, run.end_offset if run.ended else None)
        records = [Record(*record) for record in found]
        if sum(len(record.data) for record in records) == size:
            self._read_to = records[-1].end
        self._places[records[-1].end if records else offset] = reader
        if len(self._places) > _PLACES:
            self._places.popitem(last=False)
        return records

    def rest(self) -> None:
        """Nobody reads at the moment: keep the places, not the bytes."""
        self._windows.clear()
