"""The runs of a kernel whose shim is gone, as the shim left them on disk. They stay readable."""

from pathlib import Path
from typing import Any

import attrs
from cattrs import BaseValidationError

from ..domain.status import RunState
from ..shim import runfile
from ..shim.runlog import RunLogReader
from ..wire.codec import wire
from ..wire.rpc import RunStatus
from .scratch import Scratch


@attrs.frozen
class PastRuns:
    """Statuses from disk. A run that has none was cut short by the kernel's end and is ``lost``."""

    scratch: Scratch
    #: Why the kernel ended, and when (unix seconds).
    reason: str
    ended_at: float

    def status(self, run_id: str) -> RunStatus | None:
        """The run's status; None when there never was such a run."""
        return self._status(self.scratch.run(run_id))

    def list(self) -> list[RunStatus]:
        """All runs, the earliest first."""
        try:
            folders = list(self.scratch.runs.iterdir())
        except FileNotFoundError:
            return []
        runs = [(folder, run) for folder in folders if (run := self._status(folder)) is not None]
        # A folder that had not come to its place was no run yet.
        return sorted((run for folder, run in runs if folder == self.scratch.run(run.run_id)), key=_age)

    def _status(self, folder: Path) -> RunStatus | None:
        claim, status = runfile.read(folder)
        if status is None and claim is not None:
            status = self._cut_short(folder, claim)
        try:
            return None if status is None else wire.structure(status, RunStatus)
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


def _age(run: RunStatus) -> float:
    return run.queued_at
