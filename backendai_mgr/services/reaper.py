"""The rescuer of every transitional status: moves on what has stayed past its deadline (domain.lifecycle)."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

import trio

from ..domain.lifecycle import RULES, Rescue
from ..domain.sessions import KernelRow
from ..domain.status import Status
from .ports import KernelMove, Scheduling, Sessions

log = logging.getLogger(__name__)

TICK = 2.0
BATCH = 200


class Reaper:
    """Ends or re-queues kernels whose deadline has passed, and those whose agent stays lost."""

    def __init__(
        self,
        scheduling: Scheduling,
        sessions: Sessions,
        *,
        lost_timeout: float,
        now: Callable[[], datetime],
    ) -> None:
        self._scheduling = scheduling
        self._sessions = sessions
        self._lost_timeout = timedelta(seconds=lost_timeout)
        self._now = now

    async def run(self) -> None:
        """Rescue for ever. A lost database ends it; its supervisor starts it again."""
        while True:
            await self.round()
            await trio.sleep(TICK)

    async def round(self) -> int:
        """One round; the number of kernels that were moved on."""
        now = self._now()
        overdue = await self._scheduling.overdue(now=now, limit=BATCH)
        moves = [_move(row, rescue) for row in overdue if (rescue := RULES[row.status].rescue) is not None]
        abandoned = await self._scheduling.abandoned(lost_before=now - self._lost_timeout, limit=BATCH)
        moves += [_move(row, Rescue(to=Status.TERMINATED, reason="agent-lost")) for row in abandoned]
        moved = await self._sessions.move(moves, now=now) if moves else []
        for move in moved:
            log.warning(
                "rescued from %s to %s: %s",
                move.seen,
                move.to,
                move.info,
                extra={"session": str(move.session_id), "kernel": str(move.kernel_id)},
            )
        return len(moved)


def _move(row: KernelRow, rescue: Rescue) -> KernelMove:
    return KernelMove(
        kernel_id=row.kernel_id,
        session_id=row.session_id,
        incarnation=row.incarnation,
        seen=row.status,
        to=rescue.to,
        info=rescue.reason,
    )
