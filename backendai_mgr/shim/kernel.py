"""One kernel: its processes and its runs, joined on the shim's event loop."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any

from backendai_mgr.shim import effects, processes
from backendai_mgr.shim.arbiter import Arbiter
from backendai_mgr.shim.audience import Audience, Exit
from backendai_mgr.shim.beside import Beside
from backendai_mgr.shim.conversation import Conversation
from backendai_mgr.shim.failpoint import failpoint
from backendai_mgr.shim.guest import INTERPRETER, Command, Guest, SpawnFailed, exit_code_of, spawn
from backendai_mgr.shim.memory import OutOfMemory
from backendai_mgr.shim.output import BoundedLog
from backendai_mgr.shim.recorder import Recorder
from backendai_mgr.shim.run import Instant, Order, Refused, Run, as_line
from backendai_mgr.shim.runstore import RunStore
from backendai_mgr.shim.spec import COMPLETE_LIMIT, KernelIdentity, Setup

START_LIMIT = 60.0  # seconds from spawning to the kernel's first word
_SWEEP_EVERY = 0.02  # while a kernel is being killed, look for new processes this often
_SWEEP_LIMIT = 10.0  # then it counts as ended, whatever the operating system still holds
_LOST_CONTROL_LIMIT = 1.0  # from the end of a socket to the wait status


class Kernel:
    """States: starting -> running -> ended (starting -> ended).  `ending` is running to the outside."""

    def __init__(
        self,
        identity: KernelIdentity,
        command: Command,
        selector: selectors.BaseSelector,
        store: RunStore,
        arbiter: Arbiter,
        log: BoundedLog,
        *,
        setup: Setup | None,
        memory: OutOfMemory,
        query_line: str | None = None,
        complete_limit: float = COMPLETE_LIMIT,
    ) -> None:
        """`setup`: None for a kernel that waits to be given one.  `query_line`: the command line that takes
        the code of a query on its standard input, where there is no interpreter."""
        self.identity = identity
        self.state = "starting"
        self.exit: Exit | None = None
        self.started_at = self.last_active = time.time()
        self.arbiter = arbiter
        self.audience: Audience | None = None
        self._command = command
        self._selector = selector
        self._store = store
        self._recorder = Recorder(store, log, self._grew)
        self.beside = Beside(selector, store, self._grew)
        self._setup = setup
        self._memory = memory
        self._query_line = query_line
        self._complete_limit = complete_limit
        self._guest: Guest | None = None
        self._inside: Conversation | None = None
        self._command_number = INTERPRETER  # what executes the present run, as the guest counts it
        self._ending: Exit | None = None
        self._timers: dict[str, float] = {}

    # -- life

    def start(self) -> None:
        failpoint("kernel.before_spawn")
        try:
            guest = spawn(self._command)
        except SpawnFailed as error:
            self._ended({"reason": f"spawn-failed: {error}", "exit_code": None})
            return
        failpoint("kernel.after_spawn")
        self._guest = guest
        self._recorder.listen(self._selector, guest.stdout, guest.stderr)
        interpreted = self._query_line is None
        self._inside = Conversation(
            self._selector, guest, self, interpreted=interpreted, complete_limit=self._complete_limit
        )
        self.beside.attach(self._inside)
        if self._setup is not None:
            self._inside.configure(*self._setup)
        self._timers["start"] = time.monotonic() + START_LIMIT

    @property
    def unassigned(self) -> bool:
        """It waits to be told which kernel it is."""
        return self._setup is None

    def assign(self, identity: KernelIdentity, setup: Setup) -> None:
        """Become this kernel.  Raises Refused: bad-request."""
        if not self.unassigned or self._inside is None:
            raise Refused("bad-request", "this kernel cannot become another")
        self.identity, self._setup = identity, setup
        self.started_at = self.last_active = time.time()
        self.arbiter.incarnation = identity.incarnation
        self._inside.configure(*setup)

    def end(self, reason: str, exit_code: int = -signal.SIGKILL) -> None:
        """Begin to kill every process of the kernel; `state` becomes ended when none is left."""
        if self._ending is None and self.exit is None and self._guest is not None:
            self._ending = {"reason": reason, "exit_code": exit_code}
            self.arbiter.close(reason)
            self._timers["sweep"] = self._timers["sweep-limit"] = time.monotonic()
            self._timers["sweep-limit"] += _SWEEP_LIMIT
            self._guest.kill()

    def reap(self) -> None:
        """Collect dead children: the guest and orphans that came to us."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if self._guest is not None and pid == self._guest.pid:
                    self._died(exit_code_of(self._command, status))
        # No child is left; as orphans become our children, that is no descendant.
        if self._ending is not None:
            self._ended(self._ending)

    def _died(self, exit_code: int) -> None:
        """The guest or the interpreter has ended by itself, or as we wanted."""
        if self._ending is None:
            self.end("out-of-memory" if self._memory.happened() else "self-terminated", exit_code)

    def next_deadline(self) -> float | None:
        """Return the monotonic time at which `tick` must be called, if there is one."""
        parts = (self.arbiter, self._recorder, self.beside, self._inside)
        times = [part.next_deadline() for part in parts if part is not None]
        times += self._timers.values()
        return min((at for at in times if at is not None), default=None)

    def tick(self) -> None:
        now = time.monotonic()
        self._recorder.tick(now)
        self.beside.tick(now)
        if self._inside is not None:
            self._inside.tick(now)
        self._apply(self.arbiter.tick(Instant.now()))
        for name in [name for name, at in self._timers.items() if at <= now]:
            del self._timers[name]
            self._timer(name, now)

    def _timer(self, name: str, now: float) -> None:
        match name:
            case "start":
                self.end("start-timeout")
            case "lost-control":
                self.end("control-lost")
            case "sweep" if self._ending is not None:
                processes.kill(processes.descendants(os.getpid()))
                self._timers["sweep"] = now + _SWEEP_EVERY
            case "sweep-limit" if self._ending is not None:
                self._ended(self._ending)

    def _ended(self, how: Exit) -> None:
        self._timers.clear()
        self._recorder.close()
        self.beside.close()
        if self._inside is not None:
            self._inside.close()
        if self._guest is not None:
            self._guest.close()
        self._guest = self._inside = self._ending = None
        self.arbiter.close(how["reason"])
        self.exit = how
        self.state = "ended"
        self._apply(self.arbiter.kernel_ended(Instant.now()))
        if self.audience is not None:
            self.audience.kernel_changed()

    # -- runs

    def start_run(self, order: Order) -> tuple[bool, Run]:
        """Return whether the run is new, and the run.  Raises Refused."""
        if self.arbiter.find(order.run_id) is None:
            self._recall(order.run_id)
        known = self.arbiter.consider(order)
        if known is not None:
            return False, known
        if order.mode == "query" and self._query_line == "":
            raise Refused("bad-request", "this image runs commands only (mode batch)")
        now = Instant.now()
        try:
            self._store.create(order, now.wall)
        except OSError as error:
            raise Refused("no-room", f"the run cannot be recorded: {error.strerror}") from error
        run, effects = self.arbiter.admit(order, now)
        self._apply(effects)
        return True, run

    def find(self, run_id: str) -> Run:
        """Return a run of this or an earlier life of the kernel.  Raises Refused: not-found."""
        run = self.arbiter.find(run_id) or self._recall(run_id)
        if run is None or run.deleted:
            raise Refused("not-found", "no such run")
        return run

    def interrupt(self, run_id: str | None) -> Run | None:
        """Interrupt a run (None: the one that runs).  Raises Refused: not-found."""
        if run_id is not None:
            self.find(run_id)
        run, effects = self.arbiter.interrupt(run_id, Instant.now())
        self._apply(effects)
        return run

    def answer(self, run_id: str, offset: int | None, text: str | None) -> Run:
        """Answer what the run asks for at `offset` (None: now).  Raises Refused: not-found, no-prompt."""
        self.find(run_id)
        run, effects = self.arbiter.answer(run_id, offset, text)
        self._apply(effects)
        return run

    def delete(self, run_id: str) -> None:
        """Delete an ended run's output, and forget all of it but its id.

        Raises Refused: not-found, not-ended, no-room.
        """
        status = self.find(run_id).status()
        run = self.arbiter.delete(run_id)
        try:
            self._store.delete(status)
        except OSError as error:
            run.deleted = False
            raise Refused("no-room", f"the deletion cannot be recorded: {error.strerror}") from error

    def complete(self, code: str, cursor: int, answer: Callable[[list[str]], None]) -> None:
        """Ask the interpreter how to go on at `cursor`; while it is busy there is no answer but []."""
        busy = self.state != "running" or self.arbiter.current is not None or self._query_line is not None
        if self._inside is None or busy:
            answer([])
            return
        self._inside.complete(code, cursor, answer)

    def _recall(self, run_id: str) -> Run | None:
        status = self._store.load(run_id)
        return None if status is None else self.arbiter.recall(status)

    def _apply(self, decided: Iterable[effects.Effect]) -> None:
        for effect in decided:
            match effect:
                case effects.Send(run):
                    self._hand_over(run)
                case effects.Execute(run, line):
                    self._execute(run, line, run.step_stdin())
                case effects.StepEnded(run, step, exit_code):
                    self._record(run, "step", {"step": step, "exit_code": exit_code})
                    run.step_end = run.end_offset
                    if not run.state.ended:  # that is told when all is logged
                        self._tell(run)
                case effects.Asked(run, is_password):
                    offset = self._record(run, "prompt", {"is_password": is_password})
                    run.prompt = {"offset": offset, "is_password": is_password}
                    self._tell(run)
                case effects.Answer(run, asked, text):
                    self._hand_in(run, asked, text)
                case effects.Interrupt() if self._inside is not None:
                    self._inside.signal(self._command_number, signal.SIGINT)
                case effects.Open(run, line):
                    self.beside.open(run, line)
                    self._handed(run)
                case effects.HangUp(run, force):
                    self.beside.hang_up(run, force=force)
                case effects.Ended(run):
                    self._conclude(run)
                case effects.Kill(reason):
                    self.end(reason)
                case effects.Queued(run):
                    self._tell(run)

    def _hand_over(self, run: Run) -> None:
        assert self._inside is not None
        assert run.order is not None
        if self._query_line is not None:
            run.began = True
            self._execute(run, self._query_line, run.order.code)
        else:
            self._recorder.begin(run)
            self._command_number = INTERPRETER
            self._inside.run(run.number, run.order.code)
            failpoint("run.after_send")
            self._handed(run)
        run.order = run.order._replace(code="")

    def _execute(self, run: Run, line: str, stdin: str | None = None) -> None:
        assert self._inside is not None
        self._recorder.begin(run)
        self._command_number = self._inside.execute(line, stdin)
        failpoint("run.after_execute")
        self._handed(run)

    def _handed(self, run: Run) -> None:
        self.last_active = time.time()
        self._tell(run)

    def _record(self, run: Run, stream: str, item: Any) -> int:
        """Log an item of the run that is being executed; return its offset."""
        if self._recorder.run is not run:  # its first steps were skipped
            self._recorder.begin(run)
        return self._recorder.add(run, stream, item)

    def _hand_in(self, run: Run, asked: int | None, text: str | None) -> None:
        if self._inside is not None and asked is not None:
            self._inside.answer(asked, text)
        elif self._inside is not None:
            self._inside.feed(self._command_number, as_line(text))
        self._tell(run)

    def _conclude(self, run: Run) -> None:
        self._recorder.conclude(run, time.monotonic())
        failpoint("run.after_status")
        self.last_active = time.time()
        self._tell(run)

    def _grew(self, run: Run) -> None:
        self.last_active = time.time()
        if self.audience is not None:
            self.audience.log_grew(run)

    def _tell(self, run: Run) -> None:
        if self.audience is not None:
            self.audience.run_changed(run)

    # -- what happens inside (conversation.Listener)

    def ready(self) -> None:
        if self.state == "starting" and self._ending is None:
            self._timers.pop("start", None)
            self.state = "running"
            if self.audience is not None:
                self.audience.kernel_changed()
            self._apply(self.arbiter.ready(Instant.now()))

    def began(self, number: int) -> None:
        self._apply(self.arbiter.began(number))

    def done(self, number: int, exit_code: int, interrupted: bool) -> None:
        if self._executing(number):
            failpoint("run.after_output_drain")
            in_range = -(2**31) <= exit_code < 2**31
            self._apply(self.arbiter.done(number, exit_code if in_range else 1, interrupted, Instant.now()))

    def executed(self, command: int, status: int) -> None:
        if self._ending is not None:
            return
        code = os.waitstatus_to_exitcode(status)
        code = code if code >= 0 else 128 - code
        reason = "out-of-memory" if code and self._memory.happened() else ""
        if (beside := self.beside.ended(command)) is not None:
            self._apply(self.arbiter.program_ended(beside, code, reason, Instant.now()))
            return
        run = self.arbiter.current
        if run is not None and command == self._command_number and self._executing(run.number):
            self._apply(self.arbiter.command_done(run.number, code, reason, Instant.now()))

    def opened(self, command: int, fd: int) -> None:
        self.beside.opened(command, fd)

    def asked(self, prompt: int, is_password: bool) -> None:
        if (run := self.arbiter.current) is not None and self._executing(run.number):
            self._apply(self.arbiter.asks(run.number, prompt, is_password))

    def reads(self, command: int) -> None:
        run = self.arbiter.current
        if run is not None and command == self._command_number and self._executing(run.number):
            self._apply(self.arbiter.asks(run.number, None, False))

    def displayed(self, stream: str, item: Any) -> None:
        if (run := self._recorder.run) is not None and self._executing(run.number):
            self._record(run, stream, item)

    def exited(self, status: int) -> None:
        self._died(os.waitstatus_to_exitcode(status))

    def broken(self, *, at_once: bool) -> None:
        if at_once:
            self.end("control-lost")
        elif self._ending is None:  # usually its death, and the wait status follows
            self._timers["lost-control"] = time.monotonic() + _LOST_CONTROL_LIMIT

    def _executing(self, number: int) -> bool:
        """Whether this run has the floor; all that it has printed until now is logged then."""
        run = self._recorder.run
        if self._ending is not None or run is None or run.number != number:
            return False
        self._recorder.drain()
        return True
