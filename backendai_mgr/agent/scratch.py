"""What an agent keeps on disk about its kernels, and how it survives a crash between any two steps.

::

    DATA_DIR/kernels/<kernel id>/   a kernel's scratch folder; its incarnations share it
        kernel.json                 the KernelSpec of the latest incarnation; written first
        spec.json, shim.json        what the back end tells the shim, and the shim about itself
        exit.json                   how the latest incarnation ended, once it has
        work/                       the kernel's own folder; all else is out of its reach
        kernel.log                  what it wrote outside of runs; shim.err: what its shim complained of
        runs/<sha256 of run id>/    meta, output and status of each run, owned by the shim
    DATA_DIR/ready/<token>/         the same, of kernels that nobody has asked for yet
    DATA_DIR/retired/<kernel id>    the highest incarnation that is over for good, as text

A retired incarnation is never started again, even if a belated or repeated request asks for it.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import attrs
from cattrs import BaseValidationError

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
        return self.runs / hashlib.sha256(run_id.encode()).hexdigest()

    def has_runs(self) -> bool:
        return self.runs.is_dir() and any(self.runs.iterdir())

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


class KernelStore:
    """The kernels of one agent on disk. All methods are short file operations."""

    def __init__(self, data_dir: Path, *, shared_with_kernels: bool) -> None:
        """Make what is missing of *data_dir*. *shared_with_kernels*: kernels have accounts of their own."""
        self.data_dir = data_dir
        # Kernels' accounts pass through on the way to their work folder, but list nothing.
        self._mode = 0o711 if shared_with_kernels else 0o700
        self._kernels = data_dir / "kernels"
        self._retired = data_dir / "retired"
        #: Kernels that nobody has asked for yet, each in a folder like a kernel's.
        self.ready = data_dir / "ready"
        self._make(self._kernels)
        self._make(self.ready)
        self._retired.mkdir(0o700, exist_ok=True)

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
        return scratch

    def prepare_ready(self, spec: KernelSpec, ready: Scratch, move: Callable[[Path, Path], None]) -> Scratch:
        """As `prepare`, of a folder with a shim in it that is made ready: *move* renames it."""
        scratch = self.scratch(spec.kernel_id)
        write_json(ready.root / "kernel.json", wire.unstructure(spec))
        move(ready.root, scratch.root)
        return scratch

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
