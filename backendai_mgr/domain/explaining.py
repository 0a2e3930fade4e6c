"""What a session waits for, or why it ended, in sentences. The one table of reasons is here."""

import signal
from collections.abc import Mapping

from .sessions import Session
from .status import Status

#: Reason of an end -> the sentence about it. ``{how}`` is the exit code or signal, where one is known.
ENDINGS: Mapping[str, str] = {
    "user-requested": "It was ended as its owner asked.",
    "force-terminated": "It was ended by force, as an administrator asked.",
    "self-terminated": "It ended by itself{how}.",
    "task-finished": "Its task was finished.",
    "exec-timeout": "A run passed its time limit and could not be interrupted, so that the kernel was ended.",
    "out-of-memory": "It used more memory than it was given, and was killed for it.",
    "lifetime-exceeded": "It had run for as long as its agent lets a session run.",
    "idle-timeout": "Nobody had used it for as long as a session may be idle.",
    "lost": "Its kernel died together with the process that looks after it{how}.",
    "already-terminated": "Its agent no longer has its kernel, and cannot tell how that ended.",
    "agent-lost": "Its agent was not heard of for too long.",
    "leash": "Its kernel was ended because no agent had looked after it for too long.",
    "control-lost": "Its interpreter closed the connection that it is controlled by, and was ended.",
    "terminated": "The process that looks after its kernel was told to end{how}.",
    "restarted": "It made room for its next life.",
    "manager-shutdown": "The whole system was stopped.",
    "agent-termination": "Its agent was told to end all kernels.",
    "failed-to-start": "It could not be started.",
    "start-timeout": "Its interpreter did not come up in time.",
    "restart-timeout": "It did not come up again in time after a restart.",
    "pending-timeout": "It had waited for a place for too long.",
    "hang-timeout": "It was told to end, but no agent confirmed its end in time.",
    "session-terminated": "It was over for the manager, and its agent was told so.",
    "unknown": "Nobody knows why.",
}


def explain(session: Session) -> str:
    """What the session waits for, or why it ended, in a sentence or two."""
    stored = str(session.reasons.get("sentence", ""))
    match session.status:
        case Status.PENDING:
            return stored or "It waits for the scheduler's next round."
        case Status.SCHEDULED | Status.PREPARING:
            return f"It is being started on agent {session.agent_id}."
        case Status.PULLING:
            return f"Agent {session.agent_id} is fetching the image {session.image}."
        case Status.RUNNING:
            return "It is running."
        case Status.RESTARTING:
            return f"It is being restarted on agent {session.agent_id}."
        case Status.TERMINATING:
            return f"{_ending(session)} Agent {session.agent_id} is stopping it."
        case Status.TERMINATED | Status.CANCELLED:
            return _ending(session)
        case _:
            return f"Its status is {session.status}. {_ending(session)}"


def _ending(session: Session) -> str:
    """Why the session ends or has ended."""
    reason = str(session.reasons.get("info", "")) or "unknown"
    known = ENDINGS.get(reason)
    sentence = f"The reason was: {reason}." if known is None else known.format(how=_how(session.exit_code))
    stored = str(session.reasons.get("sentence", "")).strip()
    if not stored:
        return sentence
    return f"{sentence.removesuffix('.')}: {stored}" + ("" if stored.endswith((".", "!", "?")) else ".")


def _how(exit_code: int | None) -> str:
    """An exit code, or a signal (negative), as the end of a sentence; empty when it is unknown."""
    if exit_code is None:
        return ""
    if exit_code >= 0:
        return f", with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        return f", killed by signal {-exit_code}"
    return f", killed by {name} (signal {-exit_code})"
