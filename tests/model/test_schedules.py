"""Whatever happens in whichever order: a run starts once, each reader has a prefix of what was written."""

import tempfile
from contextlib import ExitStack
from pathlib import Path

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from backendai_mgr.agentlink.streams import Stream
from backendai_mgr.wire.records import Record
from backendai_mgr.wire.rpc import AgentRefusal, RunOrder, RunSpec, RunStatus

from .world import KERNEL, Disk, Loop, World, next_item, small_credit

RUNS = ("a", "a", "a", "b")


@attrs.define(eq=False)
class Reader:
    """Reads one run, and takes up again where it was when its connection is gone."""

    run_id: str
    next: int
    stream: Stream | None = None
    end: RunStatus | None = None


class Schedules(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._stack.enter_context(small_credit())
        self.disk = Disk()
        self._stack.enter_context(self.disk.installed())
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm"))
        self.loop = Loop()
        self._stack.callback(self.loop.close)
        self.readers: list[Reader] = []
        self.bodies: dict[str, str] = {}
        self.world = self.loop.do(self._make, Path(folder))

    async def _make(self, folder: Path) -> World:
        world = World(self.loop, folder)
        await world.begin()
        return world

    @initialize(sizes=st.lists(st.integers(1, 250), max_size=6))
    def a_run_that_is_read(self, sizes: list[int]) -> None:
        self.start("a", "same")
        for _ in range(3):
            self.read("a", 0)
        if sizes:
            self.write(sizes, 0)

    # -- runs

    @rule(run_id=st.sampled_from(RUNS), body=st.sampled_from(["same", "same", "other"]))
    def start(self, run_id: str, body: str) -> None:
        order = RunOrder.of(self.world.shim.incarnation, RunSpec(code=body))
        if self.disk.full and run_id not in self.bodies:
            return  # there may be no room to record it
        if self.bodies.setdefault(run_id, body) == body:
            self.loop.do(self.world.agent.start_run, KERNEL, run_id, order)
        else:
            with pytest.raises(AgentRefusal, match="conflict"):
                self.loop.do(self.world.agent.start_run, KERNEL, run_id, order)

    @rule(sizes=st.lists(st.integers(1, 250), min_size=1, max_size=6), letter=st.integers(0, 255))
    def write(self, sizes: list[int], letter: int) -> None:
        async def step() -> None:
            for size in sizes:
                self.world.shim.write(bytes((letter + number) % 256 for number in range(size)))

        self.loop.do(step)

    @rule(exit_code=st.integers(0, 3))
    def finish(self, exit_code: int) -> None:
        async def step() -> None:
            self.world.shim.finish(exit_code)

        self.loop.do(step)

    @rule(run_id=st.sampled_from(RUNS))
    def interrupt(self, run_id: str) -> None:
        async def step() -> None:
            self.world.shim.interrupt(run_id)

        self.loop.do(step)

    @rule(full=st.booleans())
    def fill_disk(self, full: bool) -> None:
        self.disk.full = full

    # -- readers

    @precondition(lambda self: len(self.readers) < 6)
    @rule(run_id=st.sampled_from(RUNS), share=st.sampled_from([0, 0, 0.3, 1]))
    def read(self, run_id: str, share: float) -> None:
        truth = self.world.shim.truth.get(run_id)
        end = 0 if truth is None else len(truth.written)
        self.readers.append(Reader(run_id, int(share * end)))
        self._open(self.readers[-1])

    def _open(self, reader: Reader) -> None:
        async def step() -> None:
            reader.stream = self.world.streams.start(KERNEL, reader.run_id, reader.next)

        self.loop.do(step)

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), count=st.integers(1, 5), flow=st.sampled_from([True, True, False]))
    def take(self, data: st.DataObject, count: int, flow: bool) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        for _ in range(count):
            if not self._take(reader):
                break
            if flow:
                self.flow()

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """A client's connection is gone; it comes back when it takes again."""
        self._drop(data.draw(st.sampled_from(self.readers)))

    def _drop(self, reader: Reader) -> None:
        async def step() -> None:
            if reader.stream is not None:
                self.world.streams.stop(reader.stream)
                reader.stream = None

        self.loop.do(step)

    def _take(self, reader: Reader) -> bool:
        """Whether there was something; it has to be what was written there."""
        if reader.end is not None:
            return False

        if reader.stream is None:
            self._open(reader)
        item = self.loop.do(next_item, reader.stream)
        match item:
            case None:
                return False
            case Record():
                self._check(reader, item)
                reader.next = item.end
                return True
            case RunStatus():
                reader.end = item
                assert reader.next == item.end_offset, "it had all before it was told of the end"
                self._drop(reader)
            case AgentRefusal(code="no-such-run"):  # it came before the run
                self._drop(reader)
            case AgentRefusal(code="offset-past-end"):
                # What was counted and had not reached a full disk is not there after the shim's death.
                self.readers.remove(reader)
                self._drop(reader)
                assert self.world.shim.find(reader.run_id).state == "lost"
            case _:
                raise AssertionError(item)
        return False

    def _check(self, reader: Reader, record: Record) -> None:
        truth = self.world.shim.truth[reader.run_id]
        assert record.offset == reader.next, "in order, nothing twice"
        assert record.end <= len(truth.written)
        if record.gap:
            assert truth.missing.issuperset(range(record.offset, record.end)), "nothing is missing there"
        else:
            assert record.data == truth.written[record.offset : record.end]

    # -- the way between

    @rule(count=st.integers(1, 6), to_agent=st.booleans())
    def deliver(self, count: int, to_agent: bool) -> None:
        async def step() -> None:
            await self.world.deliver(count, to_agent=to_agent)

        self.loop.do(step)

    @rule()
    def flow(self) -> None:
        self.loop.do(self.world.flow)

    @rule()
    def tick(self) -> None:
        self.loop.do(self.world.tick)
        self.flow()

    @rule(up=st.sampled_from([True, True, True, False]))
    def break_link(self, up: bool) -> None:
        async def step() -> None:
            await self.world.break_link(up=up)

        self.loop.do(step)

    @rule()
    def restart_agent(self) -> None:
        self.loop.do(self.world.restart_agent)

    @rule(torn=st.binary(max_size=40))
    def kill_shim(self, torn: bytes) -> None:
        self.loop.do(self.world.kill_shim, torn)

    # -- at last

    def teardown(self) -> None:
        try:
            self._read_to_the_end()
        finally:
            self._stack.close()

    def _read_to_the_end(self) -> None:
        """When all faults are over each reader gets all that there is, and every run ended once."""
        self.disk.full = False
        for reader in list(self.readers):
            idle = 0
            while idle < 3 and reader in self.readers:  # asked, opened, delivered
                idle = 0 if self._take(reader) else idle + 1
                self.loop.do(self.world.settle)
            run = self.world.shim.arbiter.find(reader.run_id)
            if run is not None and reader in self.readers:
                assert (reader.end is not None) == run.state.ended
                if not run.state.ended and reader.run_id in self.world.shim.truth:
                    assert reader.next >= self.world.shim.truth[reader.run_id].there
        for truth in self.world.shim.truth.values():
            assert truth.starts == 1


Schedules.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestSchedules = Schedules.TestCase
