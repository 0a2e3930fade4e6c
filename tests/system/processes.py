"""The processes that make up a system, as /proc shows them."""

import os
import re
from contextlib import suppress
from pathlib import Path

from .harness import Up, processes_of

#: Of each child of `up`, and of one of the database server's processes, how it is called.
COMMANDS = {
    "agent": r"backendai_mgr agent ",
    "worker": r"backendai_mgr worker ",
    "postgres": r"bin/postgres -D ",
    "backend": r"postgres: postgres \S+ \[local\]",
}


def child(up: Up, name: str) -> int | None:
    """The pid of one of `COMMANDS`; None while there is none."""
    pids = (pid for pid, command in processes_of(up.data_dir).items() if re.search(COMMANDS[name], command))
    return next(pids, None)


def shim_of(up: Up, session_id: str) -> int:
    for pid, command in processes_of(up.data_dir).items():
        with suppress(FileNotFoundError):
            if "shim.main" in command and os.readlink(f"/proc/{pid}/cwd").endswith(session_id):
                return pid
    raise AssertionError("no shim")


def guest_of(up: Up, session_id: str) -> int:
    """Below the sandbox's own processes, where there is one."""
    for pid in descendants(shim_of(up, session_id)):
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"bwrap" not in argv[0]:
            return pid
    raise AssertionError("no guest")


def interpreter_of(up: Up, session_id: str) -> int:
    """The guest's first child."""
    return descendants(guest_of(up, session_id))[0]


def descendants(root: int) -> list[int]:
    """All below *root*, each after its parent."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [*parents.get(root, ())]
    for pid in found:
        found += parents.get(pid, ())
    return found


def alive(pid: int) -> bool:
    """Whether it is a process, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
