"""Ending everything: what a stop of the local mode does to its sessions."""

import logging
from collections.abc import Callable
from datetime import datetime

import trio

from ..domain.sessions import Session
from ..domain.status import DEAD, LIVE, STARTING, Status
from .hub import POLL, Hub
from .ports import KernelMove, Sessions

log = logging.getLogger(__name__)

REASON = "manager-shutdown"


async def end_all_sessions(
    sessions: Sessions, hub: Hub, *, now: Callable[[], datetime], timeout: float
) -> int:
    """End every live session and see them end, for at most ``timeout`` seconds; how many are left.

    What is left is ended by the agents, whose kernels are told to go as well.
    """
    left: list[Session] = list(await sessions.live_owned())
    with trio.move_on_after(timeout):
        while left:
            with hub.watch(left[0].id) as changed:
                moves = [move for session in left if (move := _ending(session)) is not None]
                if moves:
                    await sessions.move(moves, now=now())
                left = [s for s in await sessions.live_owned() if s.status in LIVE]
                if left and not any(_ending(session) for session in left):
                    await changed.wait(POLL / 10)
                    left = list(await sessions.live_owned())
    return len(left)


def _ending(session: Session) -> KernelMove | None:
    """The move that starts the end; None when it is under way."""
    if session.status in DEAD or session.status in (Status.TERMINATING, Status.ERROR):
        return None
    to = Status.CANCELLED if session.status in STARTING | {Status.PENDING} else Status.TERMINATING
    return KernelMove(
        kernel_id=session.kernel_id,
        session_id=session.id,
        incarnation=session.incarnation,
        seen=session.status,
        to=to,
        info=REASON,
    )
