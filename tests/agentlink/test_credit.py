"""Credit arithmetic of both ends without a network: the other end is a list of messages."""

from uuid import UUID

import pytest
import trio
import trio.testing

from backendai_mgr.agent.linkstreams import MAX_STREAMS
from backendai_mgr.agent.linkstreams import Streams as AgentStreams
from backendai_mgr.agentlink.streams import Streams
from backendai_mgr.runtime.zmqsocket import PeerGone
from backendai_mgr.wire import link
from backendai_mgr.wire.callosum import AgentError
from backendai_mgr.wire.records import Record
from backendai_mgr.wire.rpc import AgentUnreachable
from tests.fakes.agent import FakeAgent

KERNEL = UUID(int=1)
PEER = b"peer"


class Wire:
    """Takes what a side sends, or refuses it while ``up`` is false."""

    def __init__(self) -> None:
        self.sent: list[link.LinkMessage] = []
        self.up = True

    def try_send(self, frames) -> bool:
        if self.up:
            self.sent.append(link.decode(frames))
        return self.up

    def send(self, peer: bytes, frames) -> None:
        if not self.try_send(frames):
            raise PeerGone

    def flush(self) -> list[link.LinkMessage]:
        sent, self.sent = self.sent, []
        return sent


@pytest.fixture
def wire() -> Wire:
    return Wire()


# ---------------------------------------------------------------- the manager's end


@pytest.fixture
def streams(wire) -> Streams:
    return Streams(wire.try_send)


def data(sid: int, offset: int, size: int) -> link.Data:
    return link.Data(sid=sid, records=[Record(offset, 0, "stdout", bytes(size))], next=offset + size)


def lost() -> AgentUnreachable:
    return AgentUnreachable("gone")


async def test_a_stream_opens_with_its_share_of_credit(streams, wire):
    streams.start(KERNEL, "r", 7)
    assert wire.flush() == [
        link.Open(sid=1, kernel_id=KERNEL, run_id="r", offset=7, credit=link.STREAM_CREDIT)
    ]


async def test_credit_comes_back_when_the_reader_takes_records_not_before(streams, wire):
    stream = streams.start(KERNEL, "r", 0)
    wire.flush()
    half = link.STREAM_CREDIT // 2
    streams.on_message(data(1, 0, half))
    assert wire.flush() == []
    await anext(stream)
    assert wire.flush() == [link.Credit(sid=1, bytes=half + link.RECORD_COST)]
    assert streams.held == link.STREAM_CREDIT


async def test_little_is_given_back_together(streams, wire):
    stream = streams.start(KERNEL, "r", 0)
    wire.flush()
    for index in range(100):
        streams.on_message(data(1, index, 1))
        await anext(stream)
    assert wire.flush() == []
    assert streams.held == link.STREAM_CREDIT - 100 * (1 + link.RECORD_COST)


async def test_all_streams_together_never_hold_more_than_the_link_has(streams, wire):
    opened = []
    for index in range(50):
        opened.append(streams.start(KERNEL, f"r{index}", 0))
        assert streams.held <= link.LINK_CREDIT
    assert opened[-1].sid is not None
    assert opened[-1].held == link.LINK_CREDIT // 50


async def test_a_reader_that_lost_its_buffer_reads_it_again(streams, wire):
    first = streams.start(KERNEL, "slow", 100)
    streams.on_message(data(1, 100, 10))
    streams.on_message(data(1, 110, 10))
    assert (await anext(first)).offset == 100
    others = [streams.start(KERNEL, "r", 0) for _ in range(4)]
    assert link.Close(sid=1) in wire.flush(), "it held more than its share"
    assert first.held == 0
    assert [other.held > 0 for other in others] == [True] * 4
    async with trio.open_nursery() as nursery:
        got = []

        async def read() -> None:
            got.append(await anext(first))

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        reopened = next(m for m in wire.flush() if isinstance(m, link.Open) and m.run_id == "slow")
        assert reopened.offset == 110
        streams.on_message(data(reopened.sid, 110, 10))
    assert got == [Record(110, 0, "stdout", bytes(10))]


async def test_what_comes_for_a_closed_stream_is_told_to_stop(streams, wire):
    streams.stop(streams.start(KERNEL, "r", 0))
    assert wire.flush()[-1] == link.Close(sid=1)
    streams.on_message(data(1, 0, 10))
    assert wire.flush() == [link.Close(sid=1)]
    streams.on_message(link.Failed(sid=1, code="x", message=""))
    assert wire.flush() == []
    assert streams.held == 0


async def test_an_agent_that_overdraws_its_credit_is_an_error_after_what_was_paid_for(streams, wire):
    stream = streams.start(KERNEL, "r", 0)
    streams.on_message(data(1, 0, 10))
    streams.on_message(data(1, 10, link.STREAM_CREDIT))
    assert wire.flush()[-1] == link.Close(sid=1)
    assert (await anext(stream)).offset == 0
    with pytest.raises(AgentError, match="credit"):
        await anext(stream)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_what_could_not_be_opened_is_opened_by_a_later_tick(streams, wire):
    wire.up = False
    stream = streams.start(KERNEL, "r", 5)
    assert streams.held == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(anext, stream)
        await trio.testing.wait_all_tasks_blocked()
        now = trio.current_time()
        streams.tick(now, heard=now, silence=10, lost=lost)
        wire.up = True
        streams.tick(now, heard=now, silence=10, lost=lost)
        opened = wire.flush()[0]
        assert (opened.offset, opened.credit) == (5, link.STREAM_CREDIT)
        streams.on_message(data(opened.sid, 5, 1))


async def test_a_stream_that_the_agent_forgot_is_opened_again_where_it_was(streams, wire):
    stream = streams.start(KERNEL, "r", 0)
    streams.on_message(data(1, 0, 10))
    wire.flush()
    streams.tick(0, heard=0, silence=10, lost=lost)
    assert wire.flush() == [link.Credit(sid=1, bytes=0)]
    streams.on_message(link.Failed(sid=1, code=link.NO_SUCH_STREAM, message=""))
    assert (await anext(stream)).end == 10
    async with trio.open_nursery() as nursery:
        nursery.start_soon(anext, stream)
        await trio.testing.wait_all_tasks_blocked()
        (opened,) = wire.flush()
        assert (opened.sid, opened.offset, opened.credit) == (2, 10, link.STREAM_CREDIT)
        streams.on_message(data(2, 10, 1))


async def test_credit_that_cannot_be_sent_loses_no_record(streams, wire):
    stream = streams.start(KERNEL, "r", 0)
    streams.on_message(data(1, 0, link.STREAM_CREDIT // 2))
    streams.on_message(data(1, link.STREAM_CREDIT // 2, 10))
    wire.up = False
    assert (await anext(stream)).offset == 0
    assert stream.sid is None
    assert (await anext(stream)).data == bytes(10)
    assert streams.held == 0


# ---------------------------------------------------------------- the agent's end


async def serve(agent, wire, *messages, peer_timeout=0.2) -> list[link.LinkMessage]:
    """What the agent sends for *messages* until all its streams have ended by themselves."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            streams = AgentStreams(agent, wire.send, nursery, peer_timeout=peer_timeout)
            for message in messages:
                streams.on_message(PEER, message)
        assert streams._streams == {}
        assert streams._heard == {}
    return wire.flush()


def opening(credit: int, sid: int = 1) -> link.Open:
    return link.Open(sid=sid, kernel_id=KERNEL, run_id="r", offset=0, credit=credit)


@pytest.fixture
def agent() -> FakeAgent:
    agent = FakeAgent()
    run = agent.add_run(KERNEL, "r")
    run.write(bytes(1000))
    run.finish()
    return agent


async def test_the_agent_sends_what_credit_pays_for_and_waits_for_more(agent, wire):
    sent = await serve(agent, wire, opening(500))
    assert [message.op for message in sent] == ["data"], "then the silent peer was given up"
    assert sum(map(link.cost, sent[0].records)) == 500
    sent = await serve(agent, wire, opening(500), link.Credit(sid=1, bytes=700))
    assert [message.op for message in sent] == ["data", "end"]


async def test_credit_that_pays_for_no_byte_is_kept_until_more_comes(agent, wire):
    assert await serve(agent, wire, opening(link.RECORD_COST)) == []
    sent = await serve(agent, wire, opening(link.RECORD_COST), link.Credit(sid=1, bytes=1))
    assert sent == [link.Data(sid=1, records=[agent.runs[KERNEL, "r"].read(0, 1)[0]], next=1)]


async def test_an_unfinished_stream_of_a_silent_peer_is_given_up(agent, wire):
    agent.add_run(KERNEL, "r").write(b"abc")
    sent = await serve(agent, wire, opening(1000))
    assert [message.op for message in sent] == ["data"]


async def test_a_stream_whose_peer_has_gone_ends(agent, wire):
    wire.up = False
    assert await serve(agent, wire, opening(1000), peer_timeout=60) == []


async def test_asking_for_an_unknown_stream_says_so_and_closing_one_is_fine(agent, wire):
    sent = await serve(agent, wire, link.Credit(sid=9, bytes=0), link.Close(sid=9))
    assert sent == [link.Failed(sid=9, code=link.NO_SUCH_STREAM, message="")]


async def test_closing_ends_a_stream(agent, wire):
    agent.add_run(KERNEL, "r")
    assert await serve(agent, wire, opening(1000), link.Close(sid=1), peer_timeout=60) == []


async def test_more_streams_than_allowed_are_refused(agent, wire):
    openings = [opening(0, sid) for sid in range(MAX_STREAMS + 1)]
    (refused,) = await serve(agent, wire, *openings)
    assert (refused.sid, refused.code) == (MAX_STREAMS, link.INTERNAL)
