"""Every method there and back, and what happens when the agent does not answer, refuses or breaks."""

import logging
import math

import attrs
import pytest
import trio

from backendai_mgr.agent.linkcalls import MAX_CALLS
from backendai_mgr.agentlink.connection import Connection
from backendai_mgr.agentlink.links import open_links
from backendai_mgr.domain.status import KernelState, RunState
from backendai_mgr.runtime.zmqsocket import open_context
from backendai_mgr.wire import callosum
from backendai_mgr.wire.callosum import AgentError, Kind
from backendai_mgr.wire.records import Record
from backendai_mgr.wire.rpc import AgentRefusal, AgentUnreachable, RunOrder, RunPlace, RunSpec
from tests.fakes.agent import FakeAgent

from .conftest import AGENT, KERNEL, serving, spec


def connection_of(links, endpoint: str) -> Connection:
    return links.connection(AGENT, endpoint)


@pytest.fixture
def connection(links, endpoint) -> Connection:
    return connection_of(links, endpoint)


# ---------------------------------------------------------------- answers


async def test_a_kernel_is_created_and_destroyed(link, agent):
    boot, seq, kernel = await link.create_kernel(spec())
    assert (boot, kernel.id, kernel.state) == (agent.boot, KERNEL, KernelState.RUNNING)
    report = await link.report(1)
    assert report.kernels == [kernel]
    assert report.seq > seq
    await link.destroy_kernel(KERNEL, 1, "user-requested", 1)
    assert (await link.report(1)).kernels[0].exit.reason == "self-terminated"


async def test_a_run_is_started_once_and_attached_to_afterwards(link, agent):
    code = RunSpec(code="print('ä \ud800')")
    first = await link.start_run(KERNEL, "r", RunOrder.of(1, code))
    again = await link.start_run(KERNEL, "r", RunOrder.of(1, code))
    assert (first.created, again.created) == (True, False)
    assert first.run.digest == code.digest()
    assert first.run.state is RunState.RUNNING
    with pytest.raises(AgentRefusal) as caught:
        await link.start_run(KERNEL, "r", RunOrder.of(1, RunSpec(code="2")))
    assert (caught.value.code, caught.value.message) == ("run-conflict", "r")


async def test_a_terminal_is_typed_into_and_resized(link, agent):
    run = agent.add_run(KERNEL, "t")
    assert await link.type_input(KERNEL, "t", writer="me", offset=0, data=b"ls\xff") == 3
    assert await link.type_input(KERNEL, "t", writer="me", offset=None, data=b"\n") == 4
    await link.resize_terminal(KERNEL, "t", rows=50, columns=132)
    assert (run.typed, run.size) == (b"ls\xff\n", (50, 132))
    with pytest.raises(AgentRefusal) as caught:
        await link.type_input(KERNEL, "other", writer="me", offset=0, data=b"")
    assert caught.value.code == "no-such-run"


async def test_runs_are_looked_up_listed_and_interrupted(link, agent):
    agent.add_run(KERNEL, "a")
    agent.add_run(KERNEL, "b").finish(3)
    assert (await link.get_run(KERNEL, "b")).exit_code == 3
    listed = await link.list_runs(KERNEL)
    assert {run.run_id for run in listed} == {"a", "b"}
    place = RunPlace(queued_at=listed[0].queued_at, run_id=listed[0].run_id)
    assert await link.list_runs(KERNEL, after=place) == listed[1:]
    assert await link.list_runs(KERNEL, limit=1) == listed[:1]
    with pytest.raises(AgentRefusal, match="not-ended"):
        await link.delete_run(KERNEL, "a")
    await link.abandon_run(KERNEL, "a", after=60.0)
    assert agent.abandoned == [("a", 60.0)]
    assert (await link.interrupt_run(KERNEL, None)).run_id == "a"
    assert await link.interrupt_run(KERNEL, None) is None
    assert (await link.interrupt_run(KERNEL, "b")).state is RunState.CANCELLED
    await link.delete_run(KERNEL, "b")
    assert [run.run_id for run in await link.list_runs(KERNEL)] == ["a"]


async def test_output_is_read_from_any_offset(link, agent):
    run = agent.add_run(KERNEL, "r")
    run.write(b"hello ")
    run.write(b"world\n", "stderr")
    output = await link.read_output(KERNEL, "r", offset=2, max_bytes=7, wait=5)
    assert [Record.unpack(record).data for record in output.records] == [b"llo ", b"wor"]
    assert (output.next_offset, output.run.end_offset) == (9, 12)


async def test_reading_waits_for_output(link, agent):
    run = agent.add_run(KERNEL, "r")
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def write_when_asked() -> None:
                await agent.until(lambda: agent.calls["read_output"])
                run.write(b"late")

            nursery.start_soon(write_when_asked)
            output = await link.read_output(KERNEL, "r", offset=0, max_bytes=100, wait=10)
    assert output.next_offset == 4


async def test_polling_advances_the_runs_own_cursor(link, agent):
    run = agent.add_run(KERNEL, "r")
    for _ in range(1000):
        run.write(b"x")
    first = await link.poll_run(KERNEL, "r", wait=0, max_bytes=600)
    run.finish()
    second = await link.poll_run(KERNEL, "r", wait=5, max_bytes=600)
    assert [first.next_offset, second.next_offset] == [600, 1000]
    assert [len(first.records), len(second.records)] == [1, 1], "tiny records are merged"


async def test_very_many_tiny_records_fit_into_answers(link, agent):
    run = agent.add_run(KERNEL, "r")
    for _ in range(20_000):
        run.write(b"x")
    run.finish()
    offset, got = 0, 0
    while offset < 20_000:
        output = await link.read_output(KERNEL, "r", offset=offset, max_bytes=1 << 20, wait=5)
        assert output.next_offset > offset
        offset, got = output.next_offset, got + len(output.records)
    assert got == 20_000


async def test_two_hundred_calls_at_once_are_each_answered(link, agent):
    for number in range(200):
        agent.add_run(KERNEL, f"r{number}")
    answers: dict[int, str] = {}

    async def ask(number: int) -> None:
        answers[number] = (await link.get_run(KERNEL, f"r{number}")).run_id

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            with agent.hold("get_run"):
                for number in range(200):
                    nursery.start_soon(ask, number)
                await agent.until(lambda: agent.calls["get_run"] == 200)
                assert answers == {}
    assert answers == {number: f"r{number}" for number in range(200)}


# ---------------------------------------------------------------- refusals and failures


async def test_refusals_arrive_with_code_and_message(link, agent):
    agent.refuse_once("create_kernel", AgentRefusal("create-failed", "no room: disk: full"))
    with pytest.raises(AgentRefusal) as caught:
        await link.create_kernel(spec())
    assert (caught.value.code, caught.value.message) == ("create-failed", "no room: disk: full")
    assert await link.create_kernel(spec())


async def test_a_bug_of_one_call_is_told_and_logged_and_ends_nothing_else(link, agent, caplog):
    agent.refuse_once("list_runs", KeyError("surprise"))
    with caplog.at_level(logging.ERROR), pytest.raises(AgentError, match="list_runs: KeyError: 'surprise'"):
        await link.list_runs(KERNEL)
    assert "call list_runs broke" in caplog.text
    assert await link.list_runs(KERNEL) == []


async def test_an_unknown_method_is_an_error(connection):
    with pytest.raises(AgentError, match="UnknownMethod: dance"):
        await connection.call("dance", {}, timeout=5)


@pytest.mark.parametrize(
    "arguments", [{}, {"kernel_id": 5, "run_id": "r"}, {"kernel_id": str(KERNEL), "run_id": "/"}]
)
async def test_wrong_arguments_are_a_bad_request(connection, arguments, agent):
    with pytest.raises(AgentRefusal) as caught:
        await connection.call("get_run", arguments, timeout=5)
    assert caught.value.code == "bad-request"
    assert agent.calls["get_run"] == 0


async def test_positional_arguments_and_compressed_bodies_are_answered(endpoint):
    async with open_context() as context, context.dealer(endpoint) as dealer:
        request = callosum.function("get_run", 1, {})
        positional = callosum.pack({"args": [1], "kwargs": {}})
        await dealer.send(
            callosum.encode(callosum.Message(kind=Kind.FUNCTION, method="get_run", seq=1, body=positional))
        )
        reply = callosum.decode(await dealer.recv())
        assert reply.kind is Kind.FAILURE
        assert "arguments have names" in callosum.explanation(reply)[1]
        upper, header, body = callosum.encode(request)
        await dealer.send([upper, header[:-1] + b"\xc3", body])
        reply = callosum.decode(await dealer.recv())
        assert (reply.kind, reply.key) == (Kind.ERROR, request.key)
        assert callosum.explanation(reply)[0] == "CompressedBody"


async def test_what_is_too_large_to_send_is_a_bad_request(link):
    with pytest.raises(AgentRefusal) as caught:
        await link.start_run(KERNEL, "r", RunOrder.of(1, RunSpec(code="#" * callosum.MAX_BODY)))
    assert caught.value.code == "bad-request"


async def test_too_many_calls_are_refused_at_once_and_reading_has_room_of_its_own(connection, link, agent):
    agent.add_run(KERNEL, "r").write(b"x")
    arguments = {"kernel_id": str(KERNEL), "run_id": "r"}
    with trio.fail_after(20), agent.hold("get_run"):
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_CALLS):
                nursery.start_soon(lambda: connection.call("get_run", arguments, timeout=20))
            await agent.until(lambda: agent.calls["get_run"] == MAX_CALLS)
            with pytest.raises(AgentError, match="Busy"):
                await link.list_runs(KERNEL)
            assert (await link.read_output(KERNEL, "r", offset=0, max_bytes=9, wait=5)).next_offset == 1
            nursery.cancel_scope.cancel()
        await agent.until(lambda: agent.cancelled["get_run"] == MAX_CALLS)
    assert len(await link.list_runs(KERNEL)) == 1


async def test_lower_epochs_may_neither_destroy_nor_ask_for_reports(link, agent):
    await link.report(5)
    with pytest.raises(AgentRefusal) as destroy:
        await link.destroy_kernel(KERNEL, 1, "user-requested", 4)
    with pytest.raises(AgentRefusal) as report:
        await link.report(4)
    assert {destroy.value.code, report.value.code} == {"stale-epoch"}
    assert agent.calls["destroy_kernel"] == 0
    await link.destroy_kernel(KERNEL, 1, "user-requested", 5)


# ---------------------------------------------------------------- silence


async def test_a_late_call_is_unreachable_and_called_off_at_the_agent(connection, agent):
    agent.add_run(KERNEL, "r")
    arguments = {"kernel_id": str(KERNEL), "run_id": "r"}
    with agent.hold("get_run"):
        with pytest.raises(AgentUnreachable, match=r"no answer to get_run within 0\.2 s"):
            await connection.call("get_run", arguments, timeout=0.2)
        await agent.until(lambda: agent.cancelled["get_run"] == 1)
    assert await connection.call("get_run", arguments, timeout=5)
    assert connection._pending == {}


async def test_a_cancelled_call_is_called_off_at_the_agent(link, agent):
    with trio.fail_after(10), agent.hold("create_kernel"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.create_kernel, spec())
            await agent.until(lambda: agent.calls["create_kernel"] == 1)
            nursery.cancel_scope.cancel()
        await agent.until(lambda: agent.cancelled["create_kernel"] == 1)
    assert agent.kernels == {}


async def test_the_called_off_call_is_answered_cancelled(endpoint, agent):
    request = callosum.function("list_runs", 4, {"kernel_id": str(KERNEL)})
    with trio.fail_after(10), agent.hold("list_runs"):
        async with open_context() as context, context.dealer(endpoint) as dealer:
            await dealer.send(callosum.encode(request))
            await agent.until(lambda: agent.calls["list_runs"] == 1)
            await dealer.send(callosum.encode(callosum.cancel(request)))
            reply = callosum.decode(await dealer.recv())
    assert (reply.kind, reply.key) == (Kind.CANCELLED, request.key)


async def test_calls_to_a_dead_agent_end_by_their_deadline_and_leave_nothing_behind(links):
    async with open_context() as context, context.router("tcp://127.0.0.1:*") as router:
        dead = router.endpoint
    connection = connection_of(links, dead)
    tasks = trio.lowlevel.current_statistics().tasks_living
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                with pytest.raises(AgentUnreachable):
                    await connection.call("list_runs", {}, timeout=0.3)

            for _ in range(50):
                nursery.start_soon(call)
    assert connection._pending == {}
    assert trio.lowlevel.current_statistics().tasks_living <= tasks + 5, "the connection's own tasks at most"
    assert links.link(AGENT, dead).last_heard == -math.inf


async def call_away(connection: Connection, timeout: float) -> None:
    """A call to an agent that has just gone; those that leave before that is noticed do not count."""
    while True:
        try:
            await connection.call("list_runs", {"kernel_id": str(KERNEL)}, timeout=timeout)
            return
        except AgentUnreachable as error:
            if "the connection broke" not in str(error):
                raise


async def test_an_agent_that_has_been_away_for_too_long_is_not_waited_for(agent):
    async with open_links(restart=0.0) as links:
        async with serving(agent) as endpoint:
            await links.link(AGENT, endpoint).list_runs(KERNEL)
        with trio.fail_after(20), pytest.raises(AgentUnreachable, match="no answer to PING"):
            await call_away(connection_of(links, endpoint), timeout=60)


async def test_a_call_waits_for_an_agent_that_restarts(agent):
    answered = trio.Event()

    async def call() -> None:
        await call_away(connection, timeout=60)
        answered.set()

    async with open_links() as links:
        async with serving(agent) as endpoint:
            connection = connection_of(links, endpoint)
            await links.link(AGENT, endpoint).list_runs(KERNEL)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                with pytest.raises(AgentUnreachable, match=r"within 0\.3 s"):
                    await call_away(connection, timeout=0.3)
                assert not answered.is_set()
                async with serving(agent, endpoint):
                    await answered.wait()


async def test_a_peer_that_does_not_speak_the_protocol_is_unreachable(links):
    async def mute(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, mute, 0)
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(AgentUnreachable):
            await connection_of(links, f"tcp://127.0.0.1:{port}").call("list_runs", {}, timeout=0.3)
        nursery.cancel_scope.cancel()


async def test_an_address_that_cannot_be_dialled_is_unreachable_at_once(links):
    with trio.fail_after(5), pytest.raises(AgentUnreachable, match="cannot dial"):
        await links.link(AGENT, "nonsense").list_runs(KERNEL)


async def test_a_restarted_agent_is_reached_again(links, agent):
    async with serving(agent) as endpoint:
        link = links.link(AGENT, endpoint)
        assert await link.list_runs(KERNEL) == []
        assert link.last_heard <= trio.current_time()
    agent.add_run(KERNEL, "r")
    connection = connection_of(links, endpoint)
    async with serving(agent, endpoint):
        with trio.fail_after(20):
            while True:  # a call that goes out before the break is noticed is lost
                try:
                    await connection.call("list_runs", {"kernel_id": str(KERNEL)}, timeout=0.5)
                    break
                except AgentUnreachable:
                    continue
        assert len(await link.list_runs(KERNEL)) == 1


async def test_calls_under_way_when_the_agent_dies_are_unreachable_at_once_and_can_be_repeated(links):
    """Without a feed, and however long they might have waited."""
    first, second = FakeAgent("boot-1"), FakeAgent("boot-2")
    failed: list[str] = []
    all_failed = trio.Event()

    async def call(make) -> None:
        with pytest.raises(AgentUnreachable, match="the connection broke"):
            await make()
        failed.append("")
        if len(failed) == 2:
            all_failed.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with first.hold("create_kernel", "get_run"):
                async with serving(first) as endpoint:
                    link = links.link(AGENT, endpoint)
                    nursery.start_soon(call, lambda: link.create_kernel(spec()))
                    nursery.start_soon(call, lambda: link.get_run(KERNEL, "r"))
                    await first.until(lambda: first.calls["create_kernel"] and first.calls["get_run"])
                await all_failed.wait()
        async with serving(second, endpoint):
            boot, _, _ = await link.create_kernel(spec())
            assert boot == "boot-2"


async def test_an_agent_that_moved_is_dialled_at_its_new_address_while_old_calls_finish(links, agent):
    async with serving(agent) as old, serving(agent) as new:
        first = links.link(AGENT, old)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                with agent.hold("create_kernel"):
                    nursery.start_soon(first.create_kernel, spec())
                    await agent.until(lambda: agent.calls["create_kernel"] == 1)
                    before = links.known(AGENT, old)
                    assert await links.link(AGENT, new).list_runs(KERNEL) == []
                    assert not before.ended, "a call is under way there"
        assert KERNEL in agent.kernels
        assert before.ended
        assert links.known(AGENT, old) is None
        assert await first.list_runs(KERNEL) == [], "a kept handle still works"


async def test_calls_under_way_when_the_links_close_are_unreachable(agent):
    async with serving(agent) as endpoint, trio.open_nursery() as nursery:
        done = trio.Event()

        async def call(link) -> None:
            with pytest.raises(AgentUnreachable, match="closed"):
                await link.create_kernel(spec())
            done.set()

        with trio.fail_after(10), agent.hold("create_kernel"):
            async with open_links() as links:
                nursery.start_soon(call, links.link(AGENT, endpoint))
                await agent.until(lambda: agent.calls["create_kernel"] == 1)
            await done.wait()


# ---------------------------------------------------------------- an agent that answers nonsense


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (lambda request: callosum.result(request, {"run_id": 5}), AgentError),
        (lambda request: callosum.result(request, None), AgentError),
        (lambda request: attrs.evolve(callosum.result(request, 1), body=b"\xc1"), AgentError),
        (callosum.cancelled, AgentError),
        (lambda request: callosum.error(request, "E", "text"), AgentError),
        (lambda request: callosum.failure(request, "ValueError", "text"), AgentError),
        (lambda request: callosum.failure(request, "AgentRefusal", "no-such-run: r"), AgentRefusal),
        (lambda request: callosum.failure(request, "AgentRefusal", "unheard-of"), AgentRefusal),
    ],
)  # fmt: skip
async def test_every_sort_of_answer_ends_a_call(links, reply, error):
    async with open_context() as context, context.router("tcp://127.0.0.1:*") as router:

        async def answer() -> None:
            while True:
                peer, *frames = await router.recv()
                if frames[0] == callosum.PING:
                    router.send(peer, [b"what is this", b"?"])
                    router.send(peer, [callosum.UPPER, b"", b""])
                    router.send(peer, [callosum.PONG, *frames[1:]])
                else:
                    router.send(peer, callosum.encode(reply(callosum.decode(frames))))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with trio.fail_after(10), pytest.raises(error):
                await links.link(AGENT, router.endpoint).get_run(KERNEL, "r")
            nursery.cancel_scope.cancel()
