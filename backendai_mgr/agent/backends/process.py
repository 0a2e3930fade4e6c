"""Kernels as plain processes of this machine: not isolated but by an account, where the agent is root."""

import hashlib
import logging
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import trio

from ...shim.failpoint import VARIABLE, failpoint
from ...wire.reports import ImageReport
from ...wire.rpc import KernelSpec
from ..accounts import Account, AccountBook, NoAccountLeft, kill_all_of, separate_accounts
from ..images import LocalImage, Manifest, find_images
from ..inotify import wait_for_file
from ..processes import Process, command_lines, environment_of, held, owner_of
from ..scratch import Scratch, read_json, tail, write_json, write_private
from .interface import Shim, StartFailed

log = logging.getLogger(__name__)

#: Seconds from the shim's start until it must serve its socket.
SHIM_TIMEOUT = 15.0
#: Seconds for what a kernel left running to die after SIGKILL.
CLEAR_TIMEOUT = 5.0
#: A shim without an agent ends its kernel and itself after so many seconds.
LEASH = 3600.0
RUN_LOG_BYTES = 64 << 20
#: Starts that are under way at once; more would only slow each other down.
_STARTS_PER_CPU = 4

_SHIM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from backendai_mgr.shim.main import main; main(sys.argv[2])"
)
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_SHIM_ENVIRON = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
_GUEST_ENVIRON = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
#: In the guest's environment: tells its stray processes.
_MARK = "BACKENDAI_KERNEL_ID"
_EARLY = ("PYTHON", "LD_", "MALLOC_", "GLIBC_")
_CORE_COUNT_LABEL = "ai.backend.envs.corecount"


class ProcessBackend:
    """The back end for machines where nothing better is there. Make it with `open`."""

    def __init__(
        self,
        data_dir: Path,
        sockets: Path,
        images: Iterable[LocalImage],
        book: AccountBook | None,
        failpoints: str | None,
    ) -> None:
        self._images = {image.name: image for image in images}
        self._sockets = sockets
        self._guest = _publish_inside(data_dir) / "guest.py"
        self._book = book
        self._accounts: dict[UUID, tuple[Account, Path]] = {}  # and the scratch folders that hold them
        self._starting = trio.CapacityLimiter(_STARTS_PER_CPU * len(os.sched_getaffinity(0)))
        self._failpoints = failpoints

    @classmethod
    async def open(
        cls,
        *,
        data_dir: Path,
        sockets: Path,
        manifests: Iterable[Manifest],
        failpoints: str | None = os.environ.get(VARIABLE),
    ) -> Self:
        """Find out what this machine can run. *failpoints* are those of the shims, for tests."""
        book = AccountBook() if separate_accounts() else None
        account = None if book is None else book.take(data_dir)
        try:
            images = await find_images(manifests, account)
        finally:
            if book and account:
                book.give_back(account, data_dir)
        return cls(data_dir, sockets, images, book, failpoints)

    def images(self) -> Sequence[ImageReport]:
        return [image.report() for image in self._images.values()]

    def missing(self) -> Mapping[str, str]:
        shared = "" if separate_accounts() else " and act with the agent's own account"
        missing = {
            "isolation": f"Kernels are plain processes: they see the machine's files and processes{shared}.",
            "limits": "Kernels are not held to the memory and processors that they were given.",
            "network": "Kernels share the machine's network.",
        }
        if not self._images:
            whom = "a kernel's account" if separate_accounts() else "the agent's account"
            missing["account"] = f"No interpreter of the image manifests can be executed by {whom}."
        return missing

    async def start(self, spec: KernelSpec, scratch: Scratch) -> Shim:
        image = self._images.get(spec.image)
        if image is None:
            raise StartFailed(f"this agent has no image {spec.image}")
        if spec.architecture != os.uname().machine:
            raise StartFailed(f"this agent's architecture is {os.uname().machine}, not {spec.architecture}")
        async with self._starting:
            socket = self._socket(spec)
            self._write_spec(spec, scratch, image, socket)
            failpoint("kernel.after_scratch")
            argv = [sys.executable, "-I", "-S", "-c", _SHIM, str(_PACKAGE_ROOT), str(scratch.root)]
            process = Process.spawn(argv, _SHIM_ENVIRON, stderr=scratch.shim_errors)
            failpoint("kernel.after_shim_spawned")
            return await self._when_up(process, scratch, socket)

    async def adopt(self, spec: KernelSpec, scratch: Scratch) -> Shim | None:
        match read_json(scratch.spec_file):
            case {"uid": int(uid)} if self._book and (account := self._book.keep(uid, scratch.root)):
                self._accounts[spec.kernel_id] = account, scratch.root
        socket = self._socket(spec)
        match read_json(scratch.shim_file):
            case {"pid": int(pid), "start_time": int(started)}:
                process = Process.hold(pid, started)
                return None if process is None else Shim(process, socket)
        for pid, argv in command_lines():  # it may not have come so far yet
            if argv[-1:] == [str(scratch.root)] and _SHIM in argv and (process := Process.hold(pid)):
                try:
                    return await self._when_up(process, scratch, socket)
                except StartFailed:
                    return None
        return None

    async def clear(self, spec: KernelSpec) -> None:
        self._socket(spec).unlink(missing_ok=True)
        with trio.move_on_after(CLEAR_TIMEOUT) as scope:
            while strays := self._strays(spec):
                if holding := self._accounts.get(spec.kernel_id):
                    await kill_all_of(holding[0])  # at once, so that none can start another in time
                with ExitStack() as stack:
                    for process in strays:
                        stack.enter_context(held(process)).kill()
                    for process in strays:
                        await process.wait()
        if scope.cancelled_caught:
            log.error("processes of kernel %s cannot be killed", spec.kernel_id)

    def _strays(self, spec: KernelSpec) -> list[Process]:
        holding = self._accounts.get(spec.kernel_id)
        mark = f"{_MARK}={spec.kernel_id}"
        found = []
        for pid, _ in command_lines():
            is_its = mark in environment_of(pid) if holding is None else owner_of(pid) == holding[0].uid
            if is_its and (process := Process.hold(pid)):
                found.append(process)
        return found

    def release(self, kernel_id: UUID) -> None:
        if (holding := self._accounts.pop(kernel_id, None)) and self._book:
            self._book.give_back(*holding)

    def _socket(self, spec: KernelSpec) -> Path:
        return self._sockets / f"{spec.kernel_id.hex}.{spec.incarnation}"

    def _write_spec(self, spec: KernelSpec, scratch: Scratch, image: LocalImage, socket: Path) -> None:
        account = self._account(spec.kernel_id, scratch)
        if account is not None:
            os.chown(scratch.work, account.uid, account.gid)
        socket.unlink(missing_ok=True)
        content = {
            "kernel_id": str(spec.kernel_id),
            "incarnation": spec.incarnation,
            "socket": str(socket),
            "argv": [image.interpreter, str(self._guest), "python"],
            "env": {**_GUEST_ENVIRON, **early_environ(spec), _MARK: str(spec.kernel_id)},
            "cwd": str(scratch.work),
            "setup": {"env": kernel_environ(spec, image, scratch.work), "limits": {}},
            "mark": f"{_MARK}={spec.kernel_id}",
            "uid": account and account.uid,
            "gid": account and account.gid,
            "leash": LEASH,
            "limits": {"run_log_bytes": RUN_LOG_BYTES},
            "failpoints": self._failpoints,
        }
        write_json(scratch.spec_file, content)

    def _account(self, kernel_id: UUID, scratch: Scratch) -> Account | None:
        if self._book is None:
            return None
        if kernel_id not in self._accounts:
            try:
                self._accounts[kernel_id] = self._book.take(scratch.root), scratch.root
            except NoAccountLeft as error:
                raise StartFailed(str(error)) from error
        return self._accounts[kernel_id][0]

    async def _when_up(self, process: Process, scratch: Scratch, socket: Path) -> Shim:
        """The shim once it serves its socket; kills it when that does not come about."""
        try:
            with trio.move_on_after(SHIM_TIMEOUT):
                await _first(process.wait, lambda: wait_for_file(scratch.shim_file))
                if scratch.shim_file.exists() and process.alive:
                    return Shim(process, socket)
                raise StartFailed(f"the shim ended at once: {tail(scratch.shim_errors) or 'it said nothing'}")
            raise StartFailed(f"the shim did not come up within {SHIM_TIMEOUT:g} s")
        except BaseException:
            process.kill()
            with trio.move_on_after(5, shield=True):
                await process.wait()
            process.close()
            raise


def kernel_environ(spec: KernelSpec, image: LocalImage, work: Path) -> dict[str, str]:
    """The environment of a kernel: a plain account's, the user's own on top, and what tells it who it is."""
    core_count_names = image.manifest.labels.get(_CORE_COUNT_LABEL, "").split(",")
    cores = spec.slots.get("cpu", "1").partition(".")[0]
    folders = [str(Path(image.interpreter).parent), "/usr/local/bin", "/usr/bin", "/bin"]
    return {
        "HOME": str(work),
        "USER": "work",
        "LOGNAME": "work",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "PATH": ":".join(dict.fromkeys(folders)),
        **{name: cores for name in core_count_names if name},
        **spec.environ,
        "BACKENDAI_SESSION_ID": str(spec.session_id),
        "BACKENDAI_SESSION_NAME": spec.session_name,
        "BACKENDAI_KERNEL_ID": str(spec.kernel_id),
        "BACKENDAI_KERNEL_IMAGE": spec.image,
        "BACKENDAI_CLUSTER_SIZE": "1",
        "BACKENDAI_CLUSTER_REPLICAS": "main:1",
        "BACKENDAI_CLUSTER_HOSTS": "main1",
        "BACKENDAI_CLUSTER_HOST": "main1",
        "BACKENDAI_CLUSTER_ROLE": "main",
        "BACKENDAI_CLUSTER_IDX": "1",
    }


def early_environ(spec: KernelSpec) -> dict[str, str]:
    """What of the user's environment has an effect only if it is there when the interpreter is executed."""
    return {name: value for name, value in spec.environ.items() if name.startswith(_EARLY)}


def _publish_inside(data_dir: Path) -> Path:
    """Put what runs inside of kernels where their accounts can read it, which the package may not be.

    Returns the folder; its name tells its content, so that living kernels keep theirs.
    """
    modules = [item for item in files("backendai_mgr.shim.inside").iterdir() if item.name.endswith(".py")]
    contents = {item.name: item.read_bytes() for item in modules}
    digest = hashlib.sha256(repr(sorted(contents.items())).encode()).hexdigest()
    folder = data_dir / "inside" / digest[:16]
    for level in (folder.parent, folder):
        level.mkdir(exist_ok=True)
        level.chmod(0o755)
    for name, content in contents.items():
        if not (folder / name).exists():
            write_private(folder / name, content, 0o644)
    return folder


async def _first(*waits: Any) -> None:
    """Until one of the waits is over."""
    async with trio.open_nursery() as nursery:

        async def run(wait: Any) -> None:
            await wait()
            nursery.cancel_scope.cancel()

        for wait in waits:
            nursery.start_soon(run, wait)
