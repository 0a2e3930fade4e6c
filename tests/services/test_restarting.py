"""A running session gets a new life, whoever dies on the way; or it is told why not."""

import pytest
import trio

from backendai_mgr.domain.errors import (
    AgentFailed,
    BadRequest,
    Conflict,
    NotFound,
    SessionExists,
    TooManyMatches,
    Unavailable,
)
from backendai_mgr.domain.status import KernelState, Status
from backendai_mgr.services.ports import KernelMove
from backendai_mgr.services.sessions import CreateRequest
from backendai_mgr.wire.rpc import AgentRefusal, RunSpec

from ..fakes.store import wall_clock
from .conftest import CALLER

NAME = "test-session"


def stored(world, session):
    return world.store.sessions[session.id]


def restarting(session) -> KernelMove:
    return KernelMove(
        kernel_id=session.kernel_id,
        session_id=session.id,
        incarnation=session.incarnation,
        seen=Status.RUNNING,
        to=Status.RESTARTING,
    )


async def test_a_restarted_session_runs_in_its_next_life_on_the_same_agent(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        await world.sessions.restart(CALLER, NAME)
        now = stored(world, session)
        assert (now.status, now.incarnation, now.agent_id) == (Status.RUNNING, 2, session.agent_id)
        assert world.agents["i-1"].created == [(session.id, 1), (session.id, 2)]
        assert world.agents["i-1"].destroyed == [], "its next life takes over what the agent has of it"
        types = [event.type for event in world.store.event_rows if event.session_id == session.id]
        assert types[-3:] == ["session_restarting", "kernel_started", "session_started"]
        await trio.sleep(60)
        assert stored(world, session).status is Status.RUNNING
        nursery.cancel_scope.cancel()


async def test_runs_asked_for_meanwhile_are_to_come_again_and_then_start_in_the_next_life(
    world, autojump_clock
):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        await world.runs.put(CALLER, NAME, "before", RunSpec(code="1"))
        world.agents["i-1"].silent = True
        nursery.start_soon(world.sessions.restart, CALLER, NAME)
        await world.until(lambda: stored(world, session).status is Status.RESTARTING)
        await trio.sleep(1)
        with pytest.raises(Unavailable) as caught:
            await world.runs.put(CALLER, NAME, "meanwhile", RunSpec(code="1"))
        assert caught.value.retry_after == 1
        world.agents["i-1"].silent = False
        await world.until(lambda: stored(world, session).status is Status.RUNNING)
        await trio.sleep(1)
        live, started = await world.runs.put(CALLER, NAME, "meanwhile", RunSpec(code="1"))
        assert (live.incarnation, started.run.incarnation) == (2, 2)
        nursery.cancel_scope.cancel()


async def test_of_many_restarts_at_once_one_is_carried_out(world, autojump_clock):
    outcomes = []

    async def restart():
        try:
            await world.sessions.restart(CALLER, NAME)
            outcomes.append("done")
        except Conflict:
            outcomes.append("refused")

    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        async with trio.open_nursery() as callers:
            for _ in range(5):
                callers.start_soon(restart)
        assert sorted(outcomes) == ["done", *["refused"] * 4]
        assert stored(world, session).incarnation == 2
        nursery.cancel_scope.cancel()


async def test_only_a_running_session_can_be_restarted(world, autojump_clock):
    with pytest.raises(NotFound):
        await world.sessions.restart(CALLER, NAME)
    await world.sessions.create(CALLER, CreateRequest(name=NAME, image="python", enqueue_only=True))
    with pytest.raises(Conflict, match="PENDING"):
        await world.sessions.restart(CALLER, NAME)
    await world.sessions.destroy(CALLER, NAME, forced=False, owner_access_key=None)
    with pytest.raises(Conflict, match="CANCELLED"):
        await world.sessions.restart(CALLER, NAME)
    for name in ("other-1", "other-2"):
        await world.sessions.create(CALLER, CreateRequest(name=name, image="python", enqueue_only=True))
    with pytest.raises(TooManyMatches):
        await world.sessions.restart(CALLER, "other")


async def test_the_next_starter_goes_on_with_a_restart_that_another_left(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "scheduler", "keeper", "reaper")
        with trio.CancelScope() as first_life:
            async with trio.open_nursery() as first:
                first.start_soon(world.starter.run)
                session = await world.running()
                first_life.cancel()
        assert await world.store.move([restarting(session)], now=wall_clock())
        await trio.sleep(10)
        assert stored(world, session).status is Status.RESTARTING
        for _ in range(3):
            nursery.start_soon(world.starter.run)
        await world.until(lambda: stored(world, session).status is Status.RUNNING)
        assert world.agents["i-1"].created == [(session.id, 1), (session.id, 2)]
        nursery.cancel_scope.cancel()


async def test_the_end_of_the_life_before_is_neither_the_next_ones_nor_acknowledged(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "scheduler", "keeper", "reaper")
        with trio.CancelScope() as first_life:
            async with trio.open_nursery() as first:
                first.start_soon(world.starter.run)
                session = await world.running()
                first_life.cancel()
        assert await world.store.move([restarting(session)], now=wall_clock())
        world.agents["i-1"].end_kernel(session.id, "self-terminated", 1)
        await trio.sleep(20)
        assert stored(world, session).status is Status.RESTARTING
        assert world.agents["i-1"].acked == []
        nursery.start_soon(world.starter.run)
        await world.until(lambda: stored(world, session).status is Status.RUNNING)
        assert world.agents["i-1"].kernels[session.id].state is KernelState.RUNNING
        nursery.cancel_scope.cancel()


async def test_a_restart_that_the_agent_refuses_ends_the_session_and_is_told_in_its_words(
    world, autojump_clock
):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        world.agents["i-1"].refuse["create_kernel"] = AgentRefusal("create-failed", "no image x")
        with pytest.raises(AgentFailed, match="It could not be started: no image x"):
            await world.sessions.restart(CALLER, NAME)
        await world.until(lambda: stored(world, session).status is Status.TERMINATED)
        why = await world.sessions.why(CALLER, NAME)
        assert why["sentence"] == "It could not be started: no image x."
        assert world.agents["i-1"].destroyed == [(session.id, 1)]
        nursery.cancel_scope.cancel()


async def test_a_restart_on_an_agent_that_is_gone_is_given_up_in_bounded_time(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        world.agents["i-1"].silent = True
        with trio.fail_after(150), pytest.raises(AgentFailed):
            await world.sessions.restart(CALLER, NAME)
        await world.until(lambda: stored(world, session).status is Status.TERMINATED, timeout=200)
        nursery.cancel_scope.cancel()


async def test_a_restarting_session_can_be_destroyed(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        world.agents["i-1"].silent = True
        assert await world.store.move([restarting(session)], now=wall_clock())
        await trio.sleep(2)
        nursery.start_soon(lambda: world.sessions.destroy(CALLER, NAME, forced=False, owner_access_key=None))
        await world.until(lambda: stored(world, session).status is Status.TERMINATING)
        world.agents["i-1"].silent = False
        await world.until(lambda: stored(world, session).status is Status.TERMINATED, timeout=100)
        assert stored(world, session).reasons["info"] == "user-requested"
        await trio.sleep(10)
        assert all(k.state is KernelState.ENDED for k in world.agents["i-1"].kernels.values())
        nursery.cancel_scope.cancel()


async def test_a_session_is_renamed_and_found_by_its_new_name_alone(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        await world.runs.put(CALLER, NAME, "r", RunSpec(code="1"))
        await world.sessions.rename(CALLER, NAME, "new-name")
        await trio.sleep(1)
        live, _ = await world.runs.get(CALLER, "new-name", "r")
        assert live.id == session.id
        with pytest.raises(NotFound):
            await world.runs.get(CALLER, NAME, "r")
        other = await world.running()
        with pytest.raises(SessionExists):
            await world.sessions.rename(CALLER, NAME, "new-name")
        await world.sessions.destroy(CALLER, NAME, forced=False, owner_access_key=None)
        with pytest.raises(BadRequest, match="not running"):
            await world.sessions.rename(CALLER, str(other.id), "another-name")
        nursery.cancel_scope.cancel()
