"""How long runs are kept that have ended, and how much of their output: what goes, the oldest first.

The runs of a kernel that is gone stay for a time. While they do, and while a kernel lives, output is kept
within bounds for each session and for the agent: what is dropped leaves a gap, and the run's status.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import trio

from ..shim import runfile
from ..shim.runlog import drop_segments

log = logging.getLogger(__name__)

#: Between two looks at the disk; longer where a look takes long.
_EVERY = 10.0
_SHARE = 20
#: Ended runs of one session of which anything is kept.
MOST_RUNS = 4096


@attrs.frozen(kw_only=True)
class Limits:
    """``after_end`` in seconds after a session's end; bytes of output of all runs of a session, and of an
    agent."""

    after_end: float = 24 * 3600.0
    session_bytes: int = 1 << 30
    all_bytes: int = 10 << 30
    session_runs: int = MOST_RUNS


@attrs.frozen
class KeptRun:
    """A run on disk; ``ended_at`` (unix seconds) is None while it has not ended."""

    folder: Path
    ended_at: float | None
    bytes: int


@attrs.frozen(kw_only=True)
class KeptSession:
    """The runs of one kernel; ``ended_at`` (unix seconds) when it is gone."""

    folder: Path
    runs: Sequence[KeptRun]
    ended_at: float | None = None


@attrs.define
class Plan:
    """What is to go: the runs of whole sessions, whole runs, and the output of runs."""

    sessions: list[Path] = attrs.Factory(list)
    runs: list[Path] = attrs.Factory(list)
    outputs: list[KeptRun] = attrs.Factory(list)


def plan(sessions: Iterable[KeptSession], limits: Limits, now: float) -> Plan:
    """What has to go at the time *now* (unix seconds)."""
    going = Plan()
    staying: list[KeptRun] = []
    total = 0
    for session in sessions:
        if session.ended_at is not None and session.ended_at + limits.after_end <= now:
            going.sessions.append(session.folder)
            continue
        ended = sorted((run for run in session.runs if run.ended_at is not None), key=_age)
        surplus = max(0, len(ended) - limits.session_runs)
        going.runs += [run.folder for run in ended[:surplus]]
        gone = sum(run.bytes for run in ended[:surplus])
        left = sum(run.bytes for run in session.runs) - gone
        with_output = [run for run in ended[surplus:] if run.bytes]
        dropped = _oldest(with_output, left - limits.session_bytes)
        going.outputs += dropped
        staying += with_output[len(dropped) :]
        total += left - sum(run.bytes for run in dropped)
    going.outputs += _oldest(sorted(staying, key=_age), total - limits.all_bytes)
    return going


def _oldest(runs: Sequence[KeptRun], surplus: int) -> Sequence[KeptRun]:
    """As many of the first runs as free *surplus* bytes."""
    for count, run in enumerate(runs):
        if surplus <= 0:
            return runs[:count]
        surplus -= run.bytes
    return runs


def _age(run: KeptRun) -> float:
    return run.ended_at or 0.0


class Retention:
    """Looks after the runs below the folders that it is told of."""

    def __init__(
        self,
        sessions: Callable[[], Iterable[tuple[Path, float | None]]],
        limits: Limits,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """*sessions* lists folders of runs, each with the time (unix seconds) at which its kernel ended."""
        self._sessions = sessions
        self._limits = limits
        self._clock = clock
        #: Ended runs by folder, with the folder's time of change.
        self._known: dict[Path, tuple[int, KeptRun]] = {}
        self._figures: dict[str, float] = {"kept": 0, "bytes": 0, "dropped_bytes": 0, "removed": 0}

    def stats(self) -> Mapping[str, float]:
        """Runs that are kept and the bytes of their output; bytes dropped, and runs removed, so far."""
        return dict(self._figures)

    async def run(self) -> None:
        """Enforce the limits, again and again."""
        while True:
            began = trio.current_time()
            await trio.to_thread.run_sync(self.enforce, abandon_on_cancel=True)
            await trio.sleep(max(_EVERY, _SHARE * (trio.current_time() - began)))

    def enforce(self) -> None:
        """Look at the disk and let go of what is too much. Blocks: for a thread."""
        known, self._known = self._known, {}
        sessions = [self._look(folder, ended_at, known) for folder, ended_at in self._sessions()]
        going = plan(sessions, self._limits, self._clock())
        runs = [run for session in sessions for run in session.runs]
        total = sum(run.bytes for run in runs)
        for run in going.outputs:
            log.info("dropping %d bytes of output, the oldest: %s", run.bytes, run.folder)
            with suppress(OSError):
                drop_segments(run.folder)
        over = set(going.sessions)
        gone = {*going.runs, *(run.folder for run in runs if run.folder.parent in over)}
        for folder in (*going.sessions, *going.runs):
            log.info("the time of these runs is over: %s", folder)
            shutil.rmtree(folder, ignore_errors=True)
        dropped = sum(run.bytes for run in going.outputs)
        removed = sum(run.bytes for run in runs if run.folder in gone)
        self._figures["kept"] = len(runs) - len(gone)
        self._figures["bytes"] = total - dropped - removed
        self._figures["dropped_bytes"] += dropped
        self._figures["removed"] += len(gone)

    def _look(
        self, folder: Path, ended_at: float | None, known: Mapping[Path, tuple[int, KeptRun]]
    ) -> KeptSession:
        runs = []
        with suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == runfile.NEXT or not entry.is_dir(follow_symlinks=False):
                    continue
                path = Path(entry.path)
                with suppress(FileNotFoundError):
                    changed = entry.stat(follow_symlinks=False).st_mtime_ns
                    if path in known and known[path][0] == changed:
                        run = known[path][1]
                    else:
                        run = _kept(path, kernel_ended_at=ended_at)
                    if run.ended_at is not None:
                        self._known[path] = changed, run
                    runs.append(run)
        return KeptSession(folder=folder, runs=runs, ended_at=ended_at)


def _kept(folder: Path, *, kernel_ended_at: float | None) -> KeptRun:
    with os.scandir(folder) as entries:
        size = sum(entry.stat().st_size for entry in entries if entry.name != runfile.NAME)
    _, status = runfile.read(folder)
    ended_at = kernel_ended_at if status is None else status.get("ended_at")
    return KeptRun(folder, float(ended_at) if isinstance(ended_at, int | float) else None, size)
