from datetime import UTC, datetime, timedelta
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.domain.slots import Slots
from backendai_mgr.scheduling.planner import plan
from backendai_mgr.scheduling.snapshot import AgentView, OwnerView, PendingSession, Snapshot, TroubledAgent

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IMAGE = "local/python:3.11"


def session(n=1, **changes):
    base = PendingSession(
        id=UUID(int=n),
        owner="K",
        scaling_group="default",
        architecture="x86_64",
        image=IMAGE,
        slots=Slots.parse({"cpu": 1, "mem": "64m"}),
        created_at=NOW,
        starts_at=None,
        retries=0,
    )
    return attrs.evolve(base, **changes)


def agent(name="i-1", cpu=4, **changes):
    base = AgentView(
        id=name,
        addr=f"tcp://{name}:6001",
        scaling_group="default",
        architecture="x86_64",
        capacity=Slots.parse({"cpu": cpu, "mem": "8g"}),
        occupied=Slots(),
        images=frozenset({IMAGE}),
    )
    return attrs.evolve(base, **changes)


def owner(**changes):
    base = OwnerView(live_sessions=0, max_sessions=0, occupied=Slots(), limits=Slots())
    return attrs.evolve(base, **changes)


def decide(sessions, agents, owners=None):
    return plan(Snapshot(now=NOW, pending=sessions, agents=agents, owners=owners or {"K": owner()}))


def test_a_session_goes_where_it_fits():
    (assignment,) = decide([session()], [agent()]).assignments
    assert assignment.agent_id == "i-1"
    assert assignment.agent_addr == "tcp://i-1:6001"


@pytest.mark.parametrize(
    ("pending", "agents", "owners", "info", "word"),
    [
        (session(), [], None, "no-available-instances", "No agent is alive"),
        (session(scaling_group="gpu"), [agent()], None, "no-available-instances", "'gpu'"),
        (session(architecture="aarch64"), [agent()], None, "no-available-instances", "for aarch64"),
        (session(image="local/r:4"), [agent()], None, "no-available-instances", "local/r:4"),
        (session(slots=Slots.parse({"cpu": 9})), [agent()], None, "no-available-instances", "large enough"),
        (session(), [agent(occupied=Slots.parse({"cpu": 4}))], None, "no-available-instances", "busy"),
        (session(starts_at=NOW + timedelta(1)), [agent()], None, "predicate-checks-failed", "starts at"),
        (
            session(),
            [agent()],
            {"K": owner(live_sessions=5, max_sessions=5)},
            "predicate-checks-failed",
            "5 concurrent sessions",
        ),
        (
            session(),
            [agent()],
            {"K": owner(occupied=Slots.parse({"cpu": 2}), limits=Slots.parse({"cpu": 2}))},
            "predicate-checks-failed",
            "quota is exceeded",
        ),
    ],
)
def test_a_session_that_waits_says_why(pending, agents, owners, info, word):
    result = decide([pending], agents, owners)
    assert not result.assignments
    (waiting,) = result.waiting
    assert waiting.info == info
    assert word in waiting.sentence


def test_one_that_does_not_fit_does_not_hold_up_the_next():
    result = decide([session(1, slots=Slots.parse({"cpu": 9})), session(2)], [agent()])
    assert [a.session_id for a in result.assignments] == [UUID(int=2)]


def test_an_agent_with_unused_accelerators_is_kept_for_those_who_need_them():
    gpu = agent("i-gpu", cpu=64, capacity=Slots.parse({"cpu": 64, "mem": "8g", "cuda.device": 1}))
    (assignment,) = decide([session()], [gpu, agent("i-cpu")]).assignments
    assert assignment.agent_id == "i-cpu"


def test_concurrency_counts_what_the_same_round_places():
    result = decide([session(n) for n in range(4)], [agent()], {"K": owner(max_sessions=2)})
    assert [a.session_id.int for a in result.assignments] == [0, 1]
    assert len(result.waiting) == 2


slots = st.builds(
    lambda cpu, mem: Slots.parse({"cpu": cpu, "mem": mem}), st.integers(0, 6), st.integers(0, 10)
)
snapshots = st.builds(
    lambda wanted, capacities, limit: Snapshot(
        now=NOW,
        pending=[session(n, slots=s) for n, s in enumerate(wanted)],
        agents=[agent(f"i-{n}", capacity=c) for n, c in enumerate(capacities)],
        owners={"K": owner(max_sessions=limit)},
    ),
    st.lists(slots, max_size=12),
    st.lists(slots, max_size=4),
    st.integers(0, 5),
)


@given(snapshots)
def test_a_plan_covers_everyone_once_and_overcommits_nobody(snapshot):
    result = plan(snapshot)
    named = [a.session_id for a in result.assignments] + [w.session_id for w in result.waiting]
    assert sorted(named) == sorted(s.id for s in snapshot.pending)
    for view in snapshot.agents:
        total = Slots()
        for assignment in result.assignments:
            if assignment.agent_id == view.id:
                total += assignment.slots
        assert total <= view.capacity
    limit = snapshot.owners["K"].max_sessions
    assert limit == 0 or len(result.assignments) <= limit
    assert plan(snapshot) == result


def test_an_agent_that_cannot_be_talked_to_is_named_with_the_reason():
    troubled = [
        TroubledAgent(id=f"i-{number}", scaling_group=group, trouble="it hung up.")
        for number, group in enumerate(["default", "gpu", "default", "default", "default"])
    ]
    (waiting,) = plan(
        Snapshot(now=NOW, pending=[session()], agents=[], owners={"K": owner()}, troubled=troubled)
    ).waiting
    assert waiting.sentence == (
        "No agent is alive in scaling group 'default'. Agent i-0 is not connected: it hung up."
        " Agent i-2 is not connected: it hung up. Agent i-3 is not connected: it hung up."
    )
