"""One run of a kernel: what was asked for, how far it has come, and how its request is checked."""

from __future__ import annotations

import enum
import time
from collections import OrderedDict
from typing import Any, NamedTuple, NotRequired, TypedDict

from backendai_mgr.shim.digest import sha256

STEPS = ("clean", "build", "exec")
TERMINAL, SERVICE = "terminal", "service"
#: Modes of runs that do not wait for the interpreter, nor have it wait for them.
BESIDE = (TERMINAL, SERVICE)
MAX_STDIN = 1 << 20  # characters
MAX_ANSWERS = 16  # that are known again
_RUN_ID_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


class RunState(enum.StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    WAITING_INPUT = "waiting-input"
    FINISHED = "finished"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LOST = "lost"

    @property
    def ended(self) -> bool:
        return self in _ENDED


_ENDED = frozenset({RunState.FINISHED, RunState.TIMEOUT, RunState.CANCELLED, RunState.LOST})
# What a run may become.  It waits in the queue, runs (and may ask for input meanwhile), and ends once.
TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.QUEUED: frozenset({RunState.RUNNING, RunState.CANCELLED, RunState.LOST}),
    RunState.RUNNING: frozenset({RunState.WAITING_INPUT, *_ENDED}),
    RunState.WAITING_INPUT: frozenset({RunState.RUNNING, RunState.TIMEOUT, RunState.LOST}),
    **dict.fromkeys(_ENDED, frozenset()),
}


class Refused(Exception):
    """A request that changes nothing; `code` is one of the protocol's error codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Instant(NamedTuple):
    wall: float
    mono: float

    @classmethod
    def now(cls) -> Instant:
        return cls(time.time(), time.monotonic())


class Prompt(TypedDict):
    """What a run asks for.  `offset` of its record in the log names it."""

    offset: int
    is_password: bool


class RunStatus(TypedDict):
    """A run as every hop tells it.  Times are unix seconds; `end_offset` counts the bytes logged so far.

    `step` is the one that is being executed, `step_end` the offset after the record of the last that ended.
    """

    run_id: str
    incarnation: int
    digest: str
    mode: str
    state: str
    exit_code: int | None
    reason: str
    end_offset: int
    queued_at: float
    started_at: float | None
    ended_at: float | None
    step: str | None
    step_end: int
    prompt: Prompt | None
    deleted: NotRequired[bool]


class Order(NamedTuple):
    """A validated request to start a run.  `timeout` in seconds, counted from when it starts running.

    `steps` are the command lines of a batch run, None for those that are skipped; or the one of a service, or
    of a terminal (None: a shell).  `stdin` is all the input that there will be: its lines answer the prompts
    of a query, and a batch run's last step reads it.
    """

    run_id: str
    incarnation: int
    digest: str
    mode: str
    code: str
    timeout: float | None
    steps: tuple[str | None, ...] = ()
    stdin: str | None = None

    @property
    def size(self) -> int:
        """Characters that are kept while it waits."""
        return len(self.code) + len(self.stdin or "") + sum(len(line or "") for line in self.steps)


class Run:
    """One run.  `number` counts the runs of this kernel in the order of arrival."""

    def __init__(self, order: Order, number: int, queued_at: float) -> None:
        self.order: Order | None = order  # None when it has ended
        self.run_id = order.run_id
        self.incarnation = order.incarnation
        self.digest = order.digest
        self.mode = order.mode
        self.number = number
        self.state = RunState.QUEUED
        self.exit_code: int | None = None
        self.reason = ""
        self.end_offset = 0
        self.queued_at = queued_at
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.step: int | None = None  # index into STEPS
        self.step_end = 0
        self.asked: int | None = None  # the interpreter's number of the prompt that waits
        self.prompt: Prompt | None = None
        self._answers: OrderedDict[int, str | None] = OrderedDict()  # the newest, by their prompt's offset
        self.cursor = 0
        self.began = False  # it is in user code: an interrupt will reach it
        self.interrupt_asked = False
        self.over_limit = False
        self.limit_at: float | None = None
        self.kill_at: float | None = None
        self.deleted = False  # its output is gone, and nobody is told of it any more; its id stays used

    def move(self, to: RunState) -> None:
        """Change the state, as `TRANSITIONS` allows."""
        if to not in TRANSITIONS[self.state]:
            raise AssertionError(f"a run that is {self.state} cannot become {to}")
        self.state = to

    @classmethod
    def ended(cls, status: RunStatus) -> Run:
        """A run of the past, as its status was written."""
        order = Order(status["run_id"], status["incarnation"], status["digest"], status["mode"], "", None)
        run = cls(order, 0, status["queued_at"])
        run.order = None
        run.state = RunState(status["state"])
        run.exit_code, run.reason = status["exit_code"], status["reason"]
        run.end_offset, run.step_end = status["end_offset"], status.get("step_end", 0)
        run.started_at, run.ended_at = status["started_at"], status["ended_at"]
        run.deleted = status.get("deleted", False)
        return run

    def note_answer(self, text: str | None) -> None:
        """The prompt that waits is answered."""
        if self.prompt is not None:
            self._answers[self.prompt["offset"]] = _digest(text)
            if len(self._answers) > MAX_ANSWERS:
                self._answers.popitem(last=False)

    def was_answered(self, offset: int | None, text: str | None) -> bool:
        """Whether the prompt at `offset` has had this very answer: it comes again if its reply was lost."""
        return offset is not None and self._answers.get(offset, "") == _digest(text)

    def step_stdin(self) -> str | None:
        """What the present step reads before the end of its input; None if it can be fed."""
        if self.order is None or self.order.stdin is None or self.step is None:
            return None
        return self.order.stdin if STEPS[self.step] == "exec" else ""

    def next_line(self) -> str | None:
        """Take the next line of the input that came with the order; None at its end."""
        assert self.order is not None
        line, newline, rest = (self.order.stdin or "").partition("\n")
        self.order = self.order._replace(stdin=rest)
        return line if line or newline else None

    def status(self) -> RunStatus:
        return {
            "run_id": self.run_id,
            "incarnation": self.incarnation,
            "digest": self.digest,
            "mode": self.mode,
            "state": self.state.value,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "end_offset": self.end_offset,
            "queued_at": self.queued_at,
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "step": None if self.step is None else STEPS[self.step],
            "step_end": self.step_end,
            "prompt": self.prompt,
        }


def parse_order(request: dict[str, Any]) -> Order:
    """Check a start request field by field.  Raises Refused: bad-request."""
    run_id, incarnation = request.get("run_id"), request.get("incarnation")
    digest, spec = request.get("digest"), request.get("spec")
    if not (isinstance(run_id, str) and is_run_id(run_id)):
        raise Refused("bad-request", "run_id must be 1 to 64 letters, digits, '.', '_' or '-'")
    if not isinstance(incarnation, int) or isinstance(incarnation, bool):
        raise Refused("bad-request", "incarnation must be an integer")
    if not (isinstance(digest, str) and 0 < len(digest) <= 128 and digest.isalnum() and digest.isascii()):
        raise Refused("bad-request", "digest must be hexadecimal")
    if not isinstance(spec, dict):
        raise Refused("bad-request", "spec must be an object")
    mode, code, timeout = spec.get("mode"), spec.get("code"), spec.get("timeout")
    if mode not in ("query", "batch", *BESIDE):
        raise Refused("bad-request", f"mode must be query, batch, {' or '.join(BESIDE)}")
    if not isinstance(code, str):
        raise Refused("bad-request", "code must be text")
    if timeout is not None:
        if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout < 1e9:
            raise Refused("bad-request", "timeout must be a positive number of seconds")
        timeout = float(timeout)
    if mode in BESIDE and timeout is not None:
        raise Refused("bad-request", f"a {mode} has no timeout")
    names = {"batch": STEPS, "query": ()}.get(mode, ("exec",))
    steps = tuple(spec.get(step) for step in names)
    if not all(line is None or (isinstance(line, str) and "\0" not in line) for line in steps):
        raise Refused("bad-request", f"{', '.join(names)} must be command lines")
    if mode == SERVICE and not steps[0]:
        raise Refused("bad-request", "exec must say what the service is")
    stdin = spec.get("stdin")
    if not (stdin is None or (isinstance(stdin, str) and len(stdin) <= MAX_STDIN)):
        raise Refused("bad-request", f"stdin must be text of at most {MAX_STDIN} characters")
    return Order(run_id, incarnation, digest, mode, code, timeout, steps, stdin)


def is_run_id(text: str) -> bool:
    return 0 < len(text) <= 64 and _RUN_ID_LETTERS.issuperset(text)


def _digest(text: str | None) -> str | None:
    return None if text is None else sha256(text.encode("utf-8", "surrogatepass"))


def as_line(text: str | None) -> str | None:
    """An answer as a program reads it: a whole line, whether or not the answer ends with its newline."""
    return text if text is None or text.endswith("\n") else text + "\n"
