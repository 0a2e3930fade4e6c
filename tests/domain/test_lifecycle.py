from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.domain.lifecycle import (
    RULES,
    IllegalTransition,
    check,
    deadline,
    session_status,
    sibling_end,
)
from backendai_mgr.domain.status import DEAD, LIVE, Status

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LASTING = {Status.PENDING, Status.RUNNING}


def test_every_status_has_a_row():
    assert set(RULES) == set(Status)


@pytest.mark.parametrize("status", sorted(LIVE - LASTING))
def test_every_transitional_status_has_a_deadline_and_a_legal_rescue(status):
    rule = RULES[status]
    assert rule.stay is not None
    assert rule.stay.total_seconds() > 0
    assert rule.rescue is not None
    assert rule.rescue.to in rule.to
    assert rule.rescue.reason
    assert deadline(status, NOW) == NOW + rule.stay


@pytest.mark.parametrize("status", sorted(LASTING | DEAD))
def test_only_pending_running_and_the_dead_may_stay(status):
    assert deadline(status, NOW) is None
    assert RULES[status].rescue is None


def test_the_dead_stay_dead():
    assert all(not RULES[status].to for status in DEAD)


def test_rescues_lead_to_an_end_or_to_a_status_that_may_last():
    for start in Status:
        seen, status = set(), start
        while RULES[status].rescue is not None:
            assert status not in seen, f"{start} is rescued in a circle"
            seen.add(status)
            status = RULES[status].rescue.to
        assert status in DEAD | LASTING


def test_every_live_status_can_reach_death():
    for start in LIVE:
        reached, todo = set(), [start]
        while todo:
            for to in RULES[todo.pop()].to - reached:
                reached.add(to)
                todo.append(to)
        assert reached & DEAD


@pytest.mark.parametrize("seen", sorted(Status))
@pytest.mark.parametrize("to", sorted(Status))
def test_check_is_the_table(seen, to):
    if to in RULES[seen].to:
        check(seen, to)
    else:
        with pytest.raises(IllegalTransition):
            check(seen, to)


@pytest.mark.parametrize(
    ("kernels", "session"),
    [
        (["PENDING"], "PENDING"),
        (["RUNNING"], "RUNNING"),
        (["RUNNING", "PREPARING"], "PREPARING"),
        (["RUNNING", "PULLING"], "PULLING"),
        (["RUNNING", "RESTARTING"], "RESTARTING"),
        (["PENDING", "SCHEDULED"], "PENDING"),
        (["RUNNING", "TERMINATED"], "TERMINATING"),
        (["RUNNING", "TERMINATING"], "TERMINATING"),
        (["RUNNING", "ERROR"], "ERROR"),
        (["CANCELLED", "CANCELLED"], "CANCELLED"),
        (["CANCELLED", "TERMINATED"], "TERMINATED"),
        (["CANCELLED", "PENDING"], "TERMINATING"),
        (["TERMINATED"], "TERMINATED"),
    ],
)
def test_session_follows_from_its_kernels(kernels, session):
    assert session_status(map(Status, kernels)) == session


def test_what_ends_with_a_session_ends_by_the_table():
    for status in Status:
        to = sibling_end(status)
        if to is None:
            assert status in DEAD | {Status.TERMINATING, Status.ERROR}
        else:
            assert to in RULES[status].to & (DEAD | {Status.TERMINATING})


def test_a_session_without_kernels_is_a_mistake():
    with pytest.raises(ValueError, match="at least one"):
        session_status([])


@given(st.lists(st.sampled_from(sorted(Status)), min_size=1, max_size=6))
def test_session_status_ignores_order_and_is_dead_exactly_when_all_kernels_are(kernels):
    status = session_status(kernels)
    assert status == session_status(reversed(kernels))
    assert status == session_status(kernels + kernels)
    assert (status in DEAD) == (set(kernels) <= DEAD)


@given(st.sampled_from(sorted(Status)))
def test_one_kernel_is_its_session(status):
    reserved = {Status.BUILDING, Status.RESIZING, Status.SUSPENDED}
    assert session_status([status]) == (Status.ERROR if status in reserved else status)
