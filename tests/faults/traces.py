"""What kernels may leave on a machine."""

import os
from pathlib import Path


def traces() -> set[str]:
    """Processes of kernels, their control groups, mounts, sockets and accounts, as lines."""
    return {*_processes(), *_groups(), *_mounts(), *_files()}


def _processes() -> set[str]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environ, owner = (entry / "environ").read_bytes(), entry.stat().st_uid
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if state != "Z" and (b"BACKENDAI_PLACE=" in environ or 20000 <= owner < 60000):
                found.add(f"process {entry.name}")
    return found


def _groups() -> set[str]:
    if os.geteuid() != 0:
        return set()
    trees = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    parents = [parent for tree in trees if (parent := tree / "backendai-mgr").is_dir()]
    return {
        f"control group {entry.path}" for parent in parents for entry in os.scandir(parent) if entry.is_dir()
    }


def _mounts() -> set[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {f"mount {line.split()[4]}" for line in lines}


def _files() -> set[str]:
    book = Path("/run/backendai-mgr/accounts")
    accounts = [link for link in book.iterdir() if link.name.isdecimal()] if book.is_dir() else []
    held = {f"account {link.name}" for link in accounts if link.exists()}
    return held | {f"sockets {path}" for path in Path("/tmp").glob("backendai-mgr-*")}
