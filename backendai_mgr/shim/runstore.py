"""The run folders of a kernel on disk: ``runs/<sha256 of the run id>/{meta.json, NNN.seg, status.json}``.

``meta.json`` is created exclusively before the interpreter sees the code: it is the proof that a run id was
used.  ``status.json`` is written once, when the run has ended.  A folder outlives kernels and shims.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from typing import Any, cast

from backendai_mgr.shim.failpoint import failpoint
from backendai_mgr.shim.run import Order, RunState, RunStatus
from backendai_mgr.shim.runlog import RunLogWriter

# hashlib would load all of OpenSSL: megabytes in each of many processes, for one digest.
_sha256 = importlib.import_module("_sha2" if sys.version_info >= (3, 12) else "_sha256").sha256

_META = "meta.json"
_STATUS = "status.json"
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
        self._log_bytes = log_bytes
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        self._reserve = Reserve(os.path.join(scratch, "reserve"))

    def folder(self, run_id: str) -> str:
        return os.path.join(self._root, _sha256(run_id.encode()).hexdigest())

    def open_log(self, run_id: str) -> RunLogWriter:
        return RunLogWriter(self.folder(run_id), cap_bytes=self._log_bytes, make_room=self._reserve.release)

    def create(self, order: Order, queued_at: float) -> None:
        """Claim the run id for ever.  Raises FileExistsError if it was claimed, OSError for a full disk."""
        folder = self.folder(order.run_id)
        meta = {
            "run_id": order.run_id,
            "incarnation": order.incarnation,
            "digest": order.digest,
            "mode": order.mode,
            "timeout": order.timeout,
            "queued_at": queued_at,
        }
        failpoint("run.before_meta")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        path = os.path.join(folder, _META)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(fd, _json(meta))
        except OSError:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        failpoint("run.after_meta")

    def save(self, status: RunStatus) -> bool:
        """Write the status of an ended run; False if the disk refuses, even with the reserve given up."""
        for release in (False, True):
            if release:
                self._reserve.release()
            try:
                replace_file(os.path.join(self.folder(status["run_id"]), _STATUS), _json(status))
            except FileNotFoundError:  # the folder was removed: nobody will ask
                return True
            except OSError:
                continue
            if release:
                self._reserve.refill()
            return True
        return False

    def load(self, run_id: str) -> RunStatus | None:
        """Return the status of an ended run; None if there is none."""
        status = _read(os.path.join(self.folder(run_id), _STATUS))
        return None if status is None else cast(RunStatus, status)

    def adopt(self, reason: str, now: float) -> list[RunStatus]:
        """Take over the folders of earlier shims: return all runs, those not ended being lost from now on.

        A folder whose meta file was not completed is removed: its code was never handed over.
        """
        statuses = []
        for name in os.listdir(self._root):
            folder = os.path.join(self._root, name)
            status = cast(RunStatus | None, _read(os.path.join(folder, _STATUS)))
            if status is None:
                meta = _read(os.path.join(folder, _META))
                if meta is None:
                    _remove(folder)
                    continue
                status = self._lost(meta, folder, reason, now)
                self.save(status)
            statuses.append(status)
        return statuses

    def _lost(self, meta: dict[str, Any], folder: str, reason: str, now: float) -> RunStatus:
        log = RunLogWriter(folder)
        log.close()
        return {
            "run_id": meta["run_id"],
            "incarnation": meta["incarnation"],
            "digest": meta["digest"],
            "mode": meta["mode"],
            "state": RunState.LOST.value,
            "exit_code": None,
            "reason": reason,
            "end_offset": log.end_offset,
            "queued_at": meta["queued_at"],
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
    try:
        _write_all(fd, content)
    finally:
        os.close(fd)
    os.rename(temporary, path)


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _remove(folder: str) -> None:
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            os.unlink(os.path.join(folder, name))
        os.rmdir(folder)
