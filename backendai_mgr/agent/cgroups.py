"""Limits of kernels by control groups, version 1 or 2, whichever this machine has.

All agents keep their kernels' groups below one parent; names must differ between them, so begin
with something of the agent's own. As one parent weighs little against everything else on the machine, kernels
get all processors when nobody else wants them and never hold up the agent.
"""

from collections.abc import Iterator
from pathlib import Path

from .cgroupfiles import PARENT, Cgroup, CgroupDriver, CgroupError, Usage
from .cgroups1 import find_v1
from .cgroups2 import find_v2

__all__ = ["PARENT", "Cgroup", "CgroupDriver", "CgroupError", "Usage", "find_cgroups"]


def find_cgroups(
    *, mounts: Path = Path("/proc/self/mountinfo"), own: Path = Path("/proc/self/cgroup")
) -> CgroupDriver | str:
    """What this machine has and lets us use; or why there is nothing, as a sentence.

    Makes the parent group. With version 2 it may move this process into a group ``agent`` beside the parent,
    since a group that passes controllers on must hold no process itself.
    """
    found = dict(_mounted(mounts))
    v1 = find_v1({name: place for name, place in found.items() if name})
    if not isinstance(v1, str):
        return v1
    v2 = find_v2(found[""], _own_group(own)) if "" in found else "none is mounted"
    if not isinstance(v2, str):
        return v2
    return f"control groups cannot be used: version 1: {v1}; version 2: {v2}"


def _mounted(mounts: Path) -> Iterator[tuple[str, Path]]:
    """(controller, mount point); version 2 is the one without a name."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        left, _, right = line.partition(" - ")
        place = Path(left.split()[4].replace("\\040", " "))
        kind, _, options = right.split(" ", 2)
        if kind == "cgroup2":
            yield "", place
        elif kind == "cgroup":
            # Several may share one mount point. Service managers have trees without any.
            for name in options.split(" ")[-1].split(","):
                if name in ("memory", "pids", "cpu", "cpuacct"):
                    yield name, place


def _own_group(own: Path) -> str:
    """Path of our group in version 2, from its mount point on, without the first slash."""
    try:
        for line in own.read_text().splitlines():
            if line.startswith("0::/"):
                return line.removeprefix("0::/")
    except OSError:
        pass
    return ""
