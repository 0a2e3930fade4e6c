"""Statuses and the named sets of them. The names are the API's (api-sessions §6.1)."""

import enum


class Status(enum.StrEnum):
    """Status of a kernel, and of the session that its kernels make up."""

    PENDING = "PENDING"
    SCHEDULED = "SCHEDULED"
    PREPARING = "PREPARING"
    BUILDING = "BUILDING"
    PULLING = "PULLING"
    RUNNING = "RUNNING"
    RESTARTING = "RESTARTING"
    RESIZING = "RESIZING"
    SUSPENDED = "SUSPENDED"
    TERMINATING = "TERMINATING"
    TERMINATED = "TERMINATED"
    ERROR = "ERROR"
    CANCELLED = "CANCELLED"


#: Terminal: never left, its name can be used again, default look-ups do not see it.
DEAD = frozenset({Status.TERMINATED, Status.CANCELLED})
LIVE = frozenset(Status) - DEAD
#: Holds an agent's resources.
OCCUPIES_AGENT = frozenset(Status) - DEAD - {Status.PENDING}
#: An agent has been told, or is about to be told, to start this kernel.
STARTING = frozenset({Status.SCHEDULED, Status.PREPARING, Status.PULLING})


class AgentStatus(enum.StrEnum):
    """Status of an agent. UPDATING and UNHEALTHY are ours."""

    ALIVE = "ALIVE"
    LOST = "LOST"
    RESTARTING = "RESTARTING"
    TERMINATED = "TERMINATED"
    UPDATING = "UPDATING"
    UNHEALTHY = "UNHEALTHY"


#: Nobody is at work under this agent's name.
GONE = frozenset({AgentStatus.LOST, AgentStatus.TERMINATED})


class RunState(enum.StrEnum):
    """State of a run; the shim alone moves it."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING_INPUT = "waiting-input"
    FINISHED = "finished"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LOST = "lost"


RUN_ENDED = frozenset({RunState.FINISHED, RunState.TIMEOUT, RunState.CANCELLED, RunState.LOST})


class KernelState(enum.StrEnum):
    """What an agent reports of a kernel that exists, or existed and is not yet acknowledged as ended."""

    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"
