"""Where output goes: into the log of the run that is being executed, or into the kernel's own."""

from __future__ import annotations

import json
import selectors
import time
from collections.abc import Callable
from typing import Any

from backendai_mgr.shim.output import BoundedLog, OutputPipes
from backendai_mgr.shim.run import Run, RunStatus
from backendai_mgr.shim.runlog import RunLogWriter
from backendai_mgr.shim.runstore import RunStore

# The next run's folder is made when this one's end has reached whoever waits for it: they need the processor.
_PREPARE_AFTER = 0.002
_SAVE_EVERY = 1.0  # try again to write statuses for which there was no room


class Recorder:
    """Logs the output of a kernel and the statuses of its ended runs.  `grew` is told of each record."""

    def __init__(self, store: RunStore, kernel_log: BoundedLog, grew: Callable[[Run], None]) -> None:
        self.run: Run | None = None  # that output belongs to
        self._store = store
        self._kernel_log = kernel_log
        self._grew = grew
        self._pipes: OutputPipes | None = None
        self._log: RunLogWriter | None = None
        self._unsaved: dict[str, RunStatus] = {}
        self._save_at: float | None = None
        self._prepare_at: float | None = None

    def listen(self, selector: selectors.BaseSelector, stdout: int, stderr: int) -> None:
        self._pipes = OutputPipes(selector, {stdout: "stdout", stderr: "stderr"}, self._write)
        self._prepare_at = time.monotonic()

    def next_deadline(self) -> float | None:
        nap = None if self._pipes is None else self._pipes.next_deadline()
        times = nap, self._save_at, self._prepare_at
        return min((at for at in times if at is not None), default=None)

    def tick(self, now: float) -> None:
        if self._pipes is not None:
            self._pipes.tick(now)
        if self._prepare_at is not None and self._prepare_at <= now:
            self._prepare_at = None
            self._store.prepare()
        if self._save_at is not None and self._save_at <= now:
            self._unsaved = {k: status for k, status in self._unsaved.items() if not self._store.save(status)}
            self._save_at = now + _SAVE_EVERY if self._unsaved else None

    def begin(self, run: Run) -> None:
        """What is printed from now on belongs to this run."""
        self.drain()
        self.run = run

    def drain(self) -> None:
        """Log what has been printed until now."""
        if self._pipes is not None:
            self._pipes.drain()

    def add(self, run: Run, stream: str, item: Any) -> int:
        """Log an item of a stream of JSON lines, after all that was printed before; return its offset."""
        self.drain()
        offset = run.end_offset
        self._write(stream, memoryview(json.dumps(item, separators=(",", ":")).encode() + b"\n"))
        return offset

    def conclude(self, run: Run, now: float) -> None:
        """The run has ended, and its output is logged: keep its status."""
        if self.run is run:
            if self._log is not None:
                self._log.close()
            self.run = self._log = None
        if self._pipes is not None:
            self._prepare_at = now + _PREPARE_AFTER
        status = run.status()
        if not self._store.save(status):
            self._unsaved[run.run_id] = status
            if self._save_at is None:
                self._save_at = now + _SAVE_EVERY

    def close(self) -> None:
        """Log what is left in the pipes, and let go of them."""
        if self._pipes is not None:
            self._pipes.close()
            self._pipes = self._prepare_at = None

    def _write(self, stream: str, data: memoryview) -> None:
        run = self.run
        if run is None:
            self._kernel_log.append(data)
            return
        if self._log is None:
            self._log = self._store.open_log(run.run_id)
        self._log.append(stream, data)
        run.end_offset = self._log.end_offset
        self._grew(run)
