"""Decides about the runs of one kernel; does nothing itself.

Every method takes what happened (and when), changes the state and returns *effects*: what the caller must
now do, in that order.  Time is an argument: an `Instant` holds the wall clock (for people) and the monotonic
clock (for deadlines), both in seconds.

States: queued, running, waiting-input -> finished, timeout, cancelled, lost.  A run is handed to the
interpreter at most once (`Send`), one at a time, in the order of arrival; an ended run never changes again.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Any, NamedTuple, TypedDict

MAX_QUEUED = 64
MAX_QUEUED_BYTES = 64 << 20  # code of all queued runs
MAX_REMEMBERED = 1024  # ended runs kept in memory; older ones are found on disk
GRACE = 5.0  # seconds from the interrupt at a run's limit to the end of its kernel
INTERRUPTED = 130  # exit code
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


class Refused(Exception):
    """A request that changes nothing; `code` is one of the protocol's error codes."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Instant(NamedTuple):
    wall: float
    mono: float


class RunStatus(TypedDict):
    """A run as every hop tells it.  Times are unix seconds; `end_offset` counts the bytes logged so far."""

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


class Order(NamedTuple):
    """A validated request to start a run.  `timeout` in seconds, counted from when it starts running."""

    run_id: str
    incarnation: int
    digest: str
    mode: str
    code: str
    timeout: float | None


class Run:
    """One run.  `number` counts the runs of this kernel in the order of arrival."""

    def __init__(self, order: Order, number: int, queued_at: float) -> None:
        self.run_id = order.run_id
        self.incarnation = order.incarnation
        self.digest = order.digest
        self.mode = order.mode
        self.code = order.code
        self.timeout = order.timeout
        self.number = number
        self.state = RunState.QUEUED
        self.exit_code: int | None = None
        self.reason = ""
        self.end_offset = 0
        self.queued_at = queued_at
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.cursor = 0
        self.began = False  # the interpreter is in user code: an interrupt will reach it
        self.interrupt_asked = False
        self.over_limit = False
        self.limit_at: float | None = None
        self.kill_at: float | None = None

    @classmethod
    def ended(cls, status: RunStatus) -> Run:
        """A run of the past, as its status was written."""
        order = Order(status["run_id"], status["incarnation"], status["digest"], status["mode"], "", None)
        run = cls(order, 0, status["queued_at"])
        run.state = RunState(status["state"])
        run.exit_code, run.reason = status["exit_code"], status["reason"]
        run.end_offset = status["end_offset"]
        run.started_at, run.ended_at = status["started_at"], status["ended_at"]
        return run

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
        }


class Send(NamedTuple):
    """Hand this run's code to the interpreter, then tell that it runs."""

    run: Run


class Interrupt(NamedTuple):
    """Send SIGINT to the interpreter, which is in this run."""

    run: Run


class Ended(NamedTuple):
    """Write this run's status, then tell."""

    run: Run


class Kill(NamedTuple):
    """End the kernel."""

    reason: str


class Queued(NamedTuple):
    """Tell that this run waits."""

    run: Run


Effect = Send | Interrupt | Ended | Kill | Queued


class Arbiter:
    def __init__(self, incarnation: int, *, grace: float = GRACE, past: Iterable[RunStatus] = ()) -> None:
        """`past`: statuses of ended runs found on disk, in any order."""
        self._incarnation = incarnation
        self._grace = grace
        self._ready = False
        self._end_reason: str | None = None
        self._numbers = 0
        self._queue: deque[Run] = deque()
        self._queued_bytes = 0
        self._past: OrderedDict[str, Run] = OrderedDict()
        self.current: Run | None = None
        for status in sorted(past, key=lambda status: status["queued_at"])[-MAX_REMEMBERED:]:
            self._remember(Run.ended(status))

    # -- what is known

    def find(self, run_id: str) -> Run | None:
        """Return the run if it is in memory; if not, the disk may know it."""
        if self.current is not None and self.current.run_id == run_id:
            return self.current
        return self._past.get(run_id) or next((run for run in self._queue if run.run_id == run_id), None)

    def recall(self, status: RunStatus) -> Run:
        """Take an ended run that was found on disk back into memory."""
        return self._remember(Run.ended(status))

    def runs(self) -> list[Run]:
        """Return the runs in memory, oldest first."""
        current = [] if self.current is None else [self.current]
        return [*self._past.values(), *current, *self._queue]

    def next_deadline(self) -> float | None:
        """Return the monotonic time at which `tick` must be called, if there is one."""
        if self.current is None or self._end_reason is not None:
            return None
        return self.current.kill_at if self.current.over_limit else self.current.limit_at

    # -- requests

    def consider(self, order: Order) -> Run | None:
        """Return the known run that this order attaches to; None if it may be admitted.

        Raises Refused: conflict, bad-incarnation, kernel-ended, queue-full.
        """
        run = self.find(order.run_id)
        if run is not None:
            if run.digest != order.digest:
                raise Refused("conflict", "this run id was used for another request")
            return run
        if order.incarnation != self._incarnation:
            raise Refused("bad-incarnation", f"this is incarnation {self._incarnation} of the kernel")
        if self._end_reason is not None:
            raise Refused("kernel-ended", self._end_reason)
        waiting = len(self._queue)
        if waiting >= MAX_QUEUED or (waiting and self._queued_bytes + len(order.code) > MAX_QUEUED_BYTES):
            raise Refused("queue-full", f"{waiting} runs are waiting")
        return None

    def admit(self, order: Order, now: Instant) -> tuple[Run, list[Effect]]:
        """Accept an order that `consider` passed and whose meta file exists."""
        self._numbers += 1
        run = Run(order, self._numbers, now.wall)
        self._queue.append(run)
        self._queued_bytes += len(run.code)
        return run, self._advance(now) or [Queued(run)]

    def interrupt(self, run_id: str | None, now: Instant) -> tuple[Run | None, list[Effect]]:
        """Interrupt a run (None: the one that runs).  Raises Refused: not-found."""
        run = self.current if run_id is None else self.find(run_id)
        if run is None:
            if run_id is None:
                return None, []
            raise Refused("not-found", "no such run")
        if run.state is RunState.QUEUED:
            self._queue.remove(run)
            self._queued_bytes -= len(run.code)
            return run, [self._end(run, RunState.CANCELLED, INTERRUPTED, "interrupted", now)]
        if run.state.ended:
            return run, []
        run.interrupt_asked = True
        return run, [Interrupt(run)] if run.began else []

    def move_cursor(self, run: Run, expected: int | None, advance: int | None) -> int:
        """Return the run's cursor, moved to `advance` if it is at `expected`.  Raises Refused: moved."""
        if advance is not None:
            if run.cursor != expected:
                raise Refused("moved", f"the cursor is at {run.cursor}")
            run.cursor = advance
        return run.cursor

    # -- what the interpreter does

    def ready(self, now: Instant) -> list[Effect]:
        """The interpreter waits for its first run."""
        self._ready = True
        return self._advance(now)

    def began(self, number: int) -> list[Effect]:
        """The interpreter entered user code: interrupts asked for earlier reach it now."""
        run = self.current
        if run is None or run.number != number or run.began:
            return []
        run.began = True
        return [Interrupt(run)] if run.interrupt_asked or run.over_limit else []

    def done(self, number: int, exit_code: int, interrupted: bool, now: Instant) -> list[Effect]:
        """The interpreter left the run; `interrupted`: by KeyboardInterrupt.  All its output is logged."""
        run = self.current
        if run is None or run.number != number:
            return []
        if run.over_limit:
            state, reason = RunState.TIMEOUT, "exec-timeout"
        elif interrupted and run.interrupt_asked:
            state, reason = RunState.CANCELLED, "interrupted"
        else:
            state, reason = RunState.FINISHED, ""
        self.current = None
        ended = self._end(run, state, INTERRUPTED if interrupted else exit_code, reason, now)
        return [ended, *self._advance(now)]

    # -- time and the end

    def tick(self, now: Instant) -> list[Effect]:
        """Enforce the limit of the run: first an interrupt, after the grace the end of the kernel."""
        run, due = self.current, self.next_deadline()
        if run is None or due is None or now.mono < due:
            return []
        if run.over_limit:
            run.kill_at = None
            return [Kill("exec-timeout")]
        run.over_limit = True
        run.kill_at = now.mono + self._grace
        return [Interrupt(run)] if run.began else []

    def close(self, reason: str) -> None:
        """The kernel is being ended: nothing new starts from now on."""
        if self._end_reason is None:
            self._end_reason = reason

    def kernel_ended(self, now: Instant) -> list[Effect]:
        """No process of the kernel is left, and all output is logged."""
        reason = self._end_reason or "ended"
        effects: list[Effect] = []
        if (run := self.current) is not None:
            self.current = None
            state = RunState.TIMEOUT if run.over_limit else RunState.LOST
            effects.append(self._end(run, state, None, reason, now))
        while self._queue:
            effects.append(self._end(self._queue.popleft(), RunState.LOST, None, reason, now))
        self._queued_bytes = 0
        return effects

    # -- within

    def _advance(self, now: Instant) -> list[Effect]:
        if not self._ready or self._end_reason is not None or self.current is not None or not self._queue:
            return []
        run = self.current = self._queue.popleft()
        self._queued_bytes -= len(run.code)
        run.state = RunState.RUNNING
        run.started_at = now.wall
        run.limit_at = None if run.timeout is None else now.mono + run.timeout
        return [Send(run)]

    def _end(self, run: Run, state: RunState, exit_code: int | None, reason: str, now: Instant) -> Ended:
        run.state, run.exit_code, run.reason, run.ended_at = state, exit_code, reason, now.wall
        run.code = ""
        return Ended(self._remember(run))

    def _remember(self, run: Run) -> Run:
        self._past[run.run_id] = run
        while len(self._past) > MAX_REMEMBERED:
            self._past.popitem(last=False)
        return run


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
    if mode != "query":
        raise Refused("bad-request", "mode must be query")
    if not isinstance(code, str):
        raise Refused("bad-request", "code must be text")
    if timeout is not None:
        if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout < 1e9:
            raise Refused("bad-request", "timeout must be a positive number of seconds")
        timeout = float(timeout)
    return Order(run_id, incarnation, digest, mode, code, timeout)


def is_run_id(text: str) -> bool:
    return 0 < len(text) <= 64 and _RUN_ID_LETTERS.issuperset(text)
