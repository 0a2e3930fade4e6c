"""What a system has left on the machine. Other systems may run beside it: only what is this one's counts, or
nobody's."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from .harness import processes_of, wait_until

#: Seconds until all that was ended has gone.
GONE = 20
_BOOK = Path("/run/backendai-mgr/accounts")
_GROUPS = Path("/sys/fs/cgroup")
_MARK = b"BACKENDAI_PLACE="


def traces(data_dir: Path) -> set[str]:
    """Processes, control groups, mounts, accounts, sockets and kernels of a data directory, as lines.

    Of processes also those that belong to no living system: with the account of a kernel that nobody has, or
    with a kernel's mark and no shim above them.
    """
    return {
        *(f"process {pid}: {command}" for pid, command in processes_of(data_dir).items()),
        *_strays(),
        *_groups(data_dir),
        *_mounts(data_dir),
        *_accounts(data_dir),
        *_files(data_dir),
    }


@contextlib.contextmanager
def nothing_left(data_dir: Path) -> Iterator[None]:
    """Afterwards nothing of that system is on the machine but its data."""
    yield
    found: set[str] = set()

    def clean() -> bool:
        found.clear()
        found.update(traces(data_dir))
        return not found

    with contextlib.suppress(AssertionError):
        wait_until(clean, GONE, "nothing is left")
    assert not found, f"left: {sorted(found)}"


def _strays() -> Iterator[str]:
    parents, suspects = {}, {}
    shims = set()
    held = {int(link.name) for link in _links() if link.exists()}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            command, owner = (entry / "cmdline").read_bytes(), entry.stat().st_uid
            parents[entry.name] = parent
            if state in "ZX":
                continue
            if b"backendai_mgr.shim.main" in command:
                shims.add(entry.name)
            elif 20000 <= owner < 60000 and owner not in held:
                yield f"process {entry.name} of account {owner}: {command!r}"
            elif _MARK in (entry / "environ").read_bytes():
                suspects[entry.name] = command
        except OSError:  # it has ended, or is not for us to see
            continue
    for pid, command in suspects.items():
        above = pid
        while above in parents and above not in shims:
            above = parents[above]
        if above not in shims:
            yield f"stray process {pid}: {command!r}"


def _groups(data_dir: Path) -> Iterator[str]:
    """As an agent names them: after its data directory."""
    prefix = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:8] + "-"
    parents = [*_GROUPS.glob("backendai-mgr"), *_GROUPS.glob("*/backendai-mgr")]
    for parent in parents:
        yield from (f"control group {path}" for path in parent.iterdir() if path.name.startswith(prefix))


def _mounts(data_dir: Path) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if Path(line.split()[4]).is_relative_to(data_dir):
            yield f"mount {line.split()[4]}"


def _links() -> list[Path]:
    if not os.access(_BOOK, os.R_OK | os.X_OK):
        return []
    return [link for link in _BOOK.iterdir() if link.name.isdecimal()]


def _accounts(data_dir: Path) -> Iterator[str]:
    for link in _links():
        with contextlib.suppress(FileNotFoundError):
            if link.readlink().is_relative_to(data_dir):
                yield f"account {link.name} of {link.readlink()}"


def _files(data_dir: Path) -> Iterator[str]:
    far = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:8]
    for folder in (data_dir / "run", *Path("/tmp").glob(f"backendai-mgr-*-{far}")):
        if folder.is_dir():
            yield from (f"socket {path}" for path in folder.iterdir())
    for name in ("kernels", "ready"):
        if (data_dir / name).is_dir():
            yield from (f"folder {path}" for path in (data_dir / name).iterdir())
    if (data_dir / "up.json").exists():
        yield "up.json"
