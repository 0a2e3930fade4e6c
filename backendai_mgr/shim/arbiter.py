"""Decides about the runs of one kernel; does nothing itself.

Every method takes what happened (and when), changes the state and returns *effects*: what the caller must
now do, in that order.  Time is an argument: an `Instant` holds the wall clock (for people) and the monotonic
clock (for deadlines), both in seconds.

States: queued, running, waiting-input -> finished, timeout, cancelled, lost (`run.TRANSITIONS`).  A run is
handed over at most once, one at a time, in the order of arrival; an ended run never changes again.  A query
goes to the interpreter (`Send`), a batch run is a sequence of command lines (`Execute`).  Terminals and
services take no turn: they run beside the others (`Open`) until their program ends or is asked to (`HangUp`).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from backendai_mgr.shim.effects import (
    Answer,
    Asked,
    Effect,
    Ended,
    Execute,
    HangUp,
    Interrupt,
    Kill,
    Open,
    Queued,
    Send,
    StepEnded,
)
from backendai_mgr.shim.run import BESIDE, STEPS, Instant, Order, Refused, Run, RunState, RunStatus

MAX_QUEUED = 64
MAX_QUEUED_BYTES = 64 << 20  # code of all queued runs
MAX_REMEMBERED = 1024  # ended runs kept in memory; older ones are found on disk
MAX_BESIDE = 16  # terminals that are open at once, and services
GRACE = (
    5.0  # seconds from the interrupt at a run's limit to the end of its kernel; also from `HangUp` to force
)
INTERRUPTED = 130  # exit code
NOT_RUN = 127  # exit code of a step whose build failed


class Arbiter:
    def __init__(self, incarnation: int, *, grace: float = GRACE, past: Iterable[RunStatus] = ()) -> None:
        """`past`: statuses of ended runs found on disk, in any order."""
        self.incarnation = incarnation
        self._grace = grace
        self._ready = False
        self._end_reason: str | None = None
        self._numbers = 0
        self._queue: deque[Run] = deque()
        self._queued_bytes = 0
        self._beside: dict[int, Run] = {}  # by number
        self._past: OrderedDict[str, Run] = OrderedDict()
        self.current: Run | None = None
        for status in sorted(past, key=lambda status: status["queued_at"])[-MAX_REMEMBERED:]:
            self._remember(Run.ended(status))

    # -- what is known

    def find(self, run_id: str) -> Run | None:
        """Return the run if it is in memory; if not, the disk may know it."""
        if self.current is not None and self.current.run_id == run_id:
            return self.current
        living = (*self._beside.values(), *self._queue)
        return self._past.get(run_id) or next((run for run in living if run.run_id == run_id), None)

    def recall(self, status: RunStatus) -> Run:
        """Take an ended run that was found on disk back into memory."""
        return self._remember(Run.ended(status))

    def runs(self) -> list[Run]:
        """Return the runs in memory that were not deleted, oldest first."""
        current = [] if self.current is None else [self.current]
        past = [run for run in self._past.values() if not run.deleted]
        return [*past, *self._beside.values(), *current, *self._queue]

    def next_deadline(self) -> float | None:
        """Return the monotonic time at which `tick` must be called, if there is one."""
        if self._end_reason is not None:
            return None
        times = [run.kill_at for run in self._beside.values()]
        if (run := self.current) is not None:
            times.append(run.kill_at if run.over_limit else run.limit_at)
        return min((at for at in times if at is not None), default=None)

    # -- requests

    def consider(self, order: Order) -> Run | None:
        """Return the known run that this order attaches to; None if it may be admitted.

        Raises Refused: conflict, bad-incarnation, kernel-ended, queue-full, too-many.
        """
        run = self.find(order.run_id)
        if run is not None:
            if run.deleted:
                raise Refused("conflict", "this run id was used for a run that was deleted")
            if run.digest != order.digest:
                raise Refused("conflict", "this run id was used for another request")
            return run
        if order.incarnation != self.incarnation:
            raise Refused("bad-incarnation", f"this is incarnation {self.incarnation} of the kernel")
        if self._end_reason is not None:
            raise Refused("kernel-ended", self._end_reason)
        if order.mode in BESIDE:
            if sum(run.mode == order.mode for run in self._beside.values()) >= MAX_BESIDE:
                raise Refused("too-many", f"{MAX_BESIDE} runs of mode {order.mode} are under way")
            return None
        waiting = len(self._queue)
        if waiting >= MAX_QUEUED or (waiting and self._queued_bytes + order.size > MAX_QUEUED_BYTES):
            raise Refused("queue-full", f"{waiting} runs are waiting")
        return None

    def admit(self, order: Order, now: Instant) -> tuple[Run, list[Effect]]:
        """Accept an order that `consider` passed and whose meta file exists."""
        self._numbers += 1
        run = Run(order, self._numbers, now.wall)
        if run.mode in BESIDE:
            self._beside[run.number] = run
            run.move(RunState.RUNNING)
            run.started_at, run.began = now.wall, True
            return run, [Open(run, order.steps[0])]
        self._queue.append(run)
        self._queued_bytes += order.size
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
            self._queued_bytes -= _size(run)
            return run, [self._end(run, RunState.CANCELLED, INTERRUPTED, "interrupted", now)]
        if run.state.ended:
            return run, []
        if run.number in self._beside:
            return run, self._hang_up(run, now)
        run.interrupt_asked = True
        return run, [Interrupt(run)] if run.began else []

    def answer(self, run_id: str, offset: int | None, text: str | None) -> tuple[Run, list[Effect]]:
        """Answer the prompt at `offset` (None: whichever waits).  Raises Refused: not-found, no-prompt.

        The answer that a prompt has had already changes nothing.  The commands of a batch run take input at
        any time.
        """
        run = self.find(run_id)
        if run is None:
            raise Refused("not-found", "no such run")
        if (run.prompt is None or run.prompt["offset"] != offset) and run.was_answered(offset, text):
            return run, []
        if run is not self.current or (run.prompt is None and (offset is not None or run.mode != "batch")):
            raise Refused("no-prompt", "this run does not ask for input now")
        if run.prompt is not None and offset not in (None, run.prompt["offset"]):
            raise Refused("no-prompt", f"the run asks at offset {run.prompt['offset']}")
        asked = run.asked
        run.note_answer(text)
        self._stop_asking(run)
        return run, [Answer(run, asked, text)]

    def delete(self, run_id: str) -> Run:
        """Do away with a run that has ended; its id stays used.  Raises Refused: not-found, not-ended."""
        run = self.find(run_id)
        if run is None or run.deleted:
            raise Refused("not-found", "no such run")
        if not run.state.ended:
            raise Refused("not-ended", f"the run is {run.state}")
        run.deleted = True
        return run

    def move_cursor(self, run: Run, expected: int | None, advance: int | None) -> int:
        """Return the run's cursor, moved to `advance` if it is at `expected`.  Raises Refused: moved."""
        if advance is not None:
            if run.cursor != expected:
                raise Refused("moved", f"the cursor is at {run.cursor}")
            run.cursor = advance
        return run.cursor

    # -- what the interpreter and the commands do

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

    def asks(self, number: int, asked: int | None, is_password: bool) -> list[Effect]:
        """The run asks for input: the interpreter's prompt `asked`, or a command that reads (None)."""
        run = self.current
        if run is None or run.number != number or (run.prompt is not None and asked is None):
            return []
        if run.order is not None and run.order.stdin is not None and asked is not None:
            return [Answer(run, asked, run.next_line())]
        run.asked = asked
        if run.state is not RunState.WAITING_INPUT:  # it may ask anew before it was answered
            run.move(RunState.WAITING_INPUT)
        return [Asked(run, is_password)]

    def command_done(self, number: int, exit_code: int, reason: str, now: Instant) -> list[Effect]:
        """The command that executes the run, or its present step, has ended.  All its output is logged."""
        run = self.current
        if run is None or run.number != number:
            return []
        self._stop_asking(run)
        stopped = run.over_limit or run.interrupt_asked
        if stopped or run.step is None or STEPS[run.step] == "exec":
            return self.done(number, exit_code, stopped, now, reason)
        return self._step_over(run, exit_code, reason, now)

    def done(
        self, number: int, exit_code: int, interrupted: bool, now: Instant, reason: str = ""
    ) -> list[Effect]:
        """The run was left; `interrupted`: by KeyboardInterrupt.  All its output is logged."""
        run = self.current
        if run is None or run.number != number:
            return []
        self._stop_asking(run)
        if run.over_limit:
            state, reason = RunState.TIMEOUT, "exec-timeout"
        elif interrupted and run.interrupt_asked:
            state, reason = RunState.CANCELLED, "interrupted"
        else:
            state = RunState.FINISHED
        self.current = None
        ended = self._end(run, state, INTERRUPTED if interrupted else exit_code, reason, now)
        return [ended, *self._advance(now)]

    def program_ended(self, run: Run, exit_code: int, reason: str, now: Instant) -> list[Effect]:
        """The program of a run beside the others has ended.  All its output is logged."""
        if self._beside.pop(run.number, None) is None:
            return []
        if run.interrupt_asked:
            return [self._end(run, RunState.CANCELLED, INTERRUPTED, "interrupted", now)]
        return [self._end(run, RunState.FINISHED, exit_code, reason, now)]

    # -- time and the end

    def tick(self, now: Instant) -> list[Effect]:
        """Enforce the limit of the run: first an interrupt, after the grace the end of the kernel.

        What runs beside it and was asked to end is killed after the grace.
        """
        if self._end_reason is not None:
            return []
        overdue = [
            run for run in self._beside.values() if run.kill_at is not None and run.kill_at <= now.mono
        ]
        for run in overdue:
            run.kill_at = None
        return [*(HangUp(run, force=True) for run in overdue), *self._limit(now)]

    def _limit(self, now: Instant) -> list[Effect]:
        if (run := self.current) is None:
            return []
        due = run.kill_at if run.over_limit else run.limit_at
        if due is None or now.mono < due:
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
        while self._beside:
            effects.append(self._end(self._beside.popitem()[1], RunState.LOST, None, reason, now))
        while self._queue:
            effects.append(self._end(self._queue.popleft(), RunState.LOST, None, reason, now))
        self._queued_bytes = 0
        return effects

    # -- within

    def _hang_up(self, run: Run, now: Instant) -> list[Effect]:
        if run.interrupt_asked:  # the grace runs
            return []
        run.interrupt_asked, run.kill_at = True, now.mono + self._grace
        return [HangUp(run, force=False)]

    def _advance(self, now: Instant) -> list[Effect]:
        if not self._ready or self._end_reason is not None or self.current is not None or not self._queue:
            return []
        run = self.current = self._queue.popleft()
        self._queued_bytes -= _size(run)
        run.move(RunState.RUNNING)
        run.started_at = now.wall
        assert run.order is not None
        run.limit_at = None if run.order.timeout is None else now.mono + run.order.timeout
        if run.mode == "query":
            return [Send(run)]
        run.step, run.began = 0, True
        return self._enter_step(run, 0, "", now)

    def _enter_step(self, run: Run, failed: int, reason: str, now: Instant) -> list[Effect]:
        """Execute the run's present step, or pass over it.  `failed`: exit code of a build that failed."""
        assert run.order is not None
        assert run.step is not None
        line = run.order.steps[run.step]
        if STEPS[run.step] == "exec":
            if failed:
                return self.done(
                    run.number, NOT_RUN if line else failed, False, now, reason or "build-failed"
                )
            if not line:
                return self.done(run.number, 0, False, now)
        return [Execute(run, line)] if line else self._step_over(run, 0, "", now)

    def _step_over(self, run: Run, exit_code: int, reason: str, now: Instant) -> list[Effect]:
        assert run.step is not None
        step = STEPS[run.step]
        run.step += 1
        failed = exit_code if step == "build" else 0
        return [StepEnded(run, step, exit_code), *self._enter_step(run, failed, reason, now)]

    def _stop_asking(self, run: Run) -> None:
        run.asked = run.prompt = None
        if run.state is RunState.WAITING_INPUT:
            run.move(RunState.RUNNING)

    def _end(self, run: Run, state: RunState, exit_code: int | None, reason: str, now: Instant) -> Ended:
        run.move(state)
        run.exit_code, run.reason, run.ended_at = exit_code, reason, now.wall
        run.order = run.step = run.asked = run.prompt = None
        return Ended(self._remember(run))

    def _remember(self, run: Run) -> Run:
        self._past[run.run_id] = run
        while len(self._past) > MAX_REMEMBERED:
            self._past.popitem(last=False)
        return run


def _size(run: Run) -> int:
    return 0 if run.order is None else run.order.size
