"""The run folders of a kernel on disk: ``runs/<sha256 of the run id>/{run.jsonl, NNN.seg}``.

A folder comes to its place with its claim in it, before the interpreter sees the code: it is the proof that a
run id was used.  Until then it is ``runs/next``, so on the same disk.  The status is added once, when the run
has ended.  A folder outlives kernels and shims.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any, cast

from backendai_mgr.shim import runfile
from backendai_mgr.shim.digest import sha256
from backendai_mgr.shim.failpoint import failpoint
from backendai_mgr.shim.run import Order, RunState, RunStatus
from backendai_mgr.shim.runlog import RunLogWriter, drop_segments, first_segment

_RESERVE_BYTES = 128 << 10
_RELEASE_BYTES = 8 << 10


class Reserve:
    """A little disk kept back, so that the last words of a run find room on a full disk."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.refill()

    def refill(self) -> None:
        """Take back what was given; what the disk has not got it has not."""
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, _RESERVE_BYTES)
            finally:
                os.close(fd)

    def release(self) -> None:
        """Free two pages of it."""
        with contextlib.suppress(OSError):
            os.truncate(self._path, max(0, os.stat(self._path).st_size - _RELEASE_BYTES))


class RunStore:
    def __init__(self, scratch: str, *, log_bytes: int) -> None:
        self._root = os.path.join(scratch, "runs")
        self._spare = os.path.join(self._root, runfile.NEXT)
        self._log_bytes = log_bytes
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        self._reserve = Reserve(os.path.join(scratch, "reserve"))

    def folder(self, run_id: str) -> str:
        return os.path.join(self._root, sha256(run_id.encode()))

    def open_log(self, run_id: str) -> RunLogWriter:
        """The log of a run that has been created and has not printed yet."""
        return RunLogWriter(
            self.folder(run_id), fresh=True, cap_bytes=self._log_bytes, make_room=self._reserve.release
        )

    def prepare(self) -> None:
        """Make the folder of the next run, with its files: to make them is what takes time."""
        with contextlib.suppress(OSError):
            self._make_spare()

    def create(self, order: Order, queued_at: float) -> None:
        """Claim the run id for ever.  Raises OSError: the id was claimed, or the disk is full."""
        claim = {
            "run_id": order.run_id,
            "incarnation": order.incarnation,
            "digest": order.digest,
            "mode": order.mode,
            "timeout": order.timeout,
            "queued_at": queued_at,
        }
        failpoint("run.before_meta")
        if not os.path.isdir(self._spare):
            self._make_spare()
        runfile.write_claim(self._spare, claim)
        failpoint("run.after_claim")
        os.rename(self._spare, self.folder(order.run_id))  # not onto a folder with files
        failpoint("run.after_meta")

    def _make_spare(self) -> None:
        os.makedirs(self._spare, mode=0o700, exist_ok=True)
        for name in runfile.NAME, first_segment():
            os.close(os.open(os.path.join(self._spare, name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def save(self, status: RunStatus) -> bool:
        """Write the status of an ended run; False if the disk refuses, even with the reserve given up."""
        for release in (False, True):
            if release:
                self._reserve.release()
            try:
                runfile.write_status(self.folder(status["run_id"]), status)
            except FileNotFoundError:  # the folder was removed: nobody will ask
                return True
            except OSError:
                continue
            if release:
                self._reserve.refill()
            return True
        return False

    def delete(self, status: RunStatus) -> None:
        """Remove the output of an ended run.  What stays says that its id was used.  Raises OSError."""
        folder = self.folder(status["run_id"])
        with contextlib.suppress(FileNotFoundError):  # nothing is left of it
            runfile.write_status(folder, {**status, "deleted": True})
        drop_segments(folder)

    def load(self, run_id: str) -> RunStatus | None:
        """Return the status of an ended run; None if there is none."""
        return cast(RunStatus | None, runfile.read(self.folder(run_id))[1])

    def adopt(self, reason: str, now: float) -> list[RunStatus]:
        """Take over the folders of earlier shims: return all runs, those not ended being lost from now on.

        A folder whose claim was not completed is removed: its code was never handed over.
        """
        statuses = []
        _remove(self._spare)
        for name in os.listdir(self._root):
            folder = os.path.join(self._root, name)
            claim, status = runfile.read(folder)
            if status is not None:
                statuses.append(cast(RunStatus, status))
            elif claim is not None:
                lost = self._lost(claim, folder, reason, now)
                self.save(lost)
                statuses.append(lost)
            else:
                _remove(folder)
        return statuses

    def _lost(self, claim: dict[str, Any], folder: str, reason: str, now: float) -> RunStatus:
        log = RunLogWriter(folder)
        log.close()
        return {
            "run_id": claim["run_id"],
            "incarnation": claim["incarnation"],
            "digest": claim["digest"],
            "mode": claim["mode"],
            "state": RunState.LOST.value,
            "exit_code": None,
            "reason": reason,
            "end_offset": log.end_offset,
            "queued_at": claim["queued_at"],
            "started_at": None,
            "ended_at": now,
            "step": None,
            "step_end": 0,
            "prompt": None,
        }


def replace_file(path: str, content: bytes) -> None:
    """Replace a file atomically (for readers and for the death of this process).  Raises OSError."""
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    os.rename(temporary, path)


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
