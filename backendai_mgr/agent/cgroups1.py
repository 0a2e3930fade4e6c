"""Control groups of version 1: a tree for each controller, or for some together."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import attrs

from . import cgroupfiles
from .cgroupfiles import PARENT, PERIOD_US, WEIGHTS, CgroupError, Usage, read_number, write


def find_v1(mounted: Mapping[str, Path]) -> "V1Driver | str":
    """*mounted*: mount point by controller. A sentence when it cannot be used; see `cgroups.find_cgroups`."""
    missing = [name for name in ("memory", "pids") if name not in mounted]
    if missing:
        return f"no {' and '.join(missing)} controller is mounted"
    parents = {name: place / PARENT for name, place in mounted.items()}
    try:
        for parent in dict.fromkeys(parents.values()):
            cgroupfiles.make(parent)
        if "cpu" in parents:
            write(parents["cpu"] / "cpu.shares", str(WEIGHTS["cpu.shares"]))
    except CgroupError as error:
        return str(error)
    return V1Driver(parents)


@attrs.frozen
class V1Driver:
    """`parents`: the parent group's folder by controller; several controllers may have one folder."""

    parents: Mapping[str, Path]

    @property
    def limits(self) -> frozenset[str]:
        return frozenset(self.parents) & {"memory", "pids", "cpu"}

    def create(self, name: str) -> "V1Cgroup":
        cgroupfiles.check_name(name)
        group = V1Cgroup(name, {controller: parent / name for controller, parent in self.parents.items()})
        for folder in group.folders:
            cgroupfiles.make(folder)
        return group

    def names(self, prefix: str) -> list[str]:
        return cgroupfiles.subgroups(list(self.parents.values()), prefix)

    async def sweep(self, prefix: str, keep: frozenset[str] = frozenset()) -> list[str]:
        return await cgroupfiles.sweep(self, prefix, keep)


@attrs.frozen
class V1Cgroup:
    name: str
    _by_controller: Mapping[str, Path]

    @property
    def folders(self) -> list[Path]:
        return list(dict.fromkeys(self._by_controller.values()))

    def set_limits(self, *, memory: int | None, pids: int | None, cpu: float | None) -> None:
        self._set_memory(memory)
        write(self._by_controller["pids"] / "pids.max", "max" if pids is None else str(pids))
        if (folder := self._by_controller.get("cpu")) is not None:
            write(folder / "cpu.cfs_period_us", str(PERIOD_US))
            write(folder / "cpu.cfs_quota_us", str(-1 if cpu is None else cgroupfiles.cpu_quota(cpu)))

    def _set_memory(self, memory: int | None) -> None:
        folder = self._by_controller["memory"]
        limit, with_swap = folder / "memory.limit_in_bytes", folder / "memory.memsw.limit_in_bytes"
        value = "-1" if memory is None else str(memory)
        if not with_swap.exists():  # swap is not counted: then no kernel gets any
            write(limit, value)
            write(folder / "memory.swappiness", "0")
            return
        # The limit with swap must never be the lower one.
        present = read_number(with_swap)
        grows = memory is None or (present is not None and memory > present)
        for path in (with_swap, limit) if grows else (limit, with_swap):
            write(path, value)

    def join_files(self) -> list[str]:
        return [str(folder / "cgroup.procs") for folder in self.folders]

    def add(self, pid: int) -> None:
        for folder in self.folders:
            write(folder / "cgroup.procs", str(pid))

    def pids(self) -> set[int]:
        return cgroupfiles.processes(self.folders)

    def oom_counter(self) -> tuple[str, str] | None:
        path = self._by_controller["memory"] / "memory.oom_control"
        # The line has been there since Linux 4.13.
        return None if read_number(path, "oom_kill") is None else (str(path), "oom_kill")

    def usage(self) -> Usage:
        accounts = self._by_controller.get("cpuacct")
        used = None if accounts is None else read_number(accounts / "cpuacct.usage")
        return Usage(
            memory=read_number(self._by_controller["memory"] / "memory.usage_in_bytes"),
            cpu=None if used is None else used / 1e9,
            pids=read_number(self._by_controller["pids"] / "pids.current"),
        )

    async def remove(self) -> None:
        with contextlib.suppress(CgroupError):  # so that nothing forks faster than it is killed
            write(self._by_controller["pids"] / "pids.max", "0")
        await cgroupfiles.remove(self.name, self.folders)
