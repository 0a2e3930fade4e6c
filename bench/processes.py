"""What /proc tells of a tree of processes: CPU seconds and memory, by the role of each process."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import attrs

_TICK = os.sysconf("SC_CLK_TCK")

#: The role of a process by its command line and its parent's role.
RoleOf = Callable[[str, str], str]


def one_role(name: str) -> RoleOf:
    """Every process of the tree has this role."""
    return lambda command, parent: name


def role_in_system(command: str, parent: str) -> str:
    """The roles in the tree below `up`. What a shim starts is its kernel."""
    if parent in ("shim", "kernel"):
        return "kernel"
    if parent == "postgres" or "bin/postgres " in command:
        return "postgres"
    if parent == "agent":
        return "shim"
    for role in ("agent", "worker"):
        if f" backendai_mgr {role} " in command:
            return role
    return "up"


@attrs.frozen
class Process:
    pid: int
    parent: int
    role: str
    #: CPU seconds of its own, and of its children that have ended and were waited for.
    own: float
    ended: float


def tree(root: int, role_of: RoleOf) -> list[Process]:
    """The living processes from *root* downwards, parents first."""
    found: dict[int, tuple[int, float, float]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended
            own, ended = (int(fields[at]) + int(fields[at + 1]) for at in (11, 13))
            found[int(entry.name)] = (int(fields[1]), own / _TICK, ended / _TICK)
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in found.items():
        children.setdefault(parent, []).append(pid)
    processes: list[Process] = []
    todo = [(root, "")]
    for pid, parent_role in todo:
        if pid in found:
            role = role_of(_command(pid), parent_role)
            processes.append(Process(pid, found[pid][0], role, *found[pid][1:]))
            todo += [(child, role) for child in children.get(pid, ())]
    return processes


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def cpu_seconds(processes: list[Process]) -> dict[str, float]:
    """CPU seconds by role. What ended kernels used is counted, as their agent waited for them."""
    seconds: dict[str, float] = {}
    for process in processes:
        of_ended = "kernel" if process.role in ("agent", "shim") else process.role
        for role, used in ((process.role, process.own), (of_ended, process.ended)):
            seconds[role] = seconds.get(role, 0) + used
    return seconds


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What was used in between, by role."""
    return {role: seconds - before.get(role, 0) for role, seconds in after.items()}


def pss(pid: int) -> float | None:
    """MiB of memory, shared pages divided among those that share them; None when it may not be read."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None
