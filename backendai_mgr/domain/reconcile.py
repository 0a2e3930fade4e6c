"""What to do when "should" (kernel rows) and "does" (an agent's report) meet. Pure, repeatable.

A kernel is *missing* when a report that must know it does not show it: one with another ``boot``, or with a
``seq`` not below that of the agent's answer to create.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import attrs

from .sessions import KernelRow
from .status import STARTING, KernelState, Status


@attrs.frozen(kw_only=True)
class Seen:
    """A kernel in a report."""

    id: UUID
    incarnation: int
    cluster_id: str
    state: KernelState
    reason: str = ""
    exit_code: int | None = None
    #: What it offers, as it is stored.
    service_ports: Sequence[Mapping[str, Any]] = ()


@attrs.frozen(kw_only=True)
class Change:
    """Move this kernel, which is ``row.status`` now, to ``to``. ``service_ports`` None: as they are."""

    row: KernelRow
    to: Status
    reason: str
    exit_code: int | None = None
    service_ports: Sequence[Mapping[str, Any]] | None = None


@attrs.frozen(kw_only=True)
class Reconciliation:
    """Row changes to store, and kernels by what they are.

    ``destroy``: to be ended now; ``ended``: to be acknowledged once the changes are stored; ``unknown``: ours
    by cluster id, but without a row; ``foreign``: of another cluster, to be left alone.
    """

    changes: Sequence[Change]
    destroy: Sequence[Seen]
    ended: Sequence[Seen]
    unknown: Sequence[Seen]
    foreign: Sequence[Seen]


def reconcile(
    rows: Sequence[KernelRow],
    known: Collection[UUID],
    seen: Sequence[Seen],
    *,
    boot: str,
    seq: int,
    now: datetime,
    cluster_id: str,
) -> Reconciliation:
    """Compare the kernels that should be on an agent with those that it reports.

    *rows*: kernels assigned to this agent, neither dead nor PENDING, read after the report arrived. *known*:
    the reported ids that have a row of any kind.
    """
    current: dict[tuple[UUID, int], KernelRow] = {(row.kernel_id, row.incarnation): row for row in rows}
    restarting: dict[UUID, int] = {
        row.kernel_id: row.incarnation for row in rows if row.status is Status.RESTARTING
    }
    changes: list[Change] = []
    destroy: list[Seen] = []
    ended: list[Seen] = []
    unknown: list[Seen] = []
    foreign: list[Seen] = []
    for kernel in seen:
        row = current.pop((kernel.id, kernel.incarnation), None)
        if kernel.incarnation < restarting.get(kernel.id, 0) or (
            row is not None and _starter_knows(row, kernel)
        ):
            # The next create takes over what this life leaves; to end or acknowledge it would remove that.
            continue
        if kernel.state is KernelState.ENDED:
            ended.append(kernel)
            if row is not None:
                changes.append(_ended(row, kernel.reason or "self-terminated", kernel.exit_code))
        elif row is not None:
            if row.status is Status.TERMINATING:
                destroy.append(kernel)
            elif kernel.state is KernelState.RUNNING and row.status in _AWAIT_START:
                changes.append(
                    Change(row=row, to=Status.RUNNING, reason="", service_ports=kernel.service_ports)
                )
        elif kernel.id in known:
            destroy.append(kernel)
        elif kernel.cluster_id == cluster_id:
            unknown.append(kernel)
        else:
            foreign.append(kernel)
    changes += [
        _ended(row, "already-terminated", None)
        for row in current.values()
        if _must_be_known(row, boot, seq, now)
    ]
    return Reconciliation(changes=changes, destroy=destroy, ended=ended, unknown=unknown, foreign=foreign)


FAILED_TO_START = "failed-to-start"
_AWAIT_START = frozenset({Status.PREPARING, Status.PULLING, Status.RESTARTING})


def _starter_knows(row: KernelRow, kernel: Seen) -> bool:
    """Whether a start that failed is left to the starter, which is told why and may try again."""
    return (
        kernel.state is KernelState.ENDED
        and kernel.reason == FAILED_TO_START
        and row.status in (Status.PREPARING, Status.RESTARTING)
        and row.created_boot is None
    )


def _ended(row: KernelRow, reason: str, exit_code: int | None) -> Change:
    if row.status in STARTING:
        return Change(row=row, to=Status.CANCELLED, reason=FAILED_TO_START, exit_code=exit_code)
    if row.status is Status.TERMINATING:
        reason = ""  # it keeps the reason it was told to end for
    return Change(row=row, to=Status.TERMINATED, reason=reason, exit_code=exit_code)


def _must_be_known(row: KernelRow, boot: str, seq: int, now: datetime) -> bool:
    """Whether this report would show the kernel if it existed."""
    if row.status is Status.SCHEDULED:
        return False
    if row.created_boot is not None and row.created_seq is not None:
        return row.created_boot != boot or seq >= row.created_seq
    if row.status in _AWAIT_START:
        # Whether create was carried out is not known; its deadline decides.
        return row.deadline is not None and now >= row.deadline
    return True  # an earlier report has shown it
