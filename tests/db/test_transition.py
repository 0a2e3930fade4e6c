import itertools
from collections import Counter

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backendai_mgr.db.pool import open_database
from backendai_mgr.db.sessions import PgSessions
from backendai_mgr.domain.lifecycle import (
    KERNEL_EVENT,
    RULES,
    SESSION_EVENT,
    IllegalTransition,
    deadline,
    session_status,
    sibling_end,
)
from backendai_mgr.domain.status import DEAD, LIVE, OCCUPIES_AGENT, Status
from tests.db.samples import AGENT, LATER, add_agent, fetch, fetchval, insert_session, move

LEGAL = [(seen, to) for seen, rule in RULES.items() for to in sorted(rule.to)]
ILLEGAL = [pair for pair in itertools.product(Status, Status) if pair not in LEGAL]
STATE = """
SELECT k.status::text, k.incarnation, k.deadline, k.terminated_at, k.status_changed, s.status::text AS whole,
       s.deadline AS whole_deadline, s.terminated_at AS whole_terminated_at, s.reasons, k.agent, k.exit_code
  FROM kernels k JOIN sessions s ON s.id = k.session_id WHERE k.id = $1
"""


def test_the_sets_that_the_statements_spell_out_are_the_domains():
    assert {Status.TERMINATED, Status.CANCELLED} == DEAD
    assert set(Status) - {Status.PENDING, Status.TERMINATED, Status.CANCELLED} == OCCUPIES_AGENT


async def test_every_legal_move_applies_exactly_once(db):
    await add_agent(db)
    sessions = PgSessions(db)
    for seen, to in LEGAL:
        (kernel_id,) = await insert_session(db, seen, incarnation=3)
        if (seen, to) == (Status.PENDING, Status.SCHEDULED):
            await fetch(db, "UPDATE kernels SET agent = $2, agent_addr = 'x' WHERE id = $1", kernel_id, AGENT)
        wanted = move(kernel_id, seen, to, 3, info="because", exit_code=7)
        assert await sessions.move([wanted], now=LATER) == [wanted]
        state = (await fetch(db, STATE, kernel_id))[0]
        assert state["status"] == state["whole"] == to
        assert state["status_changed"] == LATER
        assert state["deadline"] == state["whole_deadline"] == deadline(to, LATER)
        ended = LATER if to in DEAD else None
        assert state["terminated_at"] == state["whole_terminated_at"] == ended
        assert state["reasons"] == {"info": "because"}
        renewed = to in (Status.SCHEDULED, Status.RESTARTING)
        assert state["incarnation"] == (4 if renewed else 3)
        assert state["exit_code"] == (None if renewed else 7)
        assert (state["agent"] is None) == (to is Status.PENDING or (seen is Status.PENDING and to in DEAD))
        assert await sessions.move([wanted], now=LATER) == []
        assert (await fetch(db, STATE, kernel_id))[0] == state


async def test_every_illegal_move_raises_and_changes_nothing(db):
    await add_agent(db)
    sessions = PgSessions(db)
    kernels = {status: (await insert_session(db, status))[0] for status in Status}
    (innocent,) = await insert_session(db, Status.RUNNING)
    before = [await fetch(db, STATE, kernel_id) for kernel_id in (*kernels.values(), innocent)]
    for seen, to in ILLEGAL:
        legal_one = move(innocent, Status.RUNNING, Status.TERMINATING)
        with pytest.raises(IllegalTransition):
            await sessions.move([legal_one, move(kernels[seen], seen, to)], now=LATER)
    assert [await fetch(db, STATE, kernel_id) for kernel_id in (*kernels.values(), innocent)] == before


@pytest.mark.parametrize(
    "stale",
    [
        {"incarnation": 1},
        {"incarnation": 3},
        {"seen": Status.PREPARING},
        {"session_id": "another"},
    ],
)
async def test_a_stale_move_changes_nothing(db, stale):
    await add_agent(db)
    (kernel_id,) = await insert_session(db, Status.RUNNING, incarnation=2)
    (another,) = await insert_session(db, Status.RUNNING, incarnation=2)
    before = await fetch(db, STATE, kernel_id)
    events = await fetchval(db, "SELECT count(*) FROM events")
    if "session_id" in stale:
        stale = {"session_id": another}
    wanted = move(kernel_id, **{"seen": Status.RUNNING, "to": Status.TERMINATED, "incarnation": 2, **stale})
    assert await PgSessions(db).move([wanted], now=LATER) == []
    assert await fetch(db, STATE, kernel_id) == before
    assert await fetchval(db, "SELECT count(*) FROM events") == events


async def test_moves_of_one_kernel_may_follow_each_other_in_a_batch(db):
    await add_agent(db)
    (kernel_id,) = await insert_session(db, Status.SCHEDULED)
    steps = [Status.SCHEDULED, Status.PREPARING, Status.RUNNING, Status.TERMINATING, Status.TERMINATED]
    moves = [move(kernel_id, seen, to) for seen, to in itertools.pairwise(steps)]
    assert await PgSessions(db).move(moves, now=LATER) == moves
    types = [
        row["type"]
        for row in await fetch(db, "SELECT type FROM events WHERE session_id = $1 ORDER BY id", kernel_id)
    ]
    assert types == [
        name for to in steps[1:] for table in (KERNEL_EVENT, SESSION_EVENT) if (name := table.get(to))
    ]


async def test_what_a_kernel_offers_is_kept_until_it_offers_something_else(db):
    await add_agent(db)
    (kernel_id,) = await insert_session(db, Status.PREPARING)
    ports = [{"name": "http", "protocol": "http", "container_ports": [8000], "host_ports": [30000]}]
    sessions = PgSessions(db)
    await sessions.move([move(kernel_id, Status.PREPARING, Status.RUNNING, service_ports=ports)], now=LATER)
    assert (await sessions.get(kernel_id)).service_ports == ports
    await sessions.move([move(kernel_id, Status.RUNNING, Status.RESTARTING)], now=LATER)
    assert (await sessions.get(kernel_id)).service_ports == ports
    again = move(kernel_id, Status.RESTARTING, Status.RUNNING, 2, service_ports=[])
    await sessions.move([again], now=LATER)
    assert (await sessions.get(kernel_id)).service_ports == []


async def test_an_empty_info_keeps_the_reason_before_and_a_start_begins_anew(db):
    await add_agent(db)
    sessions = PgSessions(db)
    (kernel_id,) = await insert_session(db, Status.SCHEDULED)
    seen_reasons = []
    for seen, to, info in [
        (Status.SCHEDULED, Status.PENDING, "start-timeout"),
        (Status.PENDING, Status.CANCELLED, "pending-timeout"),
    ]:
        await sessions.move([move(kernel_id, seen, to, info=info)], now=LATER)
        seen_reasons.append((await fetch(db, STATE, kernel_id))[0]["reasons"])
    (kernel_id,) = await insert_session(db, Status.SCHEDULED)
    await fetch(db, 'UPDATE sessions SET reasons = \'{"info": "scheduled"}\'')
    for seen, to, info in [
        (Status.SCHEDULED, Status.PREPARING, ""),
        (Status.PREPARING, Status.RUNNING, ""),
        (Status.RUNNING, Status.TERMINATING, "user-requested"),
        (Status.TERMINATING, Status.TERMINATED, ""),
    ]:
        await sessions.move([move(kernel_id, seen, to, info=info)], now=LATER)
        seen_reasons.append((await fetch(db, STATE, kernel_id))[0]["reasons"])
    assert [reasons["info"] for reasons in seen_reasons] == [
        "start-timeout", "pending-timeout", "", "", "user-requested", "user-requested",
    ]  # fmt: skip


async def test_a_reasons_sentence_is_kept_with_it_and_goes_with_it(db):
    await add_agent(db)
    sessions = PgSessions(db)
    (kernel_id,) = await insert_session(db, Status.RESTARTING)
    told = {"info": "failed-to-start", "sentence": "no image x"}
    ending = move(kernel_id, Status.RESTARTING, Status.TERMINATING, **told)
    await sessions.move([ending], now=LATER)
    assert (await fetch(db, STATE, kernel_id))[0]["reasons"] == told
    await sessions.move([move(kernel_id, Status.TERMINATING, Status.TERMINATED)], now=LATER)
    assert (await fetch(db, STATE, kernel_id))[0]["reasons"] == told
    (kernel_id,) = await insert_session(db, Status.RESTARTING)
    await sessions.move([move(kernel_id, Status.RESTARTING, Status.TERMINATING, **told)], now=LATER)
    rescue = move(kernel_id, Status.TERMINATING, Status.TERMINATED, info="hang-timeout")
    await sessions.move([rescue], now=LATER)
    assert (await fetch(db, STATE, kernel_id))[0]["reasons"] == {"info": "hang-timeout"}


async def test_agents_get_their_slots_back_when_kernels_leave_them(db):
    await add_agent(db)
    sessions = PgSessions(db)
    for status in (Status.RUNNING, Status.SCHEDULED, Status.PREPARING):
        await insert_session(db, status)
    kernels = await fetch(db, "SELECT id, status::text FROM kernels ORDER BY status")
    occupied = []
    for row in kernels:
        to = {"RUNNING": Status.TERMINATED, "SCHEDULED": Status.PENDING}.get(row["status"], Status.CANCELLED)
        await sessions.move([move(row["id"], Status(row["status"]), to)], now=LATER)
        occupied.append(await fetchval(db, "SELECT occupied_slots FROM agents"))
    assert occupied == [{"cpu": "2"}, {"cpu": "1"}, {}]


async def test_sessions_that_leave_an_agent_together_leave_it_empty(db):
    await add_agent(db)
    sessions = PgSessions(db)
    kernels = [(await insert_session(db, Status.RUNNING))[0] for _ in range(14)]
    async with trio.open_nursery() as nursery:
        for kernel_id in kernels:
            ending = move(kernel_id, Status.RUNNING, Status.TERMINATED)
            nursery.start_soon(lambda ending=ending: sessions.move([ending], now=LATER))
    assert await fetchval(db, "SELECT occupied_slots FROM agents") == {}


async def test_concurrent_movers_of_one_kernel_have_one_winner(db):
    await add_agent(db)
    (kernel_id,) = await insert_session(db, Status.RUNNING)
    sessions = PgSessions(db)
    winners = []

    async def end(info: str) -> None:
        winners.extend(
            await sessions.move([move(kernel_id, Status.RUNNING, Status.TERMINATED, info=info)], now=LATER)
        )

    async with trio.open_nursery() as nursery:
        for index in range(10):
            nursery.start_soon(end, f"reason-{index}")
    assert len(winners) == 1
    assert (await fetch(db, STATE, kernel_id))[0]["reasons"] == {"info": winners[0].info}
    assert await fetchval(db, "SELECT count(*) FROM events WHERE type = 'session_terminated'") == 1


async def test_the_last_of_a_sessions_kernels_ends_it_whoever_moves_it(db):
    """Two movers that each end one kernel must not both find the other's still alive."""
    await add_agent(db)
    sessions = PgSessions(db)
    for _ in range(10):
        ids = await insert_session(db, Status.TERMINATING, Status.TERMINATING, Status.TERMINATING)
        async with trio.open_nursery() as nursery:
            for kernel_id in ids:
                wanted = move(kernel_id, Status.TERMINATING, Status.TERMINATED, session_id=ids[0])
                nursery.start_soon(lambda wanted=wanted: sessions.move([wanted], now=LATER))
        assert await fetchval(db, "SELECT status::text FROM sessions WHERE id = $1", ids[0]) == "TERMINATED"


@pytest.mark.parametrize("to", [Status.TERMINATED, Status.TERMINATING])
async def test_the_other_kernels_of_an_ending_session_are_ended_too(db, to):
    await add_agent(db)
    first, *others = await insert_session(
        db, Status.RUNNING, Status.RUNNING, Status.RUNNING, Status.TERMINATING
    )
    wanted = move(first, Status.RUNNING, to, info="self-terminated")
    assert await PgSessions(db).move([wanted], now=LATER) == [wanted]
    for kernel_id in others:
        state = (await fetch(db, STATE, kernel_id))[0]
        assert (state["status"], state["whole"]) == ("TERMINATING", "TERMINATING")
        assert state["reasons"] == {"info": "self-terminated"}
    told = "SELECT kernel_id FROM events WHERE type = 'kernel_terminating' ORDER BY id"
    expected = {*others[:2]} | ({first} if to is Status.TERMINATING else set())
    assert {row["kernel_id"] for row in await fetch(db, told)} == expected


async def test_kernels_that_had_not_started_are_cancelled_with_their_session(db):
    await add_agent(db)
    ids = await insert_session(db, Status.RUNNING, Status.PREPARING, Status.SCHEDULED)
    wanted = move(ids[1], Status.PREPARING, Status.CANCELLED, session_id=ids[0], info="failed-to-start")
    assert await PgSessions(db).move([wanted], now=LATER) == [wanted]
    statuses = [(await fetch(db, STATE, kernel_id))[0]["status"] for kernel_id in ids]
    assert statuses == ["TERMINATING", "CANCELLED", "CANCELLED"]


SHAPES = st.lists(st.sampled_from(sorted(set(Status) - {Status.PENDING})), min_size=1, max_size=3)
STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(Status), st.sampled_from(Status), st.booleans()), max_size=12
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=SHAPES, steps=STEPS)
async def test_a_session_follows_its_kernels_as_the_model_says(parameters, shape, steps):
    """Random moves, half of them naming the true status, against a model of a few lines."""
    async with open_database(parameters, size=1) as db:
        await follow_the_model(db, shape, steps)


async def follow_the_model(db, shape, steps):
    if not await fetch(db, "SELECT 1 FROM agents"):
        await add_agent(db)
    ids = await insert_session(db, *shape)
    model = [[status, 1] for status in shape]
    told = session_status(shape)
    expected_events: Counter[str] = Counter()
    for index, seen, to, truthful in steps:
        kernel = model[index % len(model)]
        if truthful:
            seen = kernel[0]
        wanted = move(ids[index % len(model)], seen, to, kernel[1], session_id=ids[0])
        if to is Status.SCHEDULED or to not in RULES[seen].to:
            continue
        applied = await PgSessions(db).move([wanted], now=LATER)
        assert bool(applied) == (seen is kernel[0])
        if not applied:
            continue
        kernel[0] = to
        kernel[1] += to is Status.RESTARTING
        whole = session_status([status for status, _ in model])
        if to in KERNEL_EVENT:
            expected_events[KERNEL_EVENT[to]] += 1
        if whole is not told and whole in SESSION_EVENT:
            expected_events[SESSION_EVENT[whole]] += 1
        told = whole
        if whole is Status.TERMINATING:
            for sibling in model:
                if (end := sibling_end(sibling[0])) is not None:
                    sibling[0] = end
                    expected_events[KERNEL_EVENT[end]] += 1
            told = session_status([status for status, _ in model])
            if told is not whole and told in SESSION_EVENT:
                expected_events[SESSION_EVENT[told]] += 1
    rows = await fetch(db, "SELECT id, status::text, incarnation FROM kernels WHERE session_id = $1", ids[0])
    assert {row["id"]: [row["status"], row["incarnation"]] for row in rows} == dict(
        zip(ids, model, strict=True)
    )
    whole = (await fetch(db, "SELECT status::text, terminated_at FROM sessions WHERE id = $1", ids[0]))[0]
    assert whole["status"] == told
    assert (whole["terminated_at"] is None) == (told in LIVE)
    events = await fetch(db, "SELECT type FROM events WHERE session_id = $1", ids[0])
    assert Counter(row["type"] for row in events) == expected_events
