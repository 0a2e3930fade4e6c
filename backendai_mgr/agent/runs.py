"""The runs of one kernel: asked from its shim as long as that lives, read from the disk afterwards."""

from base64 import b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from ..domain.status import RunState
from ..shim.failpoint import failpoint
from ..wire.codec import wire
from ..wire.records import STEP
from ..wire.rpc import AgentRefusal, RunOrder, RunStatus, Started
from .handler import Chunk
from .pastruns import PastRuns
from .runfeed import MAX_CHUNK, RunFeed
from .scratch import run_folder
from .shimlink import ShimGone, ShimLink, ShimRefusal, ShimSilent

#: What is kept in memory about so many of a kernel's runs; the shim and the disk know the others.
_REMEMBERED = 1024
#: The shim lists no more.
_LISTED = 1000
#: Feeds kept although nobody reads them at the moment.
_IDLE_FEEDS = 32

_CODES = {
    "conflict": "run-conflict",
    "bad-incarnation": "stale-incarnation",
    "not-found": "no-such-run",
    "queue-full": "queue-full",
    "kernel-ended": "kernel-ended",
    "no-prompt": "no-prompt",
    "no-terminal": "no-terminal",
    "too-many": "too-many",
    "no-room": "no-room",
    "not-ended": "not-ended",
}

V = TypeVar("V")


class KernelRuns:
    """All refusals are `AgentRefusal`. Calls wait until the kernel has started."""

    def __init__(self, root: Path) -> None:
        """*root*: the folder in which the runs' folders are."""
        self._root = root
        self._link: ShimLink | None = None
        self._past: PastRuns | None = None
        self._answerable = trio.Event()  # by the shim or the disk
        self._statuses: OrderedDict[str, RunStatus] = OrderedDict()
        self._cursors: OrderedDict[str, int] = OrderedDict()
        self._feeds: OrderedDict[str, RunFeed] = OrderedDict()
        #: Runs that are interrupted soon unless somebody reads them.
        self._abandoned: dict[str, trio.Event] = {}
        #: Runs that were started on this connection and have no feed yet: their first output will be told.
        self._watched: set[str] = set()

    # -- told by the kernel

    def attach(self, link: ShimLink) -> None:
        """From now on the shim answers, on this connection."""
        self._link = link
        self._answerable.set()

    def detach(self, link: ShimLink) -> None:
        """This connection has ended: wait for another one, or for the end."""
        if self._link is link:
            self._link = None
            self._answerable = trio.Event()
            self._watched.clear()

    async def refresh(self, link: ShimLink) -> None:
        """After a reconnection: what was told meanwhile is not known, so ask for what is being read."""
        self._statuses = _only_ended(self._statuses)
        for run_id, feed in list(self._feeds.items()):
            if not feed.run.ended:
                await link.request("status", run_id=run_id)  # the answer passes through on_run
            feed.disarmed()

    def end(self, past: PastRuns) -> None:
        """Nothing of the kernel runs any more: what is on disk is final."""
        self._link, self._past = None, past
        self._statuses = _only_ended(self._statuses)
        self._answerable.set()
        for run_id, feed in self._feeds.items():
            lost = attrs.evolve(feed.run, state=RunState.LOST, reason=past.reason, ended_at=past.ended_at)
            feed.update(past.status(run_id) or lost)
            feed.disarmed()

    def relocate(self, past: PastRuns) -> None:
        """After `end`: the runs were moved. Whoever reads goes on."""
        self._root, self._past = past.root, past
        for run_id, feed in self._feeds.items():
            feed.relocate(run_folder(past.root, run_id))

    def on_run(self, run: RunStatus) -> None:
        """The shim says that the run is now like this."""
        _remember(self._statuses, run.run_id, run)
        if feed := self._feeds.get(run.run_id):
            feed.update(run)

    def on_more(self, run_id: str, end: int, ended: bool) -> None:
        """The watch of this run fired."""
        self._watched.discard(run_id)
        if feed := self._feeds.get(run_id):
            feed.advance(end, ended)

    # -- asked by the link server

    async def start(self, run_id: str, order: RunOrder) -> Started:
        """Start the run, or attach to the one that was started with this id and digest."""
        created = False
        self._watched.add(run_id)
        try:
            answer = await self._ask("start", run_id=run_id, watch=0, **attrs.asdict(order))
            created = not isinstance(answer, PastRuns) and answer["created"]
        finally:
            if not created:
                self._watched.discard(run_id)
        failpoint("run.after_answer")
        if not isinstance(answer, PastRuns):
            return Started(created=answer["created"], run=wire.structure(answer["run"], RunStatus))
        run = answer.status(run_id)
        if run is None:
            raise AgentRefusal("kernel-ended", f"the kernel has ended: {answer.reason}")
        if run.digest != order.digest:
            raise AgentRefusal("run-conflict", "this run id was used for another request")
        return Started(created=False, run=run)

    async def get(self, run_id: str) -> RunStatus:
        """The run as it is now, with the present end of its output."""
        answer = await self._ask("status", run_id=run_id)
        if isinstance(answer, PastRuns):
            return self._past_status(answer, run_id)
        return wire.structure(answer["run"], RunStatus)

    async def list(self) -> list[RunStatus]:
        """All runs, in no order. The shim remembers the latest, the disk has them all."""
        answer = await self._ask("list")
        if isinstance(answer, PastRuns):
            return await trio.to_thread.run_sync(answer.list, abandon_on_cancel=True)
        recent = [wire.structure(run, RunStatus) for run in answer["runs"]]
        if len(recent) < _LISTED:
            return recent
        past = PastRuns(self._root, "", 0.0)
        stored = await trio.to_thread.run_sync(past.list, abandon_on_cancel=True)
        return list({run.run_id: run for run in (*stored, *recent)}.values())

    async def delete(self, run_id: str) -> None:
        """Delete the output of a run that has ended; its id stays used as long as the kernel lives."""
        answer = await self._ask("delete", run_id=run_id)
        if isinstance(answer, PastRuns):
            answer.delete(run_id)
        self._statuses.pop(run_id, None)
        self._feeds.pop(run_id, None)

    async def interrupt(self, run_id: str | None) -> RunStatus | None:
        """Interrupt this run, or the one that is running, if any. One that has ended stays as it is."""
        answer = await self._ask("interrupt", run_id=run_id)
        if isinstance(answer, PastRuns):
            return None if run_id is None else self._past_status(answer, run_id)
        return None if answer["run"] is None else wire.structure(answer["run"], RunStatus)

    async def interrupt_unless_read(self, run_id: str, after: float) -> None:
        """Interrupt the run in *after* seconds unless it has ended or somebody reads it by then."""
        known = self._statuses.get(run_id)
        if known is not None and known.ended:
            return
        self._abandoned[run_id] = read = trio.Event()
        with trio.move_on_after(after) as scope:
            await read.wait()
        if self._abandoned.get(run_id) is read:
            del self._abandoned[run_id]
        feed = self._feeds.get(run_id)
        if scope.cancelled_caught and not (feed is not None and feed.readers):
            with suppress(AgentRefusal):  # it may never have begun
                await self.interrupt(run_id)

    async def answer(self, run_id: str, offset: int | None, text: str | None) -> RunStatus:
        """Answer the prompt at *offset* (None: whichever waits); *text* None is the end of all input."""
        answer = await self._ask("input", run_id=run_id, offset=offset, text=text)
        if isinstance(answer, PastRuns):
            self._past_status(answer, run_id)
            raise AgentRefusal("no-prompt", "the run has ended")
        return wire.structure(answer["run"], RunStatus)

    async def type(self, run_id: str, writer: str, offset: int | None, data: bytes) -> int:
        """Type into a terminal; how many bytes of this writer it has taken in all."""
        text = b64encode(data).decode()
        answer = await self._ask("type", run_id=run_id, writer=writer, offset=offset, data=text)
        if isinstance(answer, PastRuns):
            self._past_status(answer, run_id)
            raise AgentRefusal("no-terminal", "the session has ended")
        return int(answer["taken"])

    async def resize(self, run_id: str, rows: int, columns: int) -> None:
        """Give a terminal another size."""
        answer = await self._ask("resize", run_id=run_id, rows=rows, columns=columns)
        if isinstance(answer, PastRuns):
            self._past_status(answer, run_id)
            raise AgentRefusal("no-terminal", "the session has ended")

    async def complete(self, code: str, cursor: int) -> Sequence[str]:
        """How the word before *cursor* (in characters) may go on; nothing while the interpreter is busy."""
        answer = await self._ask("complete", code=code, cursor=cursor)
        return [] if isinstance(answer, PastRuns) else [str(match) for match in answer["matches"]]

    async def read(self, run_id: str, offset: int, max_bytes: int, wait: float) -> Chunk:
        """Output from *offset*; waits at most *wait* seconds for some or for the end of the run."""
        if offset < 0:
            raise AgentRefusal("bad-request", "an offset is zero or more")
        with self._feed(await self._known(run_id)) as feed:
            return await feed.read(offset, max_bytes, wait)

    async def poll(self, run_id: str, wait: float, max_bytes: int) -> Chunk:
        """What follows the run's legacy cursor, which moves on; waits up to *wait* s for the end of the run.

        Does not wait when there is a full chunk, when a step has ended, or when the run asks for input. What
        is handed out ends after the record of a step's end. One poll at a time.
        """
        size = max(1, min(max_bytes, MAX_CHUNK))
        with self._feed(await self._known(run_id)) as feed:
            async with feed.turn:
                cursor = await self._cursor(run_id)
                with trio.move_on_after(wait):
                    await feed.wait(past=cursor + size - 1, or_event_past=cursor)
                chunk = _up_to_step(feed.chunk(cursor, size))
                if chunk.next_offset != cursor:
                    await self._cursor(run_id, expected=cursor, advance=chunk.next_offset)
                return chunk

    # -- within

    async def _ask(self, op: str, **arguments: Any) -> dict[str, Any] | PastRuns:
        """The shim's answer, or, when it is gone, what it left."""
        while self._past is None:
            await self._answerable.wait()
            if (link := self._link) is None:
                continue
            try:
                return await link.request(op, **arguments)
            except ShimRefusal as refusal:
                raise AgentRefusal(_CODES.get(refusal.code, "bad-request"), refusal.message) from None
            except ShimSilent as error:
                raise AgentRefusal("kernel-silent", str(error)) from None
            except ShimGone:
                self.detach(link)
        return self._past

    async def _known(self, run_id: str) -> RunStatus:
        """The run's state as last told; its end of output may be behind."""
        return self._statuses.get(run_id) or await self.get(run_id)

    def _past_status(self, past: PastRuns, run_id: str) -> RunStatus:
        run = self._statuses.get(run_id) or past.status(run_id)
        if run is None:
            raise AgentRefusal("no-such-run", f"no run {run_id} in this session")
        _remember(self._statuses, run_id, run)
        return run

    async def _cursor(self, run_id: str, expected: int | None = None, advance: int | None = None) -> int:
        answer = await self._ask("cursor", run_id=run_id, expected=expected, advance=advance)
        if not isinstance(answer, PastRuns):
            cursor = int(answer["cursor"])
        else:  # the shim's is gone with it; this is the last that it told
            cursor = self._cursors.get(run_id, 0) if advance is None else advance
        _remember(self._cursors, run_id, cursor)
        return cursor

    async def _watch(self, run_id: str, offset: int, refused: Callable[[], None]) -> None:
        if self._link is None:
            raise ShimGone("the kernel has ended")
        await self._link.watch(run_id, offset, refused)

    @contextmanager
    def _feed(self, run: RunStatus) -> Iterator[RunFeed]:
        """The feed of this run, shared by all who read it at the same time."""
        if (read := self._abandoned.pop(run.run_id, None)) is not None:
            read.set()
        feed = self._feeds.pop(run.run_id, None)
        if feed is None:
            watched = run.run_id in self._watched
            self._watched.discard(run.run_id)
            feed = RunFeed(run_folder(self._root, run.run_id), run, self._watch, watched=watched)
        self._feeds[run.run_id] = feed
        feed.readers += 1
        try:
            yield feed
        finally:
            feed.readers -= 1
            if not feed.readers:
                feed.rest()
                self._drop_idle_feeds()

    def _drop_idle_feeds(self) -> None:
        idle = [run_id for run_id, feed in self._feeds.items() if not feed.readers]
        for run_id in idle[:-_IDLE_FEEDS]:
            del self._feeds[run_id]


def _up_to_step(chunk: Chunk) -> Chunk:
    """The chunk, cut after the first end of a step."""
    for index, record in enumerate(chunk.records):
        if record.stream == STEP and record.data.endswith(b"\n"):
            return attrs.evolve(chunk, records=chunk.records[: index + 1], next_offset=record.end)
    return chunk


def _only_ended(statuses: OrderedDict[str, RunStatus]) -> OrderedDict[str, RunStatus]:
    return OrderedDict((run_id, run) for run_id, run in statuses.items() if run.ended)


def _remember(known: OrderedDict[str, V], key: str, value: V) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > _REMEMBERED:
        known.popitem(last=False)
