"""A new life for a running session: its kernel is started anew in the folder of the old one."""

from collections.abc import Callable
from datetime import datetime

import trio

from ..domain.errors import AgentFailed, Conflict, NotFound, Unavailable
from ..domain.explaining import explain
from ..domain.ids import SessionId
from ..domain.lifecycle import RULES
from ..domain.sessions import Session
from ..domain.status import Status
from ..runtime.failpoint import failpoint
from .hub import POLL, Hub
from .ports import KernelMove, Sessions

#: Beyond the deadline of RESTARTING the outcome is seen in any case, give or take the reaper's round.
MARGIN = 10.0


async def restart(
    sessions: Sessions, hub: Hub, session_id: SessionId, *, now: Callable[[], datetime]
) -> None:
    """RUNNING -> RESTARTING, and wait until it runs again. Refused as `Conflict` in any other status.

    `AgentFailed` when it does not come to run; a caller who does not wait for the answer loses nothing.
    """
    with hub.watch(session_id) as changed:
        session = await _begin(sessions, session_id, now)
        life = session.incarnation
        stay = RULES[Status.RESTARTING].stay
        assert stay is not None
        with trio.move_on_after(stay.total_seconds() + MARGIN):
            while session.status is Status.RESTARTING and session.incarnation == life:
                if hub.stopped:
                    raise Unavailable("The server is stopping; the restart goes on.")
                await changed.wait(POLL)
                session = await _get(sessions, session_id)
    if session.status is Status.RESTARTING and session.incarnation == life:
        raise AgentFailed("restart", timeout=True)
    if session.status is not Status.RUNNING and session.incarnation == life:
        raise AgentFailed("restart", explain(session))


async def _begin(sessions: Sessions, session_id: SessionId, now: Callable[[], datetime]) -> Session:
    """The session as it is once its new life has begun."""
    while True:
        session = await _get(sessions, session_id)
        if session.status is not Status.RUNNING:
            raise Conflict(
                f"Session {session.name!r} is {session.status}; only a running session can be restarted.",
                {"session_id": str(session.id), "status": str(session.status)},
            )
        move = KernelMove(
            kernel_id=session.kernel_id,
            session_id=session.id,
            incarnation=session.incarnation,
            seen=Status.RUNNING,
            to=Status.RESTARTING,
        )
        if await sessions.move([move], now=now()):
            failpoint("restart.after_begin")
            return await _get(sessions, session_id)


async def _get(sessions: Sessions, session_id: SessionId) -> Session:
    session = await sessions.get(session_id)
    if session is None:
        raise NotFound("session")
    return session
