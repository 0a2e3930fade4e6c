"""Output streams over TCP: complete, in order, within their credit, across restarts, slow readers and all."""

import pytest
import trio

from backendai_mgr.agentlink.links import open_links
from backendai_mgr.domain.status import RunState
from backendai_mgr.runtime.zmqsocket import open_context
from backendai_mgr.wire import callosum
from backendai_mgr.wire import link as wire
from backendai_mgr.wire.callosum import AgentError
from backendai_mgr.wire.records import Record
from backendai_mgr.wire.rpc import AgentRefusal, AgentUnreachable, RunOrder, RunSpec, RunStatus

from .conftest import AGENT, KERNEL, serving

BLOCK = bytes(range(256)) * 256


async def read_all(stream) -> tuple[bytes, RunStatus]:
    """Everything up to the end; asserts that the records follow each other without gap or overlap."""
    data, end, expected = bytearray(), None, None
    with trio.fail_after(30):
        async for item in stream:
            assert end is None, "nothing follows the status"
            if isinstance(item, RunStatus):
                end = item
                continue
            assert expected in (None, item.offset)
            expected = item.end
            data += item.data
    assert end is not None
    return bytes(data), end


async def first(stream) -> Record:
    with trio.fail_after(10):
        return await anext(aiter(stream))


async def test_an_ended_run_is_streamed_whole_and_ends_with_its_status(link, agent):
    run = agent.add_run(KERNEL, "r")
    run.write(b"out")
    run.write(b"err", "stderr")
    run.finish(3)
    async with link.stream(KERNEL, "r", offset=0) as stream:
        with trio.fail_after(10):
            items = [item async for item in stream]
    assert [(item.stream, item.data) for item in items[:2]] == [("stdout", b"out"), ("stderr", b"err")]
    assert (items[2].state, items[2].exit_code, len(items)) == (RunState.FINISHED, 3, 3)


async def test_a_stream_may_begin_in_the_middle_of_a_record(link, agent):
    run = agent.add_run(KERNEL, "r")
    run.write(b"hello")
    run.finish()
    async with link.stream(KERNEL, "r", offset=3) as stream:
        assert (await first(stream)).data == b"lo"
    async with link.stream(KERNEL, "r", offset=5) as stream:
        assert await read_all(stream) == (b"", run.status)


async def test_output_is_followed_as_it_comes(link, agent):
    run = agent.add_run(KERNEL, "r")
    async with link.stream(KERNEL, "r", offset=0) as stream:
        for word in (b"one", b"two", b"three"):
            run.write(word)
            assert (await first(stream)).data == word
        run.finish()
        assert await read_all(stream) == (b"", run.status)


async def test_a_run_is_started_with_its_stream_once_and_refused_in_it(link, agent):
    order = RunOrder.of(1, RunSpec(code="1+1"))
    async with link.stream(KERNEL, "new", offset=0, order=order) as stream:
        with trio.fail_after(10):
            while (KERNEL, "new") not in agent.runs:
                await trio.lowlevel.checkpoint()
        agent.runs[KERNEL, "new"].write(b"2")
        assert (await first(stream)).data == b"2"
    async with link.stream(KERNEL, "new", offset=0, order=order) as stream:  # attaches
        assert (await first(stream)).data == b"2"
    other = RunOrder.of(1, RunSpec(code="2+2"))
    async with link.stream(KERNEL, "new", offset=0, order=other) as stream:
        with pytest.raises(AgentRefusal, match="run-conflict"):
            await first(stream)
    huge = RunOrder.of(1, RunSpec(code="#" * callosum.MAX_BODY))
    with pytest.raises(AgentRefusal, match="bad-request"):
        async with link.stream(KERNEL, "huge", offset=0, order=huge):
            pass


async def test_what_the_agent_refuses_is_raised_by_the_iteration(link, agent):
    agent.add_run(KERNEL, "r").write(b"abc")
    for run_id, offset, code in (("unknown", 0, "no-such-run"), ("r", 4, "offset-past-end")):
        async with link.stream(KERNEL, run_id, offset=offset) as stream:
            with pytest.raises(AgentRefusal) as caught:
                await first(stream)
            assert caught.value.code == code


async def test_an_agent_that_breaks_while_reading_is_an_error_and_other_streams_go_on(link, agent):
    run = agent.add_run(KERNEL, "r")
    run.write(b"abc")
    agent.refuse_once("read_output", KeyError("surprise"))
    async with link.stream(KERNEL, "r", offset=0) as stream:
        with pytest.raises(AgentError, match="surprise"):
            await first(stream)
    async with link.stream(KERNEL, "r", offset=0) as stream:
        assert (await first(stream)).data == b"abc"


async def test_tiny_records_arrive_whole(link, agent):
    run = agent.add_run(KERNEL, "r")
    for number in range(20_000):
        run.write(b"%d" % (number % 10))
    run.finish()
    async with link.stream(KERNEL, "r", offset=0) as stream:
        data, _ = await read_all(stream)
    assert data == b"0123456789" * 2000


async def test_20_mb_to_a_slow_reader_stay_within_credit_while_reports_come(links, link, endpoint, agent):
    run = agent.add_run(KERNEL, "r")
    for _ in range(20_000_000 // len(BLOCK)):
        run.write(BLOCK)
    run.finish()
    streams = links.connection(AGENT, endpoint).streams
    taken = most_held = pauses = 0
    async with link.reports(1, "worker") as feed, link.stream(KERNEL, "r", offset=0) as stream:
        with trio.fail_after(60):
            async for item in stream:
                if isinstance(item, RunStatus):
                    break
                assert item.offset == taken
                taken = item.end
                most_held = max(most_held, streams.held)
                assert agent.read_to <= taken + wire.STREAM_CREDIT
                if taken % (4 * 1024 * 1024) < len(item.data):
                    pauses += 1  # the reader rests until the agent has reported twice
                    for _ in range(2):
                        assert await anext(aiter(feed))
                    assert agent.read_to <= taken + wire.STREAM_CREDIT
    assert taken == run.status.end_offset
    assert pauses >= 4
    assert most_held <= wire.STREAM_CREDIT
    assert streams.held == 0


async def test_stalled_readers_take_neither_more_than_the_link_has_nor_the_others_share(
    links, link, endpoint, agent
):
    run = agent.add_run(KERNEL, "r")
    for _ in range(40):
        run.write(BLOCK)
    run.finish()
    content = BLOCK * 40
    streams = links.connection(AGENT, endpoint).streams
    readers = 12
    async with trio.open_nursery() as nursery:
        go_on = trio.Event()
        stalled, all_stalled = trio.open_memory_channel[None](readers)

        async def stall_then_read() -> None:
            async with link.stream(KERNEL, "r", offset=0) as stream:
                begin = (await first(stream)).data
                await stalled.send(None)
                await go_on.wait()
                rest, _ = await read_all(stream)
                assert begin + rest == content

        for _ in range(readers):
            nursery.start_soon(stall_then_read)
        with trio.fail_after(20):
            for _ in range(readers):
                await all_stalled.receive()
        async with link.stream(KERNEL, "r", offset=0) as stream:
            with trio.fail_after(20):
                async for _ in stream:
                    assert streams.held <= wire.LINK_CREDIT
        go_on.set()
    assert streams.held == 0


async def test_closing_in_the_middle_ends_the_work_at_the_agent(link, agent):
    agent.add_run(KERNEL, "r")
    with agent.hold("read_output"):
        async with link.stream(KERNEL, "r", offset=0):
            await agent.until(lambda: agent.calls["read_output"] == 1)
        await agent.until(lambda: agent.cancelled["read_output"] == 1)


async def test_a_stream_goes_on_where_it_was_when_the_agent_restarts(links, agent):
    run = agent.add_run(KERNEL, "r")
    async with serving(agent) as endpoint:
        pass
    content = b""
    async with trio.open_nursery() as nursery:
        opened, done = trio.Event(), trio.Event()
        got = []

        async def read() -> None:
            async with links.link(AGENT, endpoint).stream(KERNEL, "r", offset=0) as stream:
                opened.set()
                got.append(await read_all(stream))
            done.set()

        nursery.start_soon(read)
        for life in range(3):
            async with serving(agent, endpoint):
                await opened.wait()
                for number in range(30):
                    run.write(b"<%d.%d>" % (life, number) * 1000)
                    content += run.records[-1].data
                    await trio.lowlevel.checkpoint()
                await agent.until(lambda: agent.read_to == run.status.end_offset)
        run.finish()
        async with serving(agent, endpoint):
            with trio.fail_after(20):
                await done.wait()
    assert got == [(content, run.status)]


async def test_a_reader_of_an_agent_that_falls_silent_is_told(links, agent):
    agent.add_run(KERNEL, "r").write(b"abc")
    async with serving(agent) as endpoint:
        pass
    link = links.link(AGENT, endpoint)
    with trio.fail_after(20), pytest.raises(AgentUnreachable, match="PING"):
        async with link.stream(KERNEL, "r", offset=0):
            pytest.fail("there is no agent")
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        ready = trio.Event()

        async def live_for_a_while() -> None:
            with scope:
                async with serving(agent, endpoint):
                    ready.set()
                    await trio.sleep_forever()

        nursery.start_soon(live_for_a_while)
        await ready.wait()
        async with link.stream(KERNEL, "r", offset=0) as stream:
            assert (await first(stream)).data == b"abc"
            scope.cancel()
            with pytest.raises(AgentUnreachable, match="no sign of life"):
                await first(stream)


async def test_a_quiet_stream_is_not_given_up_while_the_agent_answers_pings():
    async with (
        open_context() as context,
        context.router("tcp://127.0.0.1:*") as router,
        open_links(report_interval=0.05, silence=0.3) as links,
        trio.open_nursery() as nursery,
    ):

        async def speak_only_after_many_pings() -> None:
            pings = sid = 0
            while pings < 10:  # half a second, more than the silence that is put up with
                peer, *frames = await router.recv()
                if frames[0] == callosum.PING:
                    pings += 1
                    router.send(peer, [callosum.PONG, *frames[1:]])
                elif isinstance(message := wire.decode(frames), wire.Open):
                    sid = message.sid
            records = [Record(0, 0, "stdout", b"late")]
            router.send(peer, wire.encode(wire.Data(sid=sid, records=records, next=4)))

        nursery.start_soon(speak_only_after_many_pings)
        async with links.link(AGENT, router.endpoint).stream(KERNEL, "r", offset=0) as stream:
            assert (await first(stream)).data == b"late"
