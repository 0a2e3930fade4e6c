"""What travels in the agent's RPC calls: specifications, statuses and the codes of its refusals."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Literal
from uuid import UUID

import attrs

from ..domain.status import RUN_ENDED, RunState

#: Modes of runs that go on beside the others, until they end or are interrupted.
TERMINAL, SERVICE = "terminal", "service"
BESIDE = frozenset({TERMINAL, SERVICE})

RefusalCode = Literal[
    "no-such-kernel",
    "kernel-silent",
    "no-such-run",
    "run-conflict",
    "stale-incarnation",
    "stale-epoch",
    "queue-full",
    "kernel-ended",
    "not-ended",
    "bad-request",
    "offset-past-end",
    "no-prompt",
    "no-terminal",
    "no-such-service",
    "no-such-port",
    "service-failed",
    "too-many",
    "no-room",
    "create-failed",
    "no-such-file",
    "is-folder",
    "outside",
    "bad-path",
    "denied",
    "too-large",
    "disk-full",
    "quota-used-up",
    "upload-gap",
    "precondition",
    "exists",
    "target",
    "file-failed",
]


class AgentRefusal(Exception):
    """The agent understood the call and refuses it.

    Travels as FAILURE ``["AgentRefusal", "code: message", ""]``.
    """

    def __init__(self, code: RefusalCode | str, message: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    @classmethod
    def parse(cls, text: str) -> "AgentRefusal":
        """The refusal that the text ``"code: message"`` tells of."""
        code, _, message = text.partition(": ")
        return cls(code, message)


class AgentUnreachable(Exception):
    """No answer from the agent within the call's deadline, or no connection to it."""


@attrs.frozen(kw_only=True)
class KernelSpec:
    """What an agent needs to start a kernel. Slot amounts are decimal text; ``environ`` is the user's.

    ``host_ports`` is the agent's own note: the ports inside, as text, and the public numbers that they have.
    """

    kernel_id: UUID
    session_id: UUID
    incarnation: int
    cluster_id: str
    session_name: str
    image: str
    architecture: str
    slots: dict[str, str]
    environ: dict[str, str] = attrs.Factory(dict)
    bootstrap_script: str | None = None
    preopen_ports: list[int] = attrs.Factory(list)
    host_ports: dict[str, int] = attrs.Factory(dict)


@attrs.frozen(kw_only=True)
class RunSpec:
    """The parsed and defaulted body of a run; ``timeout`` in seconds, None for no limit.

    A query runs ``code``. A batch run executes the command lines ``clean``, ``build`` and ``exec``: None
    skips a step, ``*`` is what the image does there. ``stdin`` is all the input that the run will get;
    without it the run may ask. A terminal is a shell, or ``exec``, on a terminal of its own; a service is
    ``exec``. Both run beside the others and have no ``timeout``.
    """

    mode: Literal["query", "batch", "terminal", "service"] = "query"
    code: str = ""
    timeout: float | None = None
    clean: str | None = None
    build: str | None = None
    exec: str | None = None
    stdin: str | None = None

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of this body; equal bodies are the same run."""
        text = json.dumps(attrs.asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@attrs.frozen(kw_only=True)
class RunOrder:
    """A run to be started, in one life of its kernel. Repeating it is harmless; ``digest`` is the spec's."""

    incarnation: int
    digest: str
    spec: RunSpec

    @classmethod
    def of(cls, incarnation: int, spec: RunSpec) -> "RunOrder":
        return cls(incarnation=incarnation, digest=spec.digest(), spec=spec)


@attrs.frozen(kw_only=True)
class Prompt:
    """What a run asks for; the ``offset`` of its record names it."""

    offset: int
    is_password: bool


@attrs.frozen(kw_only=True)
class RunStatus:
    """A run as its shim tells it. Times in seconds since the epoch, ``end_offset`` in payload bytes.

    ``step`` of a batch run is executed now; ``step_end`` follows the record of the last that ended.
    """

    run_id: str
    incarnation: int
    digest: str
    mode: str
    state: RunState
    exit_code: int | None = None
    reason: str = ""
    end_offset: int = 0
    queued_at: float
    started_at: float | None = None
    ended_at: float | None = None
    step: str | None = None
    step_end: int = 0
    prompt: Prompt | None = None

    @property
    def ended(self) -> bool:
        return self.state in RUN_ENDED


#: Most runs of one answer.
MAX_RUNS = 1000


@attrs.frozen(kw_only=True)
class RunPlace:
    """A place in a list of runs, the newest of which come first: right after this one."""

    queued_at: float
    run_id: str


def page_of(runs: Iterable[RunStatus], *, limit: int, after: RunPlace | None) -> list[RunStatus]:
    """At most *limit* runs, the newest first, from a place on."""
    newest = sorted(runs, key=_age, reverse=True)
    if after is not None:
        newest = [run for run in newest if _age(run) < (after.queued_at, after.run_id)]
    return newest[:limit]


def _age(run: RunStatus) -> tuple[float, str]:
    return run.queued_at, run.run_id


@attrs.frozen(kw_only=True)
class Started:
    """The answer to `start_run`: whether this very call created the run."""

    created: bool
    run: RunStatus


@attrs.frozen(kw_only=True)
class Output:
    """A piece of a run's output and the run's status when it was read."""

    records: list[list[Any]]
    next_offset: int
    run: RunStatus
