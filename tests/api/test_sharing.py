"""Readers of one run in one process: one stream for those at the same place, every byte to each."""

import json
from contextlib import aclosing, asynccontextmanager

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_mgr.api import sharing
from backendai_mgr.api.sharing import Follower, SharedRuns
from backendai_mgr.domain.errors import Unavailable
from backendai_mgr.domain.status import RunState
from backendai_mgr.wire.records import GAP, STDOUT, Record
from backendai_mgr.wire.rpc import RunStatus

KEY = ("session", "run")
STATUS = RunStatus(
    run_id="r", incarnation=1, digest="d", mode="query", state=RunState.FINISHED, exit_code=3, queued_at=1.0
)


class Source:
    """A run's output that streams read; ``streams`` are open, ``opened`` were."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.end = 0
        self.ended = False
        self.failure: Exception | None = None
        self.streams = self.opened = 0
        self._changed = trio.Event()

    def write(self, data: bytes, gap: int = 0) -> None:
        self.records.append(Record(self.end, 0, GAP if gap else STDOUT, data, gap))
        self.end = self.records[-1].end
        self.tell()

    def tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @asynccontextmanager
    async def open(self, offset: int):
        self.streams += 1
        self.opened += 1
        try:
            async with aclosing(self._items(offset)) as items:
                yield items
        finally:
            self.streams -= 1

    async def _items(self, offset: int):
        while True:
            await trio.lowlevel.checkpoint()
            for record in self.records:
                if record.end > offset:
                    skip = max(0, offset - record.offset)
                    piece = attrs.evolve(
                        record,
                        offset=record.offset + skip,
                        data=record.data[skip:],
                        gap=max(0, record.gap - skip),
                    )
                    offset = record.end
                    yield piece
                    break
            else:
                if self.failure is not None:
                    raise self.failure
                if self.ended:
                    yield attrs.evolve(STATUS, end_offset=self.end)
                    return
                await self._changed.wait()


class Reader:
    """A follower with its leading task, and what it got."""

    def __init__(self, shared: SharedRuns, source: Source, offset: int = 0) -> None:
        self.follower = Follower(shared, KEY, offset, source.open)
        self.begin = self.next = offset
        self.data = bytearray()
        self.frames: list[sharing.Frame] = []
        self.ended: RunStatus | None = None
        self.scope = trio.CancelScope()

    async def live(self, task_status=trio.TASK_STATUS_IGNORED) -> None:
        with self.scope, self.follower:
            task_status.started()
            await self.follower.lead()

    async def take(self) -> None:
        frame = await self.follower.next()
        assert frame.start == self.next
        for record in frame.records:
            assert record.offset == self.next
            self.data += record.data or b"." * record.gap
            self.next = record.end
        assert frame.end == self.next
        assert json.loads(frame.text)["next_offset"] == self.next
        self.frames.append(frame)
        self.ended = frame.ended

    async def take_to(self, offset: int) -> None:
        with trio.fail_after(10):
            while self.next < offset:
                await self.take()


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def shared() -> SharedRuns:
    return SharedRuns()


@pytest.fixture
def join(shared, source, nursery):
    """Makes readers that live."""

    async def join(offset: int = 0) -> Reader:
        reader = Reader(shared, source, offset)
        await nursery.start(reader.live)
        return reader

    return join


async def test_readers_of_one_place_share_a_stream_and_its_frames(source, join):
    readers = [await join() for _ in range(5)]
    for number in range(3):
        async with trio.open_nursery() as nursery:
            for reader in readers:
                nursery.start_soon(reader.take)
            await trio.testing.wait_all_tasks_blocked()
            source.write(b"%d" % number)
    assert {bytes(reader.data) for reader in readers} == {b"012"}
    assert source.opened == 1
    for frames in zip(*(reader.frames for reader in readers), strict=True):
        assert len({id(frame) for frame in frames}) == 1


async def test_another_one_takes_over_when_the_leader_leaves(source, join):
    first, second, third = [await join() for _ in range(3)]
    source.write(b"one")
    for reader in (first, second, third):
        await reader.take()
    async with trio.open_nursery() as nursery:
        for reader in (second, third):
            nursery.start_soon(reader.take)
        await trio.testing.wait_all_tasks_blocked()
        first.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert source.streams == 1
        source.write("zwei ä".encode())
    assert [bytes(reader.data).decode() for reader in (second, third)] == ["onezwei ä"] * 2
    assert source.opened == 2


async def test_who_falls_behind_reads_alone_and_comes_back(source, join, monkeypatch):
    monkeypatch.setattr(sharing, "WINDOW_BYTES", 100)
    fast, other, slow = [await join() for _ in range(3)]
    source.write(b"x" * 50)
    for reader in (fast, other, slow):
        await reader.take()
    for _ in range(10):
        source.write(b"y" * 50)
        await fast.take()
        await other.take()
    assert source.streams == 1, "who stands still needs none"
    await slow.take()
    assert source.streams == 2
    await slow.take_to(source.end)
    async with trio.open_nursery() as nursery:
        for reader in (fast, other, slow):
            nursery.start_soon(reader.take)
        await trio.testing.wait_all_tasks_blocked()
        assert source.streams == 1
        source.write(b"z")
    assert slow.data == fast.data == b"x" * 50 + b"y" * 500 + b"z"


async def test_a_reader_may_begin_anywhere_in_a_frame(source, join):
    source.write("aß€".encode())
    source.write(b"", gap=10)
    source.write(b"end")
    readers = [await join(), await join()]
    whole = "aß€".encode() + b"." * 10 + b"end"
    for reader in readers:
        await reader.take_to(len(whole))
    for offset in range(len(whole)):
        late = await join(offset)
        await late.take_to(len(whole))
        assert late.data == whole[offset:]


async def test_a_reader_that_gives_up_waiting_loses_nothing(source, join):
    reader = await join()
    source.write(b"one")
    await trio.testing.wait_all_tasks_blocked()
    with trio.move_on_after(0):
        await reader.take()
    await reader.take_to(3)
    with trio.CancelScope() as scope:
        scope.cancel()
        await reader.take()
    source.write(b"two")
    await reader.take_to(6)
    assert reader.data == b"onetwo"


async def test_the_end_is_told_to_all_and_to_who_comes_later(source, join):
    source.write(b"all")
    source.ended = True
    for reader in [await join() for _ in range(3)] + [await join(3)]:
        with trio.fail_after(10):
            while reader.ended is None:
                await reader.take()
        assert (reader.ended.exit_code, reader.next) == (3, 3)


async def test_a_failure_is_told_to_all_who_wait_and_the_next_one_tries_again(source, join):
    readers = [await join() for _ in range(3)]
    refused = []

    async def refusal(reader: Reader) -> None:
        with pytest.raises(Unavailable):
            await reader.take()
        refused.append(reader)

    async with trio.open_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(refusal, reader)
        await trio.testing.wait_all_tasks_blocked()
        source.failure = Unavailable("The agent is gone.")
        source.tell()
    assert (len(refused), source.opened, source.streams) == (3, 1, 0)
    source.failure = None
    source.write(b"back")
    for reader in [await join(), readers[1]]:
        await reader.take()
        assert reader.data == b"back"


async def test_nothing_is_kept_when_all_have_gone(source, shared, join):
    readers = [await join(offset) for offset in (0, 0, 1)]
    source.write(b"abc")
    for reader in readers:
        await reader.take()
        reader.scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert (source.streams, shared._windows) == (0, {})


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.text("aß€", min_size=1, max_size=40)),
        st.tuples(st.just("take"), st.integers(0, 5)),
        st.tuples(st.just("join"), st.integers(0, 400)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([1, 60, 1000]))
def test_whoever_comes_and_goes_each_has_its_bytes(steps, window_bytes):
    async def main() -> None:
        source, shared = Source(), SharedRuns()
        readers: list[Reader] = []
        async with trio.open_nursery() as nursery:

            async def join(offset: int) -> None:
                readers.append(Reader(shared, source, offset))
                await nursery.start(readers[-1].live)

            await join(0)
            await join(0)
            for step, value in steps:
                if step == "write":
                    source.write(value.encode())
                elif step == "join" and len(readers) < 6:
                    await join(min(value, source.end))
                elif step == "take" and value < len(readers):
                    async with trio.open_nursery() as taking:
                        taking.start_soon(readers[value].take)
                        await trio.testing.wait_all_tasks_blocked()
                        taking.cancel_scope.cancel()
                elif step == "leave" and value < len(readers):
                    readers.pop(value).scope.cancel()
            source.ended = True
            source.tell()
            whole = b"".join(record.data for record in source.records)
            for reader in readers:
                with trio.fail_after(10):
                    while reader.ended is None:
                        await reader.take()
                assert reader.data == whole[reader.begin :]
            nursery.cancel_scope.cancel()
        assert (source.streams, shared._windows) == (0, {})

    before = sharing.WINDOW_BYTES
    sharing.WINDOW_BYTES = window_bytes
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.001))
    finally:
        sharing.WINDOW_BYTES = before
