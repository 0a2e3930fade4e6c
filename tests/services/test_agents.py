"""Leases, reports and silence of agents, in time that jumps."""

import trio

from backendai_mgr.domain.status import AgentStatus, Status
from backendai_mgr.services.ports import EventRow
from backendai_mgr.services.sessions import CreateRequest

from ..fakes.links import FakeAgent
from ..fakes.store import wall_clock
from .conftest import CALLER


def status(world, session):
    return world.store.sessions[session.id].status


async def test_an_agent_that_reports_is_alive_and_one_that_falls_silent_is_lost(world, autojump_clock):
    world.store.agents["i-1"]["status"] = AgentStatus.LOST
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "keeper")
        await world.until(lambda: world.store.agents["i-1"]["status"] is AgentStatus.ALIVE)
        world.agents["i-1"].silent = True
        began = trio.current_time()
        await world.until(lambda: world.store.agents["i-1"]["status"] is AgentStatus.LOST)
        assert 9 < trio.current_time() - began < 15
        world.agents["i-1"].silent = False
        await world.until(lambda: world.store.agents["i-1"]["status"] is AgentStatus.ALIVE)
        nursery.cancel_scope.cancel()


async def test_why_an_agent_is_not_connected_is_kept_until_it_reports_again(world, autojump_clock):
    agent = world.agents["i-1"]
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "keeper")
        await world.until(lambda: world.store.reports)
        for _ in range(2):
            agent.trouble = "it hung up"
            agent.silent = True
            await world.until(lambda: world.store.agents["i-1"].get("trouble") == "it hung up")
            agent.trouble = None
            agent.silent = False
            await world.until(lambda: world.store.agents["i-1"]["trouble"] is None)
        nursery.cancel_scope.cancel()


async def test_the_same_trouble_right_after_a_report_is_told_again(world, autojump_clock):
    agent = world.agents["i-1"]
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "keeper")
        await world.until(lambda: world.store.reports)
        agent.trouble, agent.silent = "it hung up", True
        await world.until(lambda: world.store.agents["i-1"].get("trouble") == "it hung up")
        agent.silent = False
        await world.until(lambda: world.store.agents["i-1"]["trouble"] is None)
        agent.silent = True  # gone again, before anybody has looked
        await world.until(lambda: world.store.agents["i-1"]["trouble"] == "it hung up")
        nursery.cancel_scope.cancel()


async def test_an_agent_that_joins_is_kept_at_once(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "keeper")
        await world.until(lambda: world.keeper._held)
        await trio.sleep(0.01)
        world.store.add_agent("i-2")
        world.agents.agents["i-2"] = FakeAgent("i-2")
        began = trio.current_time()
        world.keeper.on_event(
            EventRow(
                id=1, time=wall_clock(), type="agent_joined", session_id=None, kernel_id=None,
                agent_id="i-2", owner=None, payload={},
            )
        )  # fmt: skip
        await world.until(lambda: "i-2" in world.keeper._held)
        assert trio.current_time() - began < 1
        nursery.cancel_scope.cancel()


async def test_an_unchanged_report_is_stored_once(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "keeper")
        await trio.sleep(300)
        assert len(world.store.reports) == 1
        nursery.cancel_scope.cancel()


async def test_a_kernel_that_ends_by_itself_ends_its_session_and_is_acknowledged(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        world.agents["i-1"].end_kernel(session.id, "self-terminated", -9)
        await world.until(lambda: status(world, session) is Status.TERMINATED)
        await world.until(lambda: world.agents["i-1"].acked == [(session.id, 1)])
        stored = world.store.sessions[session.id]
        assert (stored.reasons["info"], stored.exit_code) == ("self-terminated", -9)
        nursery.cancel_scope.cancel()


async def test_ends_that_agents_still_tell_of_can_be_waited_for(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        await world.keeper.all_acknowledged()
        world.agents["i-1"].end_kernel(session.id, "self-terminated", 0)
        await world.until(lambda: status(world, session) is Status.TERMINATED)
        await world.keeper.all_acknowledged()
        assert world.agents["i-1"].acked == [(session.id, 1)]
        assert world.keeper.reports["i-1"].kernels == []
        nursery.cancel_scope.cancel()


async def test_sessions_survive_an_agent_that_comes_back_with_its_kernels(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        world.agents["i-1"].silent = True
        await world.until(lambda: world.store.agents["i-1"]["status"] is AgentStatus.LOST)
        assert status(world, session) is Status.RUNNING
        world.agents["i-1"].restart(keep=True)
        world.agents["i-1"].silent = False
        await world.until(lambda: world.store.agents["i-1"]["status"] is AgentStatus.ALIVE)
        await trio.sleep(60)
        assert status(world, session) is Status.RUNNING
        nursery.cancel_scope.cancel()


async def test_kernels_that_a_new_boot_does_not_know_have_ended(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        world.agents["i-1"].restart(keep=False)
        await world.until(lambda: status(world, session) is Status.TERMINATED)
        nursery.cancel_scope.cancel()


async def test_a_session_on_an_agent_that_stays_lost_ends_and_its_kernel_is_destroyed_later(
    world, autojump_clock
):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        world.agents["i-1"].silent = True
        await world.until(lambda: status(world, session) is Status.TERMINATED, timeout=700)
        assert world.store.sessions[session.id].reasons["info"] == "agent-lost"
        world.agents["i-1"].silent = False
        await world.until(lambda: world.agents["i-1"].destroyed == [(session.id, 1)])
        nursery.cancel_scope.cancel()


async def test_a_kernel_nobody_knows_is_destroyed_after_its_grace_only(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        del world.store.sessions[session.id]
        world.agents["i-1"].change()
        await trio.sleep(590)
        assert not world.agents["i-1"].destroyed
        await trio.sleep(60)
        assert (session.id, 1) in world.agents["i-1"].destroyed
        nursery.cancel_scope.cancel()


async def test_only_one_worker_keeps_an_agent_and_another_takes_over(world, autojump_clock):
    second = world.make_keeper("worker-2")
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "scheduler", "starter")
        with trio.CancelScope() as first_scope:
            async with trio.open_nursery() as first:
                first.start_soon(world.keeper.run)
                session = await world.running()
                nursery.start_soon(second.run)
                await trio.sleep(60)
                assert world.store.leases["i-1"][:2] == ("worker-1", 1)
                first_scope.cancel()
        await world.until(lambda: world.store.leases["i-1"][:2] == ("worker-2", 2))
        world.agents["i-1"].end_kernel(session.id)
        await world.until(lambda: status(world, session) is Status.TERMINATED)
        nursery.cancel_scope.cancel()


async def test_a_keeper_without_database_lets_go_before_its_lease_ends(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.keeper.run)
        await world.until(lambda: world.keeper._held)
        expires = world.store.leases["i-1"][2]
        world.store.down = True
        await world.until(lambda: not world.keeper._held)
        assert trio.current_time() < expires
        world.store.down = False
        await world.until(lambda: world.keeper._held)
        nursery.cancel_scope.cancel()


async def test_a_manager_that_was_stopped_does_not_declare_agents_lost(world, mock_clock):
    """After SIGCONT the clock has leapt although nobody was silent."""
    mock_clock.autojump_threshold = 0
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "keeper")
        await world.until(lambda: world.store.reports)
        world.agents["i-1"].silent = True
        mock_clock.jump(300)
        await trio.sleep(5)
        assert world.store.agents["i-1"]["status"] is AgentStatus.ALIVE
        nursery.cancel_scope.cancel()


async def test_sessions_start_after_the_only_agent_came(world, autojump_clock):
    world.store.agents["i-1"]["status"] = AgentStatus.LOST
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        creation = await world.sessions.create(CALLER, CreateRequest(name="session", image="python"))
        assert creation.status == "RUNNING"
        nursery.cancel_scope.cancel()


async def test_a_watch_that_crashes_is_started_again_and_harms_no_other(world, autojump_clock, caplog):
    world.store.add_agent("i-2")
    world.agents.agents["i-2"] = FakeAgent("i-2")
    apply_moves, crashes = world.store.apply_moves, ["once"]

    async def apply_moves_once_broken(agent_id, epoch, moves, *, now):
        if crashes:
            raise RuntimeError(crashes.pop())
        return await apply_moves(agent_id, epoch, moves, now=now)

    world.store.apply_moves = apply_moves_once_broken
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await world.running()
        assert not crashes
        assert "the watch of agent" in caplog.text
        assert set(world.keeper._held) == {"i-1", "i-2"}
        nursery.cancel_scope.cancel()
    assert world.keeper._held == {}


async def test_an_agent_that_has_seen_a_higher_epoch_than_the_database_is_kept_under_a_higher_one(
    world, autojump_clock
):
    """The database was set back; the agent was not."""
    world.agents["i-1"].epoch = 41
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        began = trio.current_time()
        session = await world.running()
        assert world.store.leases["i-1"][:2] == ("worker-1", 42)
        assert trio.current_time() - began < 5
        await trio.sleep(60)
        assert world.store.leases["i-1"][1] == 42
        world.agents["i-1"].end_kernel(session.id)
        await world.until(lambda: status(world, session) is Status.TERMINATED)
        nursery.cancel_scope.cancel()


async def test_an_agent_that_claims_an_impossible_epoch_harms_no_other(world, autojump_clock):
    world.store.add_agent("i-2")
    world.agents.agents["i-2"] = FakeAgent("i-2")
    world.agents["i-2"].epoch = 1 << 63
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await world.running()
        await trio.sleep(60)
        assert world.store.leases["i-1"][:2] == ("worker-1", 1)
        assert world.store.leases["i-2"][1] == 1
        nursery.cancel_scope.cancel()
