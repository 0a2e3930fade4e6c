"""Starts that are cut at each of their steps, and the rescuer of each status."""

import pytest
import trio

from backendai_mgr.domain.lifecycle import RULES
from backendai_mgr.domain.status import Status
from backendai_mgr.services.sessions import CreateRequest
from backendai_mgr.wire.rpc import AgentRefusal

from .conftest import CALLER


async def enqueue(world, name="session"):
    creation = await world.sessions.create(
        CALLER, CreateRequest(name=name, image="python", enqueue_only=True)
    )
    return creation.session.id


async def test_a_kernel_is_created_once_however_many_starters_there_are(world, autojump_clock):
    session_id = await enqueue(world)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(world.starter.run)
        await world.start(nursery, "scheduler", "keeper")
        await world.until(lambda: world.store.sessions[session_id].status is Status.RUNNING)
        assert world.agents["i-1"].created == [(session_id, 1)]
        nursery.cancel_scope.cancel()


async def test_an_agent_that_is_silent_for_a_moment_still_gets_the_kernel(world, autojump_clock):
    session_id = await enqueue(world)
    world.agents["i-1"].silent = True
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await trio.sleep(5)
        world.agents["i-1"].silent = False
        await world.until(lambda: world.store.sessions[session_id].status is Status.RUNNING)
        nursery.cancel_scope.cancel()


async def test_what_a_starter_claimed_before_it_died_the_next_one_starts(world, autojump_clock):
    session_id = await enqueue(world)
    await world.scheduler.round()
    (kernel,) = await world.store.to_start(1)
    assert await world.store.claim_start(kernel, now=world.sessions._now())
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await world.until(lambda: world.store.sessions[session_id].status is Status.RUNNING)
        assert world.agents["i-1"].created == [(session_id, 1)]
        nursery.cancel_scope.cancel()


async def test_what_another_starter_claimed_before_it_died_is_started_by_the_living(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "starter", "keeper")
        await trio.sleep(1)
        session_id = await enqueue(world)
        await world.scheduler.round()
        (kernel,) = await world.store.to_start(1)
        assert await world.store.claim_start(kernel, now=world.sessions._now())
        await world.until(lambda: world.store.sessions[session_id].status is Status.RUNNING)
        assert world.agents["i-1"].created == [(session_id, 1)]
        nursery.cancel_scope.cancel()


async def test_what_an_agent_refuses_is_told_in_its_own_words(world, autojump_clock):
    session_id = await enqueue(world)
    world.agents["i-1"].refuse["create_kernel"] = AgentRefusal("create-failed", "this agent has no image x")
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await world.until(lambda: world.store.sessions[session_id].status is Status.CANCELLED)
        why = await world.sessions.why(CALLER, "session")
        assert why["sentence"] == "It could not be started: this agent has no image x."
        nursery.cancel_scope.cancel()


async def test_a_scheduled_session_that_nobody_starts_is_queued_again(world, autojump_clock):
    session_id = await enqueue(world)
    await world.scheduler.round()
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "reaper")
        await world.until(lambda: world.store.sessions[session_id].status is Status.PENDING, timeout=60)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("status", sorted(s for s in Status if RULES[s].rescue is not None))
async def test_every_transitional_status_is_left_by_its_deadline(world, autojump_clock, status):
    import attrs

    from backendai_mgr.domain.lifecycle import deadline

    session_id = await enqueue(world)
    await world.scheduler.round()
    now = world.sessions._now()
    session = world.store.sessions[session_id]
    world.store.sessions[session_id] = attrs.evolve(session, status=status, status_changed=now)
    world.store.deadlines[session_id] = deadline(status, now)
    rule = RULES[status]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.reaper.run)
        await trio.sleep(rule.stay.total_seconds() - 3)
        assert world.store.sessions[session_id].status is status
        await world.until(lambda: world.store.sessions[session_id].status is not status, timeout=10)
        stored = world.store.sessions[session_id]
        assert (stored.status, stored.reasons["info"]) == (rule.rescue.to, rule.rescue.reason)
        nursery.cancel_scope.cancel()
