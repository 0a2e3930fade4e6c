"""The way of output from a run's log to its readers, made of the real parts, in one process and step by step.

Arbiter, run store and run log stand for a shim; feed and stream server for an agent; the manager's streams
for a worker. Between them are lists of frames instead of a network. A test decides what happens next: what is
delivered, what dies, what is full. After each step all tasks have gone as far as they can.
"""

import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import attrs
import trio
import trio.testing

from backendai_mgr.agent.handler import Chunk
from backendai_mgr.agent.linkstreams import Streams as AgentStreams
from backendai_mgr.agent.runfeed import RunFeed
from backendai_mgr.agentlink.streams import Stream, Streams
from backendai_mgr.runtime.zmqsocket import PeerGone
from backendai_mgr.shim.arbiter import Arbiter, Effect, Ended, Send
from backendai_mgr.shim.run import Instant, Order, Refused, Run
from backendai_mgr.shim.runlog import RunLogWriter
from backendai_mgr.shim.runstore import RunStore
from backendai_mgr.wire import link
from backendai_mgr.wire.codec import wire
from backendai_mgr.wire.rpc import AgentRefusal, RunOrder, RunStatus

KERNEL = UUID(int=1)
SEGMENT_BYTES, CAP_BYTES = 400, 2000
#: Small enough that readers compete for it.
CREDITS = {"STREAM_CREDIT": 700, "LINK_CREDIT": 1600, "MAX_DATA": 300}
T = TypeVar("T")


class Loop:
    """Trio in a thread of its own, for tests that are not asynchronous."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self.nursery:
            self._ready.set()
            await trio.sleep_forever()

    def do(self, step: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Carry out a step, and let everything that follows from it happen."""

        async def whole() -> T:
            result = await step(*arguments)
            await trio.testing.wait_all_tasks_blocked()
            return result

        return trio.from_thread.run(whole, trio_token=self._token)

    def close(self) -> None:
        trio.from_thread.run_sync(self.nursery.cancel_scope.cancel, trio_token=self._token)
        self._thread.join()


@attrs.define
class Truth:
    """What is known of a run beside the system: what its program wrote, and what may be missing of it."""

    starts: int = 0
    written: bytearray = attrs.field(factory=bytearray)
    missing: set[int] = attrs.field(factory=set)

    @property
    def there(self) -> int:
        """The end of what has reached the disk."""
        end = len(self.written)
        while end - 1 in self.missing:
            end -= 1
        return end


class Shim:
    """One kernel's shim: dies and is followed by another one over the same folders."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._now = 0.0
        self.truth: dict[str, Truth] = {}
        self.on_run: Callable[[RunStatus], None] = lambda run: None
        self.on_more: Callable[[str, int, bool], None] = lambda *_: None
        self.incarnation = 0
        self.begin()

    def begin(self) -> list[RunStatus]:
        """A new life; the runs of the past."""
        self.incarnation += 1
        self.store = RunStore(str(self._scratch), log_bytes=CAP_BYTES)
        past = self.store.adopt("shim-died", self._now)
        self.arbiter = Arbiter(self.incarnation, past=past)
        self.watches: dict[str, int] = {}
        self._log: RunLogWriter | None = None
        self._logged: Run | None = None
        self._apply(self.arbiter.ready(self._instant()))
        return [wire.structure(status, RunStatus) for status in past]

    def die(self, torn: bytes) -> list[RunStatus]:
        """SIGKILL, and the next life. *torn*: what of a last record had reached the file."""
        current = self.arbiter.current
        if self._log is not None and current is not None:
            self._log._leave()
            newest = max(Path(self.store.folder(current.run_id)).glob("*.seg"), default=None)
            if newest is not None and torn:
                with newest.open("ab") as file:
                    file.write(torn)
        return self.begin()

    def start(self, run_id: str, order: RunOrder) -> tuple[bool, Run]:
        """As `shim.kernel.Kernel.start_run`."""
        if self.arbiter.find(run_id) is None and (status := self.store.load(run_id)) is not None:
            self.arbiter.recall(status)
        wanted = Order(run_id, order.incarnation, order.digest, order.spec.mode, order.spec.code, None)
        if (known := self.arbiter.consider(wanted)) is not None:
            return False, known
        try:
            self.store.create(wanted, self._now)
        except OSError as error:
            raise Refused("no-room", str(error)) from error
        run, effects = self.arbiter.admit(wanted, self._instant())
        self._apply(effects)
        return True, run

    def find(self, run_id: str) -> RunStatus:
        run = self.arbiter.find(run_id)
        if run is None:
            raise AgentRefusal("no-such-run", run_id)
        return wire.structure(run.status(), RunStatus)

    def write(self, data: bytes) -> None:
        """The program that runs, if any, writes."""
        run = self.arbiter.current
        if run is None:
            return
        truth = self.truth[run.run_id]
        if self._log is None:
            self._logged = run
            self._log = RunLogWriter(
                self.store.folder(run.run_id),
                fresh=True,
                segment_bytes=SEGMENT_BYTES,
                cap_bytes=CAP_BYTES,
                clock_ns=lambda: int(self._now * 1e9),
            )
        before = [*sorted(self._log._sizes), len(truth.written)]
        self._log.append("stdout", data)
        self._now += 0.06
        truth.written += data
        run.end_offset = self._log.end_offset
        assert run.end_offset == len(truth.written)
        for start, end in pairwise(before):
            if start not in self._log._sizes:
                truth.missing.update(range(start, end))
        truth.missing.update(range(run.end_offset - self._log._missing, run.end_offset))
        self._tell_more(run)

    def finish(self, exit_code: int) -> None:
        if (run := self.arbiter.current) is not None:
            self._apply(self.arbiter.done(run.number, exit_code, False, self._instant()))

    def interrupt(self, run_id: str) -> None:
        with suppress(Refused):
            self._apply(self.arbiter.interrupt(run_id, self._instant())[1])

    def watch(self, run_id: str, offset: int) -> None:
        """Armed once: told when there is output past *offset*, or at the run's end."""
        self.watches[run_id] = offset
        if (run := self.arbiter.find(run_id)) is not None:
            self._tell_more(run)

    def _tell_more(self, run: Run) -> None:
        offset = self.watches.get(run.run_id)
        if offset is not None and (run.end_offset > offset or run.state.ended):
            del self.watches[run.run_id]
            self.on_more(run.run_id, run.end_offset, run.state.ended)

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(run):
                    self.truth.setdefault(run.run_id, Truth()).starts += 1
                case Ended(run):
                    if self._log is not None and run is self._logged:
                        self._log.close()
                        self._log = self._logged = None
                    self.store.save(run.status())
                    self.on_run(wire.structure(run.status(), RunStatus))
                    self._tell_more(run)
                case _:
                    pass

    def _instant(self) -> Instant:
        return Instant(self._now, self._now)


class Agent:
    """The handler of one life of an agent."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self.feeds: dict[str, RunFeed] = {}
        shim.on_run, shim.on_more = self._on_run, self._on_more

    async def start_run(self, kernel_id: UUID, run_id: str, order: RunOrder) -> None:
        try:
            self._shim.start(run_id, order)
        except Refused as refusal:
            raise AgentRefusal(refusal.code, str(refusal)) from None

    async def read_output(
        self, kernel_id: UUID, run_id: str, *, offset: int, max_bytes: int, wait: float
    ) -> Chunk:
        run = self._shim.find(run_id)
        feed = self.feeds.get(run_id)
        if feed is None:
            feed = self.feeds[run_id] = RunFeed(Path(self._shim.store.folder(run_id)), run, self._arm)
        return await feed.read(offset, max_bytes, wait)

    def shim_died(self, past: list[RunStatus]) -> None:
        """Its connection has ended, and there is another one."""
        for run in past:
            self._on_run(run)
        for feed in self.feeds.values():
            feed.disarmed()

    async def _arm(self, run_id: str, offset: int, refused: Callable[[], None]) -> None:
        self._shim.watch(run_id, offset)

    def _on_run(self, run: RunStatus) -> None:
        if (feed := self.feeds.get(run.run_id)) is not None:
            feed.update(run)

    def _on_more(self, run_id: str, end: int, ended: bool) -> None:
        if (feed := self.feeds.get(run_id)) is not None:
            feed.advance(end, ended)


class World:
    """All of it. The methods are steps; they run in the loop."""

    def __init__(self, loop: Loop, scratch: Path) -> None:
        self._loop = loop
        self.shim = Shim(scratch)
        self._life = 0  # of the connection
        self.to_agent: list[tuple[bytes, list[bytes]]] = []
        self.to_manager: list[list[bytes]] = []
        self.up = True
        self.streams = Streams(self._from_manager)
        self._begin_agent()

    def _begin_agent(self) -> None:
        self.agent = Agent(self.shim)
        self._scope = trio.CancelScope()
        loop = self._loop

        async def live(task_status: trio.TaskStatus[None]) -> None:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._server = AgentStreams(self.agent, self._from_agent, nursery, peer_timeout=1e9)  # type: ignore[arg-type]
                    task_status.started()
                    await trio.sleep_forever()

        self._start = lambda: loop.nursery.start(live)

    async def begin(self) -> None:
        await self._start()

    def _from_manager(self, frames: list[bytes]) -> bool:
        if self.up:
            self.to_agent.append((self._peer, list(frames)))
        return self.up

    def _from_agent(self, peer: bytes, frames: list[bytes]) -> None:
        if not self.up or peer != self._peer:
            raise PeerGone
        self.to_manager.append(list(frames))

    @property
    def _peer(self) -> bytes:
        return str(self._life).encode()

    async def deliver(self, count: int, *, to_agent: bool) -> None:
        """The next messages arrive, in their order."""
        for _ in range(count):
            if to_agent and self.to_agent:
                peer, frames = self.to_agent.pop(0)
                self._server.heard(peer)
                self._server.on_message(peer, link.decode(frames))
            elif not to_agent and self.to_manager:
                self.streams.on_message(link.decode(self.to_manager.pop(0)))

    async def break_link(self, *, up: bool) -> None:
        """What is on its way is lost. Until it is *up* again nothing can be sent."""
        self.to_agent.clear()
        self.to_manager.clear()
        self._life += 1
        self.up = up

    async def tick(self) -> None:
        """What the connection does each interval."""
        now = trio.current_time()
        self.streams.tick(now, heard=now, silence=1e9, lost=_lost)

    async def restart_agent(self) -> None:
        """SIGKILL, and the next one."""
        self._scope.cancel()
        await self.break_link(up=self.up)
        self._begin_agent()
        await self.begin()

    async def kill_shim(self, torn: bytes) -> None:
        self.agent.shim_died(self.shim.die(torn))

    async def settle(self) -> None:
        """No more faults: everything is delivered."""
        self.up = True
        await self.tick()
        await self.flow()

    async def flow(self) -> None:
        """Everything is delivered, and what that brings about."""
        while self.to_agent or self.to_manager:
            await self.deliver(len(self.to_agent), to_agent=True)
            await trio.testing.wait_all_tasks_blocked()
            await self.deliver(len(self.to_manager), to_agent=False)
            await trio.testing.wait_all_tasks_blocked()


def _lost() -> Any:
    raise AssertionError("no stream is given up here")


async def next_item(stream: Stream) -> Any:
    """What a reader has next; None if it would wait."""
    got: list[Any] = []

    async def take() -> None:
        try:
            got.append(await anext(stream))
        except Exception as error:
            got.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return got[0] if got else None


class Disk:
    """Takes nothing while it is full."""

    def __init__(self) -> None:
        self.full = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        writev, open_file = os.writev, os.open

        def try_open(path: str, flags: int, *arguments: Any, **options: Any) -> int:
            if self.full and flags & os.O_CREAT and str(path).endswith(".seg"):
                raise OSError(errno.ENOSPC, "full")
            return open_file(path, flags, *arguments, **options)

        def try_writev(fd: int, parts: list[bytes]) -> int:
            if self.full:
                raise OSError(errno.ENOSPC, "full")
            return writev(fd, parts)

        os.writev, os.open = try_writev, try_open  # type: ignore[assignment]
        try:
            yield
        finally:
            os.writev, os.open = writev, open_file


@contextmanager
def small_credit() -> Iterator[None]:
    before = {name: getattr(link, name) for name in CREDITS}
    for name, value in CREDITS.items():
        setattr(link, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(link, name, value)
