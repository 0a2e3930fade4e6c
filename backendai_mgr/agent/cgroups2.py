"""Control groups of version 2: one tree.

Tested on folders with the same file names, not on a machine whose controllers are in version 2: that its
limits hold is untried.
"""

import os
from pathlib import Path

import attrs

from . import cgroupfiles
from .cgroupfiles import PARENT, PERIOD_US, WEIGHTS, CgroupError, Usage, read_number, write

_NEEDED = ("memory", "pids")
_WANTED = (*_NEEDED, "cpu")
#: Beside the parent: where the agent itself goes if it stands in their way.
_LEAF = "agent"


def find_v2(mount: Path, own: str) -> "V2Driver | str":
    """*own*: our group, from *mount* on. A sentence when nothing can be used; see `cgroups.find_cgroups`.

    The groups go below our own one where that has been delegated to us, else below the root if we may.
    """
    base = mount / own
    if os.path.basename(own) == _LEAF and _delegated(base.parent):
        base = base.parent  # we, or who started us, went there before
    if not (own and _delegated(base)):
        base = mount
    try:
        controllers = (base / "cgroup.controllers").read_text().split()
    except OSError as error:
        return f"{base} cannot be read: {error.strerror}"
    missing = [name for name in _NEEDED if name not in controllers]
    if missing:
        return f"{base} has no {' and '.join(missing)} controller"
    wanted = [name for name in _WANTED if name in controllers]
    try:
        _pass_on(base, wanted, may_hold_us=base == mount)
        parent = base / PARENT
        cgroupfiles.make(parent)
        _pass_on(parent, wanted, may_hold_us=True)
        if "cpu" in wanted:
            write(parent / "cpu.weight", str(WEIGHTS["cpu.weight"]))
    except CgroupError as error:
        return str(error)
    return V2Driver(parent, frozenset(wanted))


def _delegated(group: Path) -> bool:
    """Whether we may make groups and move our processes there: as its owner; as root, if it is marked."""
    if not all(os.access(group / name, os.W_OK) for name in ("", "cgroup.procs", "cgroup.subtree_control")):
        return False
    if os.geteuid() != 0:
        return True
    for mark in ("user.delegate", "trusted.delegate"):  # as service managers set them
        try:
            if os.getxattr(group, mark) == b"1":
                return True
        except OSError:
            continue
    return False


def _pass_on(group: Path, controllers: list[str], *, may_hold_us: bool) -> None:
    """Let the groups below have these controllers. Only the root may hold processes at the same time."""
    try:
        present = (group / "cgroup.subtree_control").read_text().split()
    except OSError as error:
        raise CgroupError(f"{group} cannot be read: {error.strerror}") from error
    if set(controllers) <= set(present):
        return
    if not may_hold_us:
        cgroupfiles.make(group / _LEAF)
        write(group / _LEAF / "cgroup.procs", "0")
    write(group / "cgroup.subtree_control", " ".join(f"+{name}" for name in controllers))


@attrs.frozen
class V2Driver:
    parent: Path
    limits: frozenset[str]

    def create(self, name: str) -> "V2Cgroup":
        group = V2Cgroup(cgroupfiles.check_name(name), self.parent / name)
        cgroupfiles.make(group.folder)
        return group

    def names(self, prefix: str) -> list[str]:
        return cgroupfiles.subgroups([self.parent], prefix)

    async def sweep(self, prefix: str, keep: frozenset[str] = frozenset()) -> list[str]:
        return await cgroupfiles.sweep(self, prefix, keep)


@attrs.frozen
class V2Cgroup:
    name: str
    folder: Path

    def set_limits(self, *, memory: int | None, pids: int | None, cpu: float | None) -> None:
        # Version 2 counts swap apart. No swap for who has a limit: so the limit holds with swap included.
        if (swap := self.folder / "memory.swap.max").exists():
            write(swap, "max" if memory is None else "0")
        write(self.folder / "memory.max", "max" if memory is None else str(memory))
        write(self.folder / "pids.max", "max" if pids is None else str(pids))
        if (quota := self.folder / "cpu.max").exists():
            write(quota, f"{'max' if cpu is None else cgroupfiles.cpu_quota(cpu)} {PERIOD_US}")

    def join_files(self) -> list[str]:
        return [str(self.folder / "cgroup.procs")]

    def add(self, pid: int) -> None:
        write(self.folder / "cgroup.procs", str(pid))

    def pids(self) -> set[int]:
        return cgroupfiles.processes([self.folder])

    def oom_counter(self) -> tuple[str, str] | None:
        path = self.folder / "memory.events"
        return None if read_number(path, "oom_kill") is None else (str(path), "oom_kill")

    def usage(self) -> Usage:
        used = read_number(self.folder / "cpu.stat", "usage_usec")
        return Usage(
            memory=read_number(self.folder / "memory.current"),
            cpu=None if used is None else used / 1e6,
            pids=read_number(self.folder / "pids.current"),
        )

    async def remove(self) -> None:
        await cgroupfiles.remove(self.name, [self.folder])
