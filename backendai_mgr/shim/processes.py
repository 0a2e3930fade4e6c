"""Processes of a kernel as /proc shows them, and what Linux offers to keep hold of them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Have orphaned descendants become our children, however often they forked or changed session."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have this process killed when `parent`, its parent, dies.  Call it last: a change of uid undoes it."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


def start_time(pid: int) -> int:
    """Return when the process started, in clock ticks since boot.  Raises OSError if there is none."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(_fields(file.read())[19])


def descendants(root: int) -> list[int]:
    """Return the pids below `root`.  One that is being forked, or whose parent ends, may be missed."""
    if not os.path.exists(f"/proc/{root}/task/{root}/children"):
        return _found_among_all(root)
    found = _children(root)
    for pid in found:  # grows while we walk it
        found += _children(pid)
    return found


def _children(pid: int) -> list[int]:
    """Ask the process alone: each of many shims does so, and to look at all processes took them minutes."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
    return found


def _found_among_all(root: int) -> list[int]:
    """The same where the system does not tell of children (CONFIG_PROC_CHILDREN)."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
            children.setdefault(int(_fields(file.read())[1]), []).append(pid)
    found = [*children.get(root, ())]
    for pid in found:  # grows while we walk it
        found += children.get(pid, ())
    return found


def with_environment(entry: bytes) -> list[int]:
    """Return the pids of other processes that were started with ``NAME=value`` in their environment."""
    found = []
    for pid in _pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if entry in file.read().split(b"\0") and pid != os.getpid():
                found.append(pid)
    return found


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _fields(stat: bytes) -> list[bytes]:
    """Cut /proc/PID/stat after the command name, which may hold anything: [0] is field 3, the state."""
    return stat[stat.rindex(b")") + 2 :].split()


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
