"""What an agent keeps on disk about its kernels, and how it survives a crash between any two steps.

::

    DATA_DIR/kernels/<kernel id>/   a kernel's scratch folder; its incarnations share it
        kernel.json                 the KernelSpec of the latest incarnation; written first
        spec.json, shim.json        what the back end tells the shim, and the shim about itself
        exit.json                   how the latest incarnation ended, once it has
        etc/                        what the sandbox shows in the kernel's /etc, and its system-call filter
        work/                       the kernel's own folder; all else is out of its reach
        kernel.log                  what it wrote outside of runs; shim.err: what its shim complained of
        runs/<sha256 of run id>/    meta, output and status of each run, owned by the shim
    DATA_DIR/past/<kernel id>/      the runs of a kernel that is gone, and in exit.json how and when it ended
    DATA_DIR/ready/<token>/         the same, of kernels that nobody has asked for yet
    DATA_DIR/retired/<kernel id>    the highest incarnation that is over for good, as text

A retired incarnation is never started again, even if a belated or repeated request asks for it.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
from cattrs import BaseValidationError

from ..shim import runfile
from ..wire.codec import wire
from ..wire.reports import KernelExit
from ..wire.rpc import KernelSpec

#: How long a retired incarnation is remembered, in seconds: longer than any request may be under way.
RETIRED_KEPT = 3600.0


@attrs.frozen
class Scratch:
    """The folder of one kernel. All paths are absolute."""

    root: Path

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def etc(self) -> Path:
        """What the sandbox shows of the kernel's own account."""
        return self.root / "etc"

    @property
    def spec_file(self) -> Path:
        return self.root / "spec.json"

    @property
    def shim_file(self) -> Path:
        return self.root / "shim.json"

    @property
    def exit_file(self) -> Path:
        return self.root / "exit.json"

    @property
    def log_file(self) -> Path:
        """What the kernel wrote outside of runs."""
        return self.root / "kernel.log"

    @property
    def shim_errors(self) -> Path:
        return self.root / "shim.err"

    def run(self, run_id: str) -> Path:
        """The folder of one run."""
        return run_folder(self.runs, run_id)

    def has_runs(self) -> bool:
        return self.runs.is_dir() and any(path.name != runfile.NEXT for path in self.runs.iterdir())

    def has_work(self) -> bool:
        """Whether anything lies in the kernel's own folder (or it cannot be said)."""
        try:
            return self.work.is_dir() and any(self.work.iterdir())
        except OSError:
            return True

    def load(self) -> KernelSpec | None:
        """What was last asked for here; None when the folder is not a kernel's or was left half made."""
        content = read_json(self.root / "kernel.json")
        try:
            return None if content is None else wire.structure(content, KernelSpec)
        except BaseValidationError:
            return None

    def load_exit(self) -> KernelExit | None:
        """How the latest incarnation ended; None when no agent saw it end."""
        content = read_json(self.exit_file)
        try:
            return None if content is None else wire.structure(content, KernelExit)
        except BaseValidationError:
            return None

    def save_exit(self, exit: KernelExit) -> None:
        """Remember it for the next agent; a full or vanished disk is not worth failing for."""
        with suppress(OSError):
            write_json(self.exit_file, wire.unstructure(exit))


def run_folder(runs: Path, run_id: str) -> Path:
    """The folder of one run in a folder of *runs*."""
    return runs / hashlib.sha256(run_id.encode()).hexdigest()


class DataDirInUse(Exception):
    """Another agent works on this data directory."""


class KernelStore:
    """The kernels of one agent on disk. All methods are short file operations."""

    def __init__(self, data_dir: Path, *, shared_with_kernels: bool) -> None:
        """Make what is missing of *data_dir*. *shared_with_kernels*: kernels have accounts of their own."""
        self.data_dir = data_dir
        # Kernels' accounts pass through on the way to their work folder, but list nothing.
        self._mode = 0o711 if shared_with_kernels else 0o700
        self._kernels = data_dir / "kernels"
        self._retired = data_dir / "retired"
        self._past = data_dir / "past"
        #: Kernels that nobody has asked for yet, each in a folder like a kernel's.
        self.ready = data_dir / "ready"
        self._make(self._kernels)
        self._make(self.ready)
        self._retired.mkdir(0o700, exist_ok=True)
        self._past.mkdir(0o700, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While inside no other agent works here. Raises `DataDirInUse`."""
        fd = os.open(self.data_dir / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataDirInUse(f"{self.data_dir} is in use by another agent") from None
            yield
        finally:
            os.close(fd)

    def scratch(self, kernel_id: UUID) -> Scratch:
        return Scratch(self._kernels / str(kernel_id))

    def prepare(self, spec: KernelSpec) -> Scratch:
        """The scratch folder for a new kernel, or for a new incarnation in the folder of the earlier ones."""
        scratch = self.scratch(spec.kernel_id)
        self._make(scratch.root)
        for earlier in (scratch.shim_file, scratch.exit_file):
            earlier.unlink(missing_ok=True)
        write_json(scratch.root / "kernel.json", wire.unstructure(spec))
        scratch.work.mkdir(0o700, exist_ok=True)
        scratch.runs.mkdir(0o700, exist_ok=True)
        self._bring_back(scratch)
        return scratch

    def prepare_ready(self, spec: KernelSpec, ready: Scratch, move: Callable[[Path, Path], None]) -> Scratch:
        """As `prepare`, of a folder with a shim in it that is made ready: *move* renames it."""
        scratch = self.scratch(spec.kernel_id)
        write_json(ready.root / "kernel.json", wire.unstructure(spec))
        move(ready.root, scratch.root)
        self._bring_back(scratch)
        return scratch

    def _bring_back(self, scratch: Scratch) -> None:
        """An earlier life of the kernel was over and done with before this one was asked for."""
        past = self._past / scratch.root.name
        if past.exists():
            for folder in list(past.iterdir()):
                if folder.is_dir():
                    folder.rename(scratch.runs / folder.name)
            shutil.rmtree(past)

    def new_ready(self, token: str) -> Scratch:
        """A new folder for a kernel that nobody has asked for yet."""
        scratch = Scratch(self.ready / token)
        self._make(scratch.root)
        scratch.work.mkdir(0o700)
        scratch.runs.mkdir(0o700)
        return scratch

    def scan_ready(self) -> list[Scratch]:
        """What an earlier agent had ready."""
        return [Scratch(folder) for folder in self.ready.iterdir()]

    def scan(self) -> list[tuple[KernelSpec, Scratch]]:
        """The kernels that an earlier agent left here. Folders that it left half made or half removed go."""
        found = []
        for folder in sorted(self._kernels.iterdir()):
            scratch = Scratch(folder)
            if (spec := scratch.load()) is not None:
                found.append((spec, scratch))
            else:  # nothing was started before kernel.json was there
                self.remove(scratch)
        return found

    def past(self, kernel_id: UUID) -> Path:
        """Where the runs of the kernel are when it is gone."""
        return self._past / str(kernel_id)

    def archive(self, scratch: Scratch, exit: KernelExit, ended_at: float) -> Path | None:
        """Put the runs of a kernel that ended (unix seconds) where they stay; None if there are none."""
        if not scratch.has_runs():
            return None
        past = self._past / scratch.root.name
        shutil.rmtree(scratch.runs / runfile.NEXT, ignore_errors=True)
        scratch.runs.rename(past)
        with suppress(OSError):
            write_json(past / "exit.json", {"reason": exit.reason, "ended_at": ended_at})
        return past

    def folders_of_runs(self) -> list[tuple[Path, float | None]]:
        """The folders with runs, and since when (unix seconds) their kernels are gone."""
        folders: list[tuple[Path, float | None]] = [
            (folder / "runs", None) for folder in self._kernels.iterdir()
        ]
        for folder in self._past.iterdir():
            with suppress(FileNotFoundError):  # brought back meanwhile
                folders.append((folder, ended_how(folder)[1]))
        return folders

    def retire(self, kernel_id: UUID, incarnation: int) -> None:
        """Never start this incarnation or an earlier one again."""
        if incarnation > self.retired(kernel_id):
            write_private(self._retired / str(kernel_id), str(incarnation).encode())

    def retired(self, kernel_id: UUID) -> int:
        """The highest retired incarnation, or -1."""
        try:
            return int((self._retired / str(kernel_id)).read_text())
        except FileNotFoundError:
            return -1

    def forget_retired(self, now: float) -> None:
        """Forget what was retired longer than `RETIRED_KEPT` before *now* (unix seconds)."""
        for path in self._retired.iterdir():
            if path.stat().st_mtime < now - RETIRED_KEPT:
                path.unlink(missing_ok=True)

    def remove(self, scratch: Scratch) -> None:
        """Remove a kernel's folder with all in it; may take long. Nothing of it may run any more.

        Raises OSError when something cannot be removed.
        """
        if scratch.root.parent not in (self._kernels, self.ready):
            raise ValueError(f"{scratch.root} is not a kernel's folder")
        while scratch.root.exists():
            try:
                shutil.rmtree(scratch.root)
            except FileNotFoundError:  # somebody else is about it too
                continue
            except PermissionError:  # the user closed a folder; where we are not root that keeps us out too
                _open_folders(scratch.root)
                shutil.rmtree(scratch.root)

    def _make(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        folder.chmod(self._mode)


def _open_folders(root: Path) -> None:
    for folder, names, _ in os.walk(root):
        for path in (os.path.join(folder, name) for name in names):
            if not os.path.islink(path):
                os.chmod(path, 0o700)


def read_json(path: Path) -> Any:
    """The JSON value in a file; None when it does not exist or is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def ended_how(past: Path) -> tuple[str, float]:
    """Why and when (unix seconds) the kernel ended whose runs these are. `FileNotFoundError`."""
    match read_json(past / "exit.json"):
        case {"reason": str(reason), "ended_at": int() | float() as ended_at}:
            return reason, float(ended_at)
    return "lost", past.stat().st_mtime  # there was no room to write it


def tail(path: Path, characters: int = 1000) -> str:
    """The last words in a file, for a message; empty when there are none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4 * characters))
            return file.read().decode(errors="replace")[-characters:].strip()
    except FileNotFoundError:
        return ""


def write_json(path: Path, value: Any) -> None:
    """Replace a file by *value* as JSON, in one step."""
    write_private(path, json.dumps(value, ensure_ascii=True).encode())


def write_private(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file in one step, with *mode*."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with open(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
