"""The runs of a kernel whose shim is gone, as the shim left them on disk. They stay readable."""

import shutil
from pathlib import Path
from typing import Any

import attrs
from cattrs import BaseValidationError

from ..domain.status import RunState
from ..shim import runfile
from ..shim.runlog import RunLogReader
from ..wire.codec import wire
from ..wire.rpc import AgentRefusal, RunStatus
from .scratch import run_folder


@attrs.frozen
class PastRuns:
    """Statuses from disk. A run that has none was cut short by the kernel's end and is ``lost``."""

    root: Path
    #: Why the kernel ended, and when (unix seconds).
    reason: str
    ended_at: float

    def status(self, run_id: str) -> RunStatus | None:
        """The run's status; None when there never was such a run."""
        return self._status(run_folder(self.root, run_id))

    def delete(self, run_id: str) -> None:
        """Remove all of a run. `AgentRefusal` no-such-run."""
        if self.status(run_id) is None:
            raise AgentRefusal("no-such-run", f"no run {run_id} in this session")
        shutil.rmtree(run_folder(self.root, run_id), ignore_errors=True)

    def list(self) -> list[RunStatus]:
        """All runs."""
        try:
            folders = list(self.root.iterdir())
        except FileNotFoundError:
            return []
        # A folder that had not come to its place was no run yet.
        there = (folder for folder in folders if folder.name != runfile.NEXT)
        return [run for folder in there if (run := self._status(folder)) is not None]

    def _status(self, folder: Path) -> RunStatus | None:
        claim, status = runfile.read(folder)
        if status is None and claim is not None:
            status = self._cut_short(folder, claim)
        if status is None or status.get("deleted"):
            return None
        try:
            return wire.structure(status, RunStatus)
        except BaseValidationError:
            return None  # not written by our shim

    def _cut_short(self, folder: Path, claim: dict[str, Any]) -> dict[str, Any]:
        return {
            **claim,
            "state": RunState.LOST.value,
            "reason": self.reason,
            "end_offset": RunLogReader(folder).end_offset(),
            "ended_at": self.ended_at,
        }
