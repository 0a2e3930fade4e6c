from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import pytest
import trio

from backendai_mgr.db.agents import PgAgents
from backendai_mgr.db.scheduling import PgScheduling
from backendai_mgr.db.sessions import PgSessions
from backendai_mgr.domain.ids import AgentId, SessionId
from backendai_mgr.domain.lifecycle import deadline
from backendai_mgr.domain.slots import Slots
from backendai_mgr.domain.status import Status
from backendai_mgr.scheduling.snapshot import Assignment, Plan, Waiting
from tests.db.samples import (
    AGENT,
    IMAGE,
    KEY,
    LATER,
    NOW,
    OTHER_KEY,
    add_agent,
    fetch,
    fetchval,
    insert_session,
    move,
    new_session,
)


def assign(session, agent: AgentId = AGENT) -> Assignment:
    return Assignment(
        session_id=session.id, agent_id=agent, agent_addr="tcp://stale:6001", slots=Slots.parse(session.slots)
    )


def wait(session_id, sentence: str = "All agents are full.", data: dict | None = None) -> Waiting:
    return Waiting(session_id=session_id, info="no-available-instances", sentence=sentence, data=data or {})


def plan(*assignments: Assignment, waiting: tuple[Waiting, ...] = ()) -> Plan:
    return Plan(assignments=list(assignments), waiting=list(waiting))


async def enqueue(db, name: str, **changes) -> object:
    new = new_session(name, **changes)
    assert await PgSessions(db).enqueue(new)
    return new


# ---------------------------------------------------------------- snapshot


async def test_a_snapshot_has_pending_sessions_in_order_of_creation(db):
    second = await enqueue(db, "second", created_at=LATER)
    first = await enqueue(db, "first", created_at=NOW)
    await add_agent(db)
    await insert_session(db, Status.RUNNING)
    snapshot = await PgScheduling(db).snapshot(now=LATER)
    assert [session.id for session in snapshot.pending] == [first.id, second.id]
    assert snapshot.now == LATER
    pending = snapshot.pending[0]
    assert (pending.owner, pending.scaling_group, pending.image, pending.retries) == (
        KEY,
        "default",
        IMAGE,
        0,
    )
    assert pending.slots == Slots.parse(first.slots)


async def test_a_snapshot_has_the_agents_that_may_be_given_work(db):
    for name in ("i-good", "i-lost", "i-off", "i-drained", "i-sick"):
        await add_agent(db, AgentId(name))
    await fetch(db, "UPDATE agents SET status = 'LOST', lost_at = now() WHERE id = 'i-lost'")
    await fetch(db, "UPDATE agents SET status = 'UNHEALTHY' WHERE id = 'i-sick'")
    await fetch(db, "UPDATE agents SET schedulable = false WHERE id = 'i-off'")
    await fetch(db, "UPDATE agents SET drain = true WHERE id = 'i-drained'")
    (agent,) = (await PgScheduling(db).snapshot(now=NOW)).agents
    assert (agent.id, agent.addr, agent.images) == ("i-good", "tcp://i-good:6001", {IMAGE})
    assert agent.capacity == Slots.parse({"cpu": "4", "mem": "8g"})
    assert agent.occupied == Slots()


async def test_usage_counts_what_occupies_the_quota(db):
    await add_agent(db)
    for status in Status:
        if status is not Status.PENDING:
            await insert_session(db, status)
    await enqueue(db, "mine")
    await enqueue(db, "theirs", access_key=OTHER_KEY)
    owners = (await PgScheduling(db).snapshot(now=NOW)).owners
    counted = len(Status) - len({"PENDING", "TERMINATING", "TERMINATED", "CANCELLED"})
    assert owners[KEY].live_sessions == counted
    assert owners[KEY].occupied == Slots({"cpu": Decimal(counted)})
    assert (owners[OTHER_KEY].live_sessions, owners[OTHER_KEY].occupied) == (0, Slots())
    assert (owners[KEY].max_sessions, dict(owners[KEY].limits)) == (30, {})


@pytest.mark.parametrize(
    ("policy", "limits"),
    [
        ("UNLIMITED", {"cpu": Decimal(8)}),
        ("LIMITED", {"cpu": Decimal(8), "cuda.device": Decimal(0)}),
    ],
)
async def test_limits_are_those_of_the_policy_over_known_slots(db, policy, limits):
    await add_agent(db, capacity={"cpu": "4", "mem": "1", "cuda.device": "2"})
    await enqueue(db, "mine")
    await fetch(
        db,
        "UPDATE keypair_resource_policies SET default_for_unspecified = $1::text::defaultforunspecified,"
        ' total_resource_slots = \'{"cpu": "8", "mem": "Infinity", "tpu": "3"}\'',
        policy,
    )
    assert dict((await PgScheduling(db).snapshot(now=NOW)).owners[KEY].limits) == limits


# ---------------------------------------------------------------- apply


async def test_an_assignment_schedules_the_session_and_takes_the_slots(db):
    await add_agent(db)
    session = await enqueue(db, "work")
    scheduling = PgScheduling(db)
    assert await scheduling.apply(plan(assign(session)), now=LATER) == [session.id]
    stored = await PgSessions(db).get(session.id)
    assert (stored.status, stored.incarnation, stored.agent_id) == (Status.SCHEDULED, 1, AGENT)
    assert stored.agent_addr == "tcp://i-one:6001"  # the agent's own, not the plan's
    assert stored.deadline == deadline(Status.SCHEDULED, LATER)
    assert stored.reasons == {"info": "scheduled"}
    assert await fetchval(db, "SELECT occupied_slots FROM agents") == session.slots
    assert await fetchval(db, "SELECT count(*) FROM events WHERE type = 'session_scheduled'") == 1
    assert await scheduling.apply(plan(assign(session)), now=LATER) == []


async def test_assignments_that_no_longer_hold_are_left_out(db):
    await add_agent(db, AgentId("i-lost"))
    await add_agent(db, AgentId("i-drained"))
    await add_agent(db)
    await fetch(db, "UPDATE agents SET status = 'LOST', lost_at = now() WHERE id = 'i-lost'")
    await fetch(db, "UPDATE agents SET drain = true WHERE id = 'i-drained'")
    cancelled = await enqueue(db, "cancelled")
    await PgSessions(db).move([move(cancelled.id, Status.PENDING, Status.CANCELLED, 0)], now=NOW)
    fits = await enqueue(db, "fits", slots={"cpu": "3", "mem": "1"})
    too_big = await enqueue(db, "too-big", slots={"cpu": "2", "mem": "1"})
    also_fits = await enqueue(db, "also-fits", slots={"cpu": "1", "mem": "1"})
    unknown_slot = await enqueue(db, "unknown-slot", slots={"tpu": "1"})
    stray = [await enqueue(db, f"stray-{n}") for n in range(3)]
    wanted = plan(
        assign(cancelled),
        assign(fits),
        assign(too_big),
        assign(also_fits),
        assign(unknown_slot),
        assign(stray[0], AgentId("i-lost")),
        assign(stray[1], AgentId("i-drained")),
        assign(stray[2], AgentId("i-nowhere")),
    )
    assert await PgScheduling(db).apply(wanted, now=LATER) == [fits.id, also_fits.id]
    pending = await fetch(db, "SELECT name FROM sessions WHERE status = 'PENDING' ORDER BY name")
    assert [row["name"] for row in pending] == ["stray-0", "stray-1", "stray-2", "too-big", "unknown-slot"]


async def test_the_stored_request_decides_not_the_plans_copy(db):
    await add_agent(db)
    session = await enqueue(db, "huge", slots={"cpu": "100", "mem": "1"})
    lying = Assignment(session_id=session.id, agent_id=AGENT, agent_addr="", slots=Slots.parse({"cpu": "1"}))
    assert await PgScheduling(db).apply(plan(lying), now=LATER) == []


@pytest.mark.parametrize("shared", [True, False], ids=["the same sessions", "sessions of their own"])
async def test_concurrent_appliers_never_give_more_than_there_is(db, shared):
    agents = [AgentId(f"i-{n}") for n in range(3)]
    for agent in agents:
        await add_agent(db, agent)
    sessions = [await enqueue(db, f"session-{n}") for n in range(32)]
    scheduling = PgScheduling(db)
    scheduled = []

    async def apply(applier: int) -> None:
        mine = sessions[applier:] + sessions[:applier] if shared else sessions[applier::8]
        wanted = plan(*(assign(s, agents[(n + applier) % 3]) for n, s in enumerate(mine)))
        scheduled.extend(await scheduling.apply(wanted, now=LATER))

    async with trio.open_nursery() as nursery:
        for applier in range(8):
            nursery.start_soon(apply, applier)
    assert len(scheduled) == len(set(scheduled))
    for row in await fetch(db, "SELECT id, occupied_slots FROM agents"):
        assert row["occupied_slots"]["cpu"] == "4"
        assert await fetchval(db, "SELECT count(*) FROM kernels WHERE agent = $1", row["id"]) == 4


async def test_appliers_and_enders_of_sessions_do_not_deadlock(db):
    agents = [AgentId(f"i-{n}") for n in range(2)]
    for agent in agents:
        await add_agent(db, agent)
    pending = [await enqueue(db, f"session-{n}") for n in range(8)]
    running = [(await insert_session(db, Status.RUNNING, agent=agents[n % 2]))[0] for n in range(8)]
    scheduling, sessions = PgScheduling(db), PgSessions(db)
    before = await fetchval(db, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")

    async def end(chosen) -> None:
        await sessions.move([move(k, Status.RUNNING, Status.TERMINATED) for k in chosen], now=LATER)

    async with trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(end, running[n:] if n % 2 else running[: n + 1][::-1])
            order = pending if n % 2 else pending[::-1]
            wanted = plan(*(assign(s, agents[i % 2]) for i, s in enumerate(order)))
            nursery.start_soon(lambda wanted=wanted: scheduling.apply(wanted, now=LATER))
    await fetch(db, "SELECT pg_stat_clear_snapshot()")
    after = await fetchval(db, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert after == before
    occupied = await fetch(db, "SELECT occupied_slots ->> 'cpu' AS cpu FROM agents")
    assert [row["cpu"] for row in occupied] == ["4", "4"]


async def test_reasons_are_written_only_when_they_are_news(db):
    session = await enqueue(db, "waits")
    scheduling, sessions = PgScheduling(db), PgSessions(db)
    versions = []
    for sentence, data, now in [
        ("All agents are full.", {"agents": 3}, NOW),
        ("All agents are full.", {"agents": 3}, LATER),
        ("All agents are full.", {"agents": 4}, LATER),
        ("The quota is used up.", {"agents": 4}, LATER + timedelta(seconds=1)),
    ]:
        applied = await scheduling.apply(plan(waiting=(wait(session.id, sentence, data),)), now=now)
        assert applied == []
        versions.append(await fetchval(db, "SELECT xmin::text FROM sessions"))
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3
    assert (await sessions.get(session.id)).reasons == {
        "info": "no-available-instances",
        "sentence": "The quota is used up.",
        "data": {"agents": 4},
        "retries": 3,
        "last_try": (LATER + timedelta(seconds=1)).isoformat(),
    }
    assert (await scheduling.snapshot(now=LATER)).pending[0].retries == 3


async def test_no_reason_is_stored_for_a_session_that_no_longer_waits(db):
    await add_agent(db)
    (running,) = await insert_session(db, Status.RUNNING)
    await PgScheduling(db).apply(plan(waiting=(wait(running), wait(SessionId(uuid4())))), now=LATER)
    assert (await PgSessions(db).get(running)).reasons == {}


# ---------------------------------------------------------------- starting


async def scheduled_session(db, name: str = "work"):
    session = await enqueue(db, name)
    assert await PgScheduling(db).apply(plan(assign(session)), now=NOW) == [session.id]
    return session


async def test_scheduled_kernels_are_to_be_started_and_claimed_once(db):
    await add_agent(db)
    session = await scheduled_session(db)
    scheduling = PgScheduling(db)
    (kernel,) = await scheduling.to_start(10)
    assert (kernel.kernel_id, kernel.session_name, kernel.incarnation) == (session.id, "work", 1)
    assert (kernel.agent_id, kernel.agent_addr) == (AGENT, "tcp://i-one:6001")
    assert (kernel.slots, kernel.environ, kernel.bootstrap_script) == (
        session.slots, {"A": "1", "B": "x=y"}, "echo hello",
    )  # fmt: skip
    assert list(kernel.preopen_ports) == [8080, 8081]
    claims = []

    async def claim() -> None:
        claims.append(await scheduling.claim_start(kernel, now=LATER))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(claim)
    assert sorted(claims) == [False] * 4 + [True]
    assert await scheduling.to_start(10) == []
    assert (await PgSessions(db).get(session.id)).reasons == {"info": ""}


async def test_a_rescued_start_gives_the_slots_back_and_the_old_life_is_over(db):
    await add_agent(db)
    session = await scheduled_session(db)
    scheduling, sessions = PgScheduling(db), PgSessions(db)
    (kernel,) = await scheduling.to_start(10)
    rescue = move(session.id, Status.SCHEDULED, Status.PENDING, 1, info="start-timeout")
    assert await sessions.move([rescue], now=LATER) == [rescue]
    stored = await sessions.get(session.id)
    assert (stored.status, stored.agent_id, stored.agent_addr, stored.incarnation) == (
        Status.PENDING, None, None, 1,
    )  # fmt: skip
    assert await fetchval(db, "SELECT occupied_slots FROM agents") == {}
    assert await scheduling.apply(plan(assign(session)), now=LATER) == [session.id]
    assert await scheduling.claim_start(kernel, now=LATER) is False  # it names the first life
    assert (await scheduling.to_start(10))[0].incarnation == 2


async def test_the_answer_to_create_is_noted_for_its_own_life_only(db):
    await add_agent(db)
    session = await scheduled_session(db)
    scheduling, agents = PgScheduling(db), PgAgents(db)
    await scheduling.created(session.id, 1, boot="b", seq=9)
    await scheduling.created(session.id, 2, boot="other", seq=1)
    ((row,), known) = await agents.kernels_of(AGENT, [session.id, uuid4()])
    assert (row.created_boot, row.created_seq, row.status) == ("b", 9, Status.SCHEDULED)
    assert set(known) == {session.id}
    rescue = move(session.id, Status.SCHEDULED, Status.PENDING, 1)
    await PgSessions(db).move([rescue], now=LATER)
    assert await fetch(db, "SELECT created_boot, created_seq FROM kernels") == [(None, None)]


async def test_overdue_kernels_come_with_the_oldest_deadline_first(db):
    await add_agent(db)
    late = (await insert_session(db, Status.SCHEDULED, created_at=NOW - timedelta(seconds=60)))[0]
    later = (await insert_session(db, Status.SCHEDULED, created_at=NOW - timedelta(seconds=50)))[0]
    await insert_session(db, Status.SCHEDULED, created_at=NOW)
    await insert_session(db, Status.RUNNING, created_at=NOW - timedelta(days=1))
    scheduling = PgScheduling(db)
    assert [row.kernel_id for row in await scheduling.overdue(now=NOW, limit=10)] == [late, later]
    assert [row.kernel_id for row in await scheduling.overdue(now=NOW, limit=1)] == [late]


async def test_kernels_of_an_agent_lost_for_long_are_abandoned(db):
    epoch = await add_agent(db)
    (running,) = await insert_session(db, Status.RUNNING)
    (restarting,) = await insert_session(db, Status.RESTARTING)
    await insert_session(db, Status.PREPARING)
    scheduling = PgScheduling(db)
    assert await scheduling.abandoned(lost_before=LATER, limit=10) == []
    await PgAgents(db).mark_lost(AGENT, epoch, now=LATER)
    assert await scheduling.abandoned(lost_before=NOW, limit=10) == []
    found = await scheduling.abandoned(lost_before=LATER, limit=10)
    assert {row.kernel_id for row in found} == {running, restarting}


# ---------------------------------------------------------------- restarting


async def test_a_restarting_kernel_is_to_be_started_until_its_create_was_answered(db):
    await add_agent(db)
    (running,) = await insert_session(db, Status.RUNNING, name="work")
    scheduling, sessions = PgScheduling(db), PgSessions(db)
    await scheduling.created(running, 1, boot="b", seq=3)
    assert await scheduling.to_restart(10) == []
    assert await sessions.move([move(running, Status.RUNNING, Status.RESTARTING)], now=LATER)
    (kernel,) = await scheduling.to_restart(10)
    assert (kernel.kernel_id, kernel.incarnation, kernel.status) == (running, 2, Status.RESTARTING)
    assert (kernel.agent_id, kernel.session_name) == (AGENT, "work")
    assert await scheduling.to_start(10) == []
    assert await scheduling.unanswered(10) == []
    await scheduling.created(running, 1, boot="b", seq=4)  # the life before
    assert await scheduling.to_restart(10) == [kernel]
    await scheduling.created(running, 2, boot="b", seq=5)
    assert await scheduling.to_restart(10) == []
    assert await sessions.move([move(running, Status.RESTARTING, Status.RUNNING, 2)], now=LATER)
    types = [row["type"] for row in await fetch(db, "SELECT type FROM events ORDER BY id")]
    assert types[-3:] == ["session_restarting", "kernel_started", "session_started"]
