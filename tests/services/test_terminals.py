import attrs
import pytest
import trio

from backendai_mgr.domain.errors import Conflict, InvalidParameters, NotFound, RunConflict, Unavailable
from backendai_mgr.domain.status import RunState
from backendai_mgr.wire.rpc import AgentRefusal, AgentUnreachable, RunSpec

from .conftest import ADMIN, CALLER


@pytest.fixture
async def session(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        yield await world.running()
        nursery.cancel_scope.cancel()


def end(world, session, run_id):
    runs = world.agents["i-1"].runs
    runs[session.id, run_id] = attrs.evolve(runs[session.id, run_id], state=RunState.FINISHED)


async def test_the_default_terminal_is_the_same_until_it_ends(world, session):
    live, first = await world.terminals.open(CALLER, "test", None)
    _, second = await world.terminals.open(CALLER, str(session.id), None)
    assert (live.id, first.run_id, second.run_id, first.mode) == (
        session.id, "terminal-1", "terminal-1", "terminal",
    )  # fmt: skip
    end(world, session, "terminal-1")
    for _ in range(2):
        _, third = await world.terminals.open(CALLER, "test-session", None)
        assert third.run_id == "terminal-2"


async def test_a_name_is_one_terminal_for_ever(world, session):
    _, first = await world.terminals.open(CALLER, "test", "mine")
    assert first.state is RunState.RUNNING
    end(world, session, "mine")
    _, second = await world.terminals.open(CALLER, "test", "mine")
    assert second.state is RunState.FINISHED


async def test_names_that_are_not_for_terminals(world, session):
    await world.runs.put(CALLER, "test-session", "r1", RunSpec(code="1"))
    with pytest.raises(RunConflict):
        await world.terminals.open(CALLER, "test", "r1")
    for name in ("batch-job", "a b", ""):
        with pytest.raises(InvalidParameters) as refused:
            await world.terminals.open(CALLER, "test", name)
        assert list(refused.value.data) == ["terminal"]
    with pytest.raises(NotFound):
        await world.terminals.open(ADMIN, "test", "mine")


async def test_terminals_that_end_at_once_are_not_opened_for_ever(world, session):
    agent = world.agents["i-1"]
    start = agent.start_run

    async def start_and_end(kernel_id, run_id, order):
        await start(kernel_id, run_id, order)
        end(world, session, run_id)
        return await start(kernel_id, run_id, order)

    agent.start_run = start_and_end
    with pytest.raises(Conflict):
        await world.terminals.open(CALLER, "test", None)
    assert len(agent.runs) < 20


async def test_what_is_typed_arrives_once_although_the_agent_is_away(world, session):
    agent = world.agents["i-1"]
    _, run = await world.terminals.open(CALLER, "test", None)

    async def type_in(offset, data, writer="me"):
        return await world.terminals.type(
            CALLER, str(session.id), run.run_id, writer=writer, offset=offset, data=data
        )

    assert await type_in(0, b"abc") == 3
    agent.refuse["type_input"] = AgentUnreachable("the answer was lost")
    assert await type_in(3, b"def") == 6
    assert await type_in(0, b"abcdef") == 6
    assert await type_in(None, b"x", writer="other") == 1
    assert agent.typed[session.id, run.run_id] == b"abcdefx"
    agent.refuse["type_input"] = AgentUnreachable("away")
    with pytest.raises(Unavailable):  # it may have arrived: who does not count must decide
        await type_in(None, b"x", writer="other")
    agent.silent = True
    began = trio.current_time()
    with pytest.raises(Unavailable):
        await type_in(6, b"y")
    assert trio.current_time() - began < 120


async def test_sizes_are_passed_on(world, session):
    _, run = await world.terminals.open(CALLER, "test", None)
    agent = world.agents["i-1"]
    agent.refuse["resize_terminal"] = AgentUnreachable("away")
    await world.terminals.resize(CALLER, str(session.id), run.run_id, 50, 100)
    assert agent.sizes == [(run.run_id, 50, 100)]


@pytest.mark.parametrize("code", ["no-terminal", "kernel-ended"])
async def test_an_ended_terminal_is_a_conflict(world, session, code):
    _, run = await world.terminals.open(CALLER, "test", None)
    agent = world.agents["i-1"]
    agent.refuse["type_input"] = AgentRefusal(code, "it has ended")
    with pytest.raises(Conflict):
        await world.terminals.type(CALLER, str(session.id), run.run_id, writer="me", offset=0, data=b"x")
    agent.refuse["resize_terminal"] = AgentRefusal(code, "it has ended")
    with pytest.raises(Conflict):
        await world.terminals.resize(CALLER, str(session.id), run.run_id, 1, 1)


async def test_too_many_are_refused(world, session):
    world.agents["i-1"].refuse["start_run"] = AgentRefusal("too-many", "16 runs")
    with pytest.raises(Conflict):
        await world.terminals.open(CALLER, "test", "one-more")
