"""The scheduling loop: snapshot, plan, apply. The decision is `scheduling.planner.plan`."""

import logging
from collections.abc import Callable
from datetime import datetime

from ..scheduling.planner import plan
from .hub import Wake
from .ports import EventRow, Scheduling

log = logging.getLogger(__name__)

#: A round happens at least this often; events make it happen at once.
TICK = 10.0
#: Events after which something waiting may fit.
_OPENINGS = frozenset(
    {
        "session_enqueued",
        "session_terminated",
        "session_cancelled",
        "kernel_terminated",
        "kernel_cancelled",
        "agent_started",
        "agent_changed",
    }
)


class Scheduler:
    """Places pending sessions, whenever something changed and every `TICK`."""

    def __init__(self, store: Scheduling, *, now: Callable[[], datetime], scheduled: Wake) -> None:
        self._store = store
        self._now = now
        self._scheduled = scheduled
        self._wake = Wake()
        self._wake.set()

    def on_event(self, event: EventRow) -> None:
        """Plan again when the event may have made room or work."""
        if event.type in _OPENINGS:
            self._wake.set()
        elif event.type in ("session_scheduled", "session_restarting"):
            self._scheduled.set()

    async def run(self) -> None:
        """Rounds for ever. A lost database ends it; its supervisor starts it again."""
        while True:
            await self._wake.wait(TICK)
            await self.round()

    async def round(self) -> int:
        """One round; the number of sessions that were placed."""
        snapshot = await self._store.snapshot(now=self._now())
        if not snapshot.pending:
            return 0
        placed = await self._store.apply(plan(snapshot), now=self._now())
        if placed:
            self._scheduled.set()
            log.info("scheduled %d of %d pending sessions", len(placed), len(snapshot.pending))
        return len(placed)
