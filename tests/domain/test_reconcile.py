from datetime import UTC, datetime, timedelta
from uuid import UUID

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.domain.lifecycle import RULES
from backendai_mgr.domain.reconcile import Seen, reconcile
from backendai_mgr.domain.sessions import KernelRow
from backendai_mgr.domain.status import DEAD, KernelState, Status

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ID = UUID(int=1)
ASSIGNED = sorted(set(Status) - DEAD - {Status.PENDING, Status.BUILDING, Status.RESIZING, Status.SUSPENDED})


def row(status="RUNNING", *, incarnation=1, boot="b", seq=5, overdue=False, id=ID):
    return KernelRow(
        kernel_id=id,
        session_id=id,
        incarnation=incarnation,
        status=Status(status),
        status_changed=NOW,
        created_boot=boot,
        created_seq=seq,
        deadline=NOW if overdue else NOW + timedelta(seconds=60),
    )


def seen(state="running", *, incarnation=1, cluster="c", reason="", exit_code=None, id=ID):
    return Seen(
        id=id,
        incarnation=incarnation,
        cluster_id=cluster,
        state=KernelState(state),
        reason=reason,
        exit_code=exit_code,
    )


def run(rows, kernels, *, boot="b", seq=9, known=(ID,)):
    return reconcile(rows, known, kernels, boot=boot, seq=seq, now=NOW, cluster_id="c")


def outcome(*args, **kwargs):
    return [(change.to, change.reason) for change in run(*args, **kwargs).changes]


@pytest.mark.parametrize(
    ("rows", "kernels", "expected"),
    [
        ([row("PREPARING")], [seen("running")], [("RUNNING", "")]),
        ([row("PULLING")], [seen("running")], [("RUNNING", "")]),
        ([row("RESTARTING")], [seen("running")], [("RUNNING", "")]),
        ([row("PREPARING")], [seen("starting")], []),
        ([row("RUNNING")], [seen("running")], []),
        ([row("TERMINATING")], [seen("running")], []),
        ([row("PREPARING")], [seen("ended", reason="x")], [("CANCELLED", "failed-to-start")]),
        ([row("RUNNING")], [seen("ended", reason="self-terminated")], [("TERMINATED", "self-terminated")]),
        ([row("RUNNING")], [seen("ended")], [("TERMINATED", "self-terminated")]),
        ([row("TERMINATING")], [seen("ended", reason="user-requested")], [("TERMINATED", "")]),
        ([row("RUNNING")], [], [("TERMINATED", "already-terminated")]),
        ([row("TERMINATING")], [], [("TERMINATED", "")]),
        ([row("PREPARING")], [], [("CANCELLED", "failed-to-start")]),
        ([row("SCHEDULED")], [], []),
        ([row("SCHEDULED", boot=None, seq=None)], [], []),
        # create has not been answered: nothing is known until its deadline
        ([row("PREPARING", boot=None, seq=None)], [], []),
        ([row("PREPARING", boot=None, seq=None, overdue=True)], [], [("CANCELLED", "failed-to-start")]),
        # a report showed it running, the answer to create was never stored
        ([row("RUNNING", boot=None, seq=None)], [], [("TERMINATED", "already-terminated")]),
        # a start that failed before its create was answered is told to the starter, which may try again
        ([row("PREPARING", boot=None, seq=None)], [seen("ended", reason="failed-to-start")], []),
        ([row("RESTARTING", boot=None, seq=None)], [seen("ended", reason="failed-to-start")], []),
        (
            [row("RESTARTING", boot=None, seq=None)],
            [seen("ended", reason="self-terminated")],
            [("TERMINATED", "self-terminated")],
        ),
        # the end of the life before is not that of the next
        ([row("RESTARTING", incarnation=2, boot=None, seq=None)], [seen("ended")], []),
        ([row("RESTARTING", incarnation=2, boot=None, seq=None)], [seen("running")], []),
        ([row("RESTARTING", incarnation=2)], [seen("running", incarnation=2)], [("RUNNING", "")]),
        # an older incarnation is another life
        (
            [row("RUNNING", incarnation=2)],
            [seen("ended", incarnation=1)],
            [("TERMINATED", "already-terminated")],
        ),
    ],
)
def test_rows_follow_reports(rows, kernels, expected):
    assert outcome(rows, kernels) == expected


@pytest.mark.parametrize(
    ("boot", "seq", "missing"),
    [("b", 4, False), ("b", 5, True), ("b", 6, True), ("other", 0, True)],
)
def test_only_a_report_that_must_know_a_kernel_can_miss_it(boot, seq, missing):
    assert bool(outcome([row("RUNNING", boot="b", seq=5)], [], boot=boot, seq=seq)) == missing


def test_exit_code_is_kept():
    (change,) = run([row()], [seen("ended", reason="self-terminated", exit_code=-9)]).changes
    assert change.exit_code == -9


def test_what_should_not_live_is_destroyed():
    assert run([row("TERMINATING")], [seen()]).destroy
    assert run([], [seen()]).destroy, "its row is dead or PENDING"
    assert run([row(incarnation=2)], [seen(incarnation=1)]).destroy, "an older life"


@pytest.mark.parametrize("state", ["starting", "running", "ended"])
def test_the_life_before_a_restart_is_left_to_its_successor(state):
    result = run([row("RESTARTING", incarnation=2, boot=None, seq=None)], [seen(state)])
    assert not result.destroy
    assert not result.ended, "acknowledged, its files would go"
    assert run([row("TERMINATING", incarnation=2)], [seen("ended")]).ended
    assert run([row("TERMINATING", incarnation=2)], [seen("running")]).destroy


def test_kernels_without_a_row_are_told_apart_by_their_cluster():
    other = UUID(int=7)
    result = run([], [seen(id=other), seen(id=ID, cluster="elsewhere")], known=())
    assert [kernel.id for kernel in result.unknown] == [other]
    assert [kernel.id for kernel in result.foreign] == [ID]
    assert not result.destroy


def test_ended_kernels_are_acknowledged_whoever_they_are():
    result = run([], [seen("ended"), seen("ended", id=UUID(int=9), cluster="x")], known=())
    assert len(result.ended) == 2


rows_strategy = st.lists(
    st.builds(
        row,
        status=st.sampled_from(ASSIGNED),
        incarnation=st.integers(1, 3),
        boot=st.sampled_from(["b", "a", None]),
        seq=st.integers(0, 10),
        id=st.integers(1, 5).map(lambda n: UUID(int=n)),
    ),
    unique_by=lambda r: r.kernel_id,
)
seen_strategy = st.lists(
    st.builds(
        seen,
        state=st.sampled_from(["starting", "running", "ended"]),
        incarnation=st.integers(1, 3),
        id=st.integers(1, 7).map(lambda n: UUID(int=n)),
    ),
    unique_by=lambda s: (s.id, s.incarnation),
)


@given(rows_strategy, seen_strategy)
def test_changes_are_legal_single_and_stable(rows, kernels):
    """Each change is in the table, no row changes twice, and applying them all leaves nothing to change."""
    result = run(rows, kernels, known={s.id for s in kernels})
    by_id = {change.row.kernel_id: change for change in result.changes}
    assert len(by_id) == len(result.changes)
    assert all(change.to in RULES[change.row.status].to for change in result.changes)
    import attrs

    after = [attrs.evolve(r, status=by_id[r.kernel_id].to) if r.kernel_id in by_id else r for r in rows]
    after = [r for r in after if r.status not in DEAD]
    assert not run(after, kernels, known={s.id for s in kernels}).changes
    living = {(s.id, s.incarnation) for s in kernels if s.state is not KernelState.ENDED}
    wanted = {(r.kernel_id, r.incarnation) for r in rows if r.status is not Status.TERMINATING}
    followed = {
        (r.kernel_id, life) for r in rows if r.status is Status.RESTARTING for life in range(r.incarnation)
    }
    assert {(s.id, s.incarnation) for s in result.destroy} == living - wanted - followed


def test_what_a_kernel_offers_is_stored_when_it_comes_to_run():
    ports = ({"name": "http", "protocol": "http", "container_ports": [8000], "host_ports": [30000]},)
    running = attrs.evolve(seen("running"), service_ports=ports)
    (change,) = run([row("PREPARING")], [running]).changes
    assert change.service_ports == ports
    (change,) = run([row("RUNNING")], [attrs.evolve(seen("ended"), service_ports=ports)]).changes
    assert change.service_ports is None
