"""One kernel: its interpreter, its runs and their output, joined on the shim's event loop."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, TypedDict

from backendai_mgr.shim import processes
from backendai_mgr.shim.arbiter import (
    Arbiter,
    Effect,
    Ended,
    Instant,
    Interrupt,
    Kill,
    Order,
    Queued,
    Refused,
    Run,
    RunStatus,
    Send,
)
from backendai_mgr.shim.failpoint import failpoint
from backendai_mgr.shim.framing import BadMessage
from backendai_mgr.shim.interpreter import Command, Interpreter, SpawnFailed, spawn
from backendai_mgr.shim.output import BoundedLog, OutputPipes
from backendai_mgr.shim.runlog import RunLogWriter
from backendai_mgr.shim.runstore import RunStore

START_LIMIT = 60.0  # seconds from spawning to the interpreter's first word
_SWEEP_EVERY = 0.02  # while a kernel is being killed, look for new processes this often
_SWEEP_LIMIT = 10.0  # then it counts as ended, whatever the operating system still holds
_SAVE_EVERY = 1.0  # try again to write statuses for which there was no room
_LOST_CONTROL_LIMIT = 1.0  # from the end of the control socket to the wait status


class Exit(TypedDict):
    """How a kernel ended: `exit_code` as a shell counts it, -N for signal N, None if it never ran."""

    reason: str
    exit_code: int | None


class Audience(Protocol):
    """Who is told of changes."""

    def kernel_changed(self) -> None: ...
    def run_changed(self, run: Run) -> None: ...
    def log_grew(self, run: Run) -> None: ...


class KernelIdentity(NamedTuple):
    kernel_id: str
    incarnation: int


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
    ) -> None:
        self.identity = identity
        self.state = "starting"
        self.exit: Exit | None = None
        self.started_at = self.last_active = time.time()
        self.arbiter = arbiter
        self.audience: Audience | None = None
        self._command = command
        self._selector = selector
        self._store = store
        self._kernel_log = log
        self._interpreter: Interpreter | None = None
        self._pipes: OutputPipes | None = None
        self._logging: Run | None = None  # the run that output belongs to
        self._run_log: RunLogWriter | None = None
        self._unsaved: dict[str, RunStatus] = {}
        self._ending: Exit | None = None
        self._timers: dict[str, float] = {}

    # -- life

    def start(self) -> None:
        failpoint("kernel.before_spawn")
        try:
            interpreter = spawn(self._command)
        except SpawnFailed as error:
            self._ended({"reason": f"spawn-failed: {error}", "exit_code": None})
            return
        failpoint("kernel.after_spawn")
        self._interpreter = interpreter
        pipes = {interpreter.stdout: "stdout", interpreter.stderr: "stderr"}
        self._pipes = OutputPipes(self._selector, pipes, self._log)
        self._selector.register(interpreter.control, selectors.EVENT_READ, self._control_ready)
        self._timers["start"] = time.monotonic() + START_LIMIT

    def end(self, reason: str) -> None:
        """Begin to kill every process of the kernel; `state` becomes ended when none is left."""
        if self._ending is None and self.exit is None and self._interpreter is not None:
            self._ending = {"reason": reason, "exit_code": -signal.SIGKILL}
            self.arbiter.close(reason)
            self._timers["sweep"] = self._timers["sweep-limit"] = time.monotonic()
            self._timers["sweep-limit"] += _SWEEP_LIMIT
            self._interpreter.kill()

    def reap(self) -> None:
        """Collect dead children: the interpreter and orphans that came to us."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if self._interpreter is not None and pid == self._interpreter.pid:
                    self.end("self-terminated")
                    assert self._ending is not None
                    self._ending["exit_code"] = os.waitstatus_to_exitcode(status)
        # No child is left; as orphans become our children, that is no descendant.
        if self._ending is not None:
            self._ended(self._ending)

    def next_deadline(self) -> float | None:
        """Return the monotonic time at which `tick` must be called, if there is one."""
        nap = None if self._pipes is None else self._pipes.next_deadline()
        times = (self.arbiter.next_deadline(), nap, *self._timers.values())
        return min((at for at in times if at is not None), default=None)

    def tick(self) -> None:
        now = time.monotonic()
        if self._pipes is not None:
            self._pipes.tick(now)
        self._apply(self.arbiter.tick(_instant()))
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
            case "save":
                self._save_again()

    def _ended(self, how: Exit) -> None:
        for name in ("start", "lost-control", "sweep", "sweep-limit"):
            self._timers.pop(name, None)
        if self._interpreter is not None and self._pipes is not None:
            self._pipes.close()
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._interpreter.control)
            self._interpreter.close()
        self._interpreter = self._pipes = self._ending = None
        self.arbiter.close(how["reason"])
        self.exit = how
        self.state = "ended"
        self._apply(self.arbiter.kernel_ended(_instant()))
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
        now = _instant()
        try:
            self._store.create(order, now.wall)
        except OSError as error:
            raise Refused("bad-request", f"the run cannot be recorded: {error.strerror}") from error
        run, effects = self.arbiter.admit(order, now)
        self._apply(effects)
        return True, run

    def find(self, run_id: str) -> Run:
        """Return a run of this or an earlier life of the kernel.  Raises Refused: not-found."""
        run = self.arbiter.find(run_id) or self._recall(run_id)
        if run is None:
            raise Refused("not-found", "no such run")
        return run

    def interrupt(self, run_id: str | None) -> Run | None:
        """Interrupt a run (None: the one that runs).  Raises Refused: not-found."""
        if run_id is not None:
            self.find(run_id)
        run, effects = self.arbiter.interrupt(run_id, _instant())
        self._apply(effects)
        return run

    def _recall(self, run_id: str) -> Run | None:
        status = self._store.load(run_id)
        return None if status is None else self.arbiter.recall(status)

    def _apply(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(run):
                    self._hand_over(run)
                case Interrupt():
                    if self._interpreter is not None:
                        self._interpreter.interrupt()
                case Ended(run):
                    self._conclude(run)
                case Kill(reason):
                    self.end(reason)
                case Queued(run):
                    self._tell(run)

    def _hand_over(self, run: Run) -> None:
        assert self._interpreter is not None
        assert self._pipes is not None
        self._pipes.drain()  # what was printed between runs is not this run's
        self._logging = run
        if self._interpreter.send({"run": run.number, "code": run.code}):
            events = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._selector.modify(self._interpreter.control, events, self._control_ready)
        failpoint("run.after_send")
        run.code = ""
        self.last_active = time.time()
        self._tell(run)

    def _conclude(self, run: Run) -> None:
        if self._logging is run:
            if self._run_log is not None:
                self._run_log.close()
            self._logging = self._run_log = None
        status = run.status()
        if not self._store.save(status):
            self._unsaved[run.run_id] = status
            self._timers.setdefault("save", time.monotonic() + _SAVE_EVERY)
        failpoint("run.after_status")
        self.last_active = time.time()
        self._tell(run)

    def _save_again(self) -> None:
        for run_id, status in list(self._unsaved.items()):
            if self._store.save(status):
                del self._unsaved[run_id]
        if self._unsaved:
            self._timers["save"] = time.monotonic() + _SAVE_EVERY

    def _tell(self, run: Run) -> None:
        if self.audience is not None:
            self.audience.run_changed(run)

    # -- what the interpreter says and prints

    def _log(self, stream: str, data: memoryview) -> None:
        run = self._logging
        if run is None:
            self._kernel_log.append(data)
            return
        if self._run_log is None:
            self._run_log = self._store.open_log(run.run_id)
        self._run_log.append(stream, data)
        run.end_offset = self._run_log.end_offset
        self.last_active = time.time()
        if self.audience is not None:
            self.audience.log_grew(run)

    def _control_ready(self, events: int) -> None:
        interpreter = self._interpreter
        if interpreter is None:
            return
        if events & selectors.EVENT_WRITE and not interpreter.flush():
            self._selector.modify(interpreter.control, selectors.EVENT_READ, self._control_ready)
        if not events & selectors.EVENT_READ:
            return
        try:
            messages = interpreter.receive()
            if messages is None:  # usually its death, and the wait status follows
                self._selector.unregister(interpreter.control)
                self._timers["lost-control"] = time.monotonic() + _LOST_CONTROL_LIMIT
                return
            for message in messages:
                self._heard(message)
        except BadMessage:
            self.end("control-lost")

    def _heard(self, message: dict[str, Any]) -> None:
        """Act on a message of the interpreter, which may be nonsense."""
        if self._ending is not None:
            return
        match message:
            case {"ready": True} if self.state == "starting":
                self._timers.pop("start", None)
                self.state = "running"
                if self.audience is not None:
                    self.audience.kernel_changed()
                self._apply(self.arbiter.ready(_instant()))
            case {"began": int(number)}:
                self._apply(self.arbiter.began(number))
            case {"done": int(number), "exit_code": int(exit_code), "interrupted": bool(interrupted)}:
                self._done(number, exit_code, interrupted)

    def _done(self, number: int, exit_code: int, interrupted: bool) -> None:
        if self._logging is None or self._logging.number != number or self._pipes is None:
            return
        self._pipes.drain()
        failpoint("run.after_output_drain")
        in_range = -(2**31) <= exit_code < 2**31
        self._apply(self.arbiter.done(number, exit_code if in_range else 1, interrupted, _instant()))


def _instant() -> Instant:
    return Instant(time.time(), time.monotonic())
