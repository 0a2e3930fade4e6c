"""The one table of statuses: where each may go, who moves it on, by when, and what happens otherwise.

Everything about transitions lives here. Writers guard their UPDATE with the status they leave and the
kernel's incarnation; the reaper reads the deadlines.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import attrs

from .status import DEAD, Status


class IllegalTransition(Exception):
    """A status may not be left for that other one: a bug of the writer, nothing was changed."""


@attrs.frozen(kw_only=True)
class Rescue:
    """What the reaper does when the deadline has passed."""

    to: Status
    reason: str


@attrs.frozen(kw_only=True)
class Rule:
    """One status: its successors, its mover, its longest stay, and the rescue when that has passed."""

    to: frozenset[Status]
    mover: str
    stay: timedelta | None = None
    rescue: Rescue | None = None


S = Status


def _rule(*to: Status, mover: str, stay: float | None = None, rescue: Rescue | None = None) -> Rule:
    return Rule(
        to=frozenset(to), mover=mover, stay=None if stay is None else timedelta(seconds=stay), rescue=rescue
    )


_UNKNOWN = Rescue(to=S.TERMINATED, reason="unknown")
_RESERVED = _rule(S.TERMINATED, mover="nobody enters it", stay=60, rescue=_UNKNOWN)

#: Only PENDING and RUNNING may last; an unlisted successor is illegal; dead statuses have none.
RULES: Mapping[Status, Rule] = {
    S.PENDING: _rule(S.SCHEDULED, S.CANCELLED, mover="scheduler"),
    S.SCHEDULED: _rule(
        S.PREPARING, S.PENDING, S.CANCELLED, S.TERMINATED,
        mover="starter", stay=30, rescue=Rescue(to=S.PENDING, reason="start-timeout"),
    ),
    S.PREPARING: _rule(
        S.RUNNING, S.PULLING, S.CANCELLED, S.TERMINATED,
        mover="agent's report", stay=120, rescue=Rescue(to=S.CANCELLED, reason="failed-to-start"),
    ),
    S.PULLING: _rule(
        S.PREPARING, S.RUNNING, S.CANCELLED, S.TERMINATED,
        mover="agent's report", stay=1800, rescue=Rescue(to=S.CANCELLED, reason="failed-to-start"),
    ),
    S.RUNNING: _rule(
        S.TERMINATING, S.TERMINATED, S.RESTARTING, S.ERROR, mover="owner, limits, agent's report"
    ),
    S.RESTARTING: _rule(
        S.RUNNING, S.TERMINATING, S.TERMINATED, S.ERROR,
        mover="starter, agent's report",
        stay=120, rescue=Rescue(to=S.TERMINATING, reason="restart-timeout"),
    ),
    S.TERMINATING: _rule(
        S.TERMINATED, S.ERROR,
        mover="agent's report", stay=60, rescue=Rescue(to=S.TERMINATED, reason="hang-timeout"),
    ),
    S.ERROR: _rule(S.TERMINATED, mover="reaper", stay=60, rescue=_UNKNOWN),
    S.BUILDING: _RESERVED,
    S.RESIZING: _RESERVED,
    S.SUSPENDED: _RESERVED,
    S.TERMINATED: _rule(mover="nobody"),
    S.CANCELLED: _rule(mover="nobody"),
}  # fmt: skip


def check(seen: Status, to: Status) -> None:
    """Raise `IllegalTransition` unless the table lets *seen* be left for *to*."""
    if to not in RULES[seen].to:
        raise IllegalTransition(f"{seen} -> {to}")


def deadline(status: Status, now: datetime) -> datetime | None:
    """When the reaper rescues a kernel that enters *status* now; None when it may stay."""
    stay = RULES[status].stay
    return None if stay is None else now + stay


#: Progress of a start; a session is as far as its slowest kernel.
_PROGRESS = (S.PENDING, S.SCHEDULED, S.PULLING, S.PREPARING, S.RESTARTING, S.RUNNING)


def session_status(kernels: Iterable[Status]) -> Status:
    """A session's status from those of its kernels (at least one).

    Dead when all are (CANCELLED only when none ever ran), ERROR when one is, on its way out as soon as one
    kernel is gone or going, and otherwise as far as the slowest.
    """
    statuses = set(kernels)
    if not statuses:
        raise ValueError("a session has at least one kernel")
    if statuses <= DEAD:
        return S.CANCELLED if statuses == {S.CANCELLED} else S.TERMINATED
    if S.ERROR in statuses:
        return S.ERROR
    if S.TERMINATING in statuses or statuses & DEAD:
        return S.TERMINATING
    return next((status for status in _PROGRESS if status in statuses), S.ERROR)


def sibling_end(status: Status) -> Status | None:
    """Where a kernel in *status* goes once another one of its session is gone; None: it is on its way."""
    if status in DEAD or status in (S.TERMINATING, S.ERROR):
        return None
    return next(to for to in (S.TERMINATING, S.CANCELLED, S.TERMINATED) if to in RULES[status].to)


#: The session event that entering a status publishes (api-sessions §5.9, and session_restarting, which tells
#: those who remember the old life); absent: none.
SESSION_EVENT: Mapping[Status, str] = {
    S.SCHEDULED: "session_scheduled",
    S.PREPARING: "session_preparing",
    S.RUNNING: "session_started",
    S.RESTARTING: "session_restarting",
    S.CANCELLED: "session_cancelled",
    S.TERMINATING: "session_terminating",
    S.TERMINATED: "session_terminated",
}
#: The same for kernels.
KERNEL_EVENT: Mapping[Status, str] = {
    S.PREPARING: "kernel_preparing",
    S.PULLING: "kernel_pulling",
    S.RUNNING: "kernel_started",
    S.TERMINATING: "kernel_terminating",
    S.TERMINATED: "kernel_terminated",
    S.CANCELLED: "kernel_cancelled",
}
