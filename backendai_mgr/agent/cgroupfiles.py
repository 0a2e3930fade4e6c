"""Control groups: what both versions of them share."""

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import attrs
import trio

#: The parent of all kernels' groups of this machine.
PARENT = "backendai-mgr"
_REMOVE_SECONDS = 5.0
_PAUSE_SECONDS = 0.02
PERIOD_US = 100_000
_LEAST_QUOTA_US = 1_000
# Measured: with kernels in busy loops, a start took 17 ms at equal weights and 10 ms at these.
WEIGHTS: Mapping[str, int] = {"cpu.shares": 64, "cpu.weight": 6}  # of 1024 and of 100


class CgroupError(Exception):
    """The operating system refused; the text says what, of which group."""


@attrs.frozen
class Usage:
    """What a group uses: bytes, seconds of processors since it was made, processes and threads now.

    None where the machine does not tell.
    """

    memory: int | None
    cpu: float | None
    pids: int | None


class Cgroup(Protocol):
    """A group of processes: one kernel's."""

    @property
    def name(self) -> str: ...

    def set_limits(self, *, memory: int | None, pids: int | None, cpu: float | None) -> None:
        """Set all limits; None is no limit. Also with processes in it, and again.

        *memory* in bytes, swap included where the machine counts that; *pids* counts threads, and everything
        that joined; *cpu* is a number of processors. Raises `CgroupError`, also when more memory than
        that is in use and cannot be freed.
        """

    def join_files(self) -> list[str]:
        """Files to which a process writes ``0`` to join the group with all that it starts from then on."""

    def add(self, pid: int) -> None:
        """Move a process that runs already; its children stay where they are. Raises `CgroupError`."""

    def pids(self) -> set[int]:
        """The processes in it."""

    def oom_counter(self) -> tuple[str, str] | None:
        """Path and key: the file in whose line ``key N`` N processes were killed for want of memory."""

    def usage(self) -> Usage: ...

    async def remove(self) -> None:
        """Kill what is in it, wait for its end, and remove it; nothing if it is gone.

        Raises `CgroupError` if something is left after some seconds.
        """


class CgroupDriver(Protocol):
    @property
    def limits(self) -> frozenset[str]:
        """What its groups can limit, of ``memory``, ``pids``, ``cpu``; the first two always."""

    def create(self, name: str) -> Cgroup:
        """Make a group, or take the one of that name that is there. Raises ValueError, `CgroupError`."""

    def names(self, prefix: str) -> list[str]:
        """Groups, of all agents, whose name begins so."""

    async def sweep(self, prefix: str, keep: frozenset[str] = frozenset()) -> list[str]:
        """Remove all groups whose name begins so, but those to *keep*; the names removed.

        One that cannot be removed now is left for the next time.
        """


def check_name(name: str) -> str:
    if not name or name.startswith(".") or "/" in name or "\0" in name or len(name) > 128:
        raise ValueError(f"{name!r} cannot name a control group")
    return name


def write(path: Path, value: str) -> None:
    """Raises CgroupError."""
    try:
        # Not write_text: it would make a file that is missing.
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise CgroupError(f"{path} does not take {value}: {error.strerror}") from error


def read_number(path: Path, key: str | None = None) -> int | None:
    """The number in a file, or in its line ``key N``; None when it is not there."""
    try:
        text = path.read_text()
    except OSError:
        return None
    if key is not None:
        text = next(
            (line.removeprefix(f"{key} ") for line in text.splitlines() if line.startswith(f"{key} ")), ""
        )
    return int(text) if text.strip().isdigit() else None


def make(folder: Path) -> None:
    """Raises CgroupError."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise CgroupError(f"{folder} cannot be made: {error.strerror}") from error


def cpu_quota(cpu: float) -> int:
    """Microseconds of each period of `PERIOD_US`."""
    return max(_LEAST_QUOTA_US, round(cpu * PERIOD_US))


def processes(folders: Sequence[Path]) -> set[int]:
    """In any of these groups or below. 0 stands for processes that we cannot name: left out."""
    found: set[int] = set()
    for folder in folders:
        for root, _, names in os.walk(folder):
            if "cgroup.procs" in names:
                try:
                    text = Path(root, "cgroup.procs").read_text()
                except OSError:
                    continue
                found |= {int(word) for word in text.split()}
    return found - {0}


async def remove(name: str, folders: Sequence[Path]) -> None:
    """See `Cgroup.remove`."""
    with trio.move_on_after(_REMOVE_SECONDS):
        while left := [folder for folder in folders if folder.exists()]:
            _kill(left)
            for folder in left:
                for root, _, _ in os.walk(folder, topdown=False):
                    try:
                        os.rmdir(root)
                    except FileNotFoundError:
                        pass
                    except OSError:
                        break  # busy: a dead process leaves its group a little after it ended
            if any(folder.exists() for folder in left):
                await trio.sleep(_PAUSE_SECONDS)
        return
    raise CgroupError(f"control group {name} cannot be removed: {len(processes(folders))} processes are left")


def _kill(folders: Sequence[Path]) -> None:
    for folder in folders:
        if (folder / "cgroup.kill").exists():
            try:
                write(folder / "cgroup.kill", "1")  # all at once; no fork escapes it
            except CgroupError:
                continue
    for pid in processes(folders):
        try:
            process = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            # Looked at again now that the number cannot go to another: it might have done so before.
            if pid in processes(folders):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        except OSError:
            pass
        finally:
            os.close(process)


async def sweep(driver: CgroupDriver, prefix: str, keep: frozenset[str]) -> list[str]:
    """See `CgroupDriver.sweep`."""
    removed = []
    for name in driver.names(prefix):
        if name not in keep:
            try:
                await driver.create(name).remove()
            except CgroupError:
                continue
            removed.append(name)
    return removed


def subgroups(parents: Sequence[Path], prefix: str) -> list[str]:
    names: set[str] = set()
    for parent in parents:
        try:
            names |= {entry.name for entry in os.scandir(parent) if entry.is_dir()}
        except FileNotFoundError:
            continue
    return sorted(name for name in names if name.startswith(prefix))
