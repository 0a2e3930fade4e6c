"""Making shims: what each is given of this machine, and how that is found again and taken back.

A shim has a *place*: a token that names its socket and marks its processes, as root an account of its own,
and a control group where there are any. ``spec.json`` in its scratch folder tells the shim all about it, and
later agents too.
"""

import hashlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.resources import files
from pathlib import Path
from secrets import token_hex
from typing import Any

import attrs
import trio

from ...shim.failpoint import failpoint
from ...wire.rpc import KernelSpec
from ..accounts import Account, AccountBook, NoAccountLeft, kill_all_of
from ..cgroups import Cgroup, CgroupError
from ..enclosure import Enclosure
from ..environ import guest_environ, kernel_environ
from ..images import LocalImage
from ..inotify import wait_for_file
from ..processes import Process, command_lines, environment_of, held, owner_of
from ..sandbox import HOME, PYTHON_OPTIONS, Sandbox
from ..scratch import Scratch, read_json, tail, write_json, write_private
from .interface import Shim, StartFailed

log = logging.getLogger(__name__)

#: Seconds from the shim's start until it must serve its socket.
SHIM_TIMEOUT = 15.0
#: Seconds for what a kernel left running to die after SIGKILL.
CLEAR_TIMEOUT = 5.0
#: A shim that is nobody's ends itself so soon without an agent; see `KernelLimits.leash` for others.
UNUSED_LEASH = 60.0

_SHIM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from backendai_mgr.shim.main import main; main(sys.argv[2])"
)
_PACKAGE_ROOT = Path(__file__).resolve().parents[3]
_SHIM_ENVIRON = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
#: In the guest's environment: tells its stray processes.
_MARK = "BACKENDAI_PLACE"


@attrs.frozen(kw_only=True)
class Place:
    """What one shim has of this machine. ``account`` None: the agent's own."""

    token: str
    socket: Path
    account: Account | None
    group: Cgroup | None

    @property
    def mark(self) -> str:
        """In the environment of its processes, as ``NAME=value``."""
        return f"{_MARK}={self.token}"


class ShimMaker:
    """Makes shims below one data directory."""

    def __init__(
        self,
        enclosure: Enclosure,
        inside: Path,
        python: LocalImage | None,
        sockets: Path,
        book: AccountBook | None,
        failpoints: str | None,
    ) -> None:
        """*inside* was made by `publish_inside`; *python* runs guests where the image has no Python."""
        self._python = python
        self._enclosure = enclosure
        self._inside = inside
        self._sockets = sockets
        self._book = book
        self._failpoints = failpoints

    # -- places

    def place(self, scratch: Scratch, account: Account | None = None) -> Place:
        """A new place for the shim of this folder; with an *account* that it has already. `StartFailed`."""
        token = token_hex(8)
        if account is None and self._book is not None:
            try:
                account = self._book.take(scratch.root)
            except NoAccountLeft as error:
                raise StartFailed(str(error)) from error
        if account is not None:
            os.chown(scratch.work, account.uid, account.gid)
        return Place(token=token, socket=self._sockets / token, account=account, group=self._group(token))

    def _group(self, token: str) -> Cgroup | None:
        try:
            return self._enclosure.group(token)
        except CgroupError as error:
            raise StartFailed(str(error)) from error

    def find(self, scratch: Scratch) -> Place | None:
        """The place of a shim that an earlier agent made there."""
        match read_json(scratch.spec_file):
            case {"token": str(token), "uid": uid}:
                account = self._book.keep(uid, scratch.root) if self._book and uid is not None else None
                return Place(
                    token=token, socket=self._sockets / token, account=account, group=self._group(token)
                )
        return None

    def move(self, place: Place, old: Path, new: Path) -> None:
        """Rename the folder of a place; its account goes with it."""
        if place.account is not None and self._book is not None:
            self._book.move(place.account, old, new)
        else:
            old.rename(new)

    def leave(self, place: Place, folder: Path) -> None:
        """The folder is gone: what was set aside for it can be given to others."""
        if place.account is not None and self._book is not None:
            self._book.give_back(place.account, folder)

    # -- shims

    def describe(self, place: Place, scratch: Scratch, image: LocalImage, spec: KernelSpec | None) -> None:
        """Write ``spec.json``: of this kernel, or of one that nobody has asked for yet. `StartFailed`."""
        sandbox, group = self._enclosure.sandbox, place.group
        runtime = image.manifest.runtime
        python = image if runtime == "python" else self._python
        if python is None:
            raise StartFailed("no Python is there that could run the guest of this kernel")
        home = "." if sandbox is None else HOME
        argv = [python.interpreter, *PYTHON_OPTIONS, str(self._inside / "guest.py"), runtime, home]
        if sandbox is not None:
            argv = [*self._enclose(sandbox, place, scratch, [*python.paths, *image.paths]), *argv]
        content = {
            "token": place.token,
            "kernel_id": None if spec is None else str(spec.kernel_id),
            "incarnation": None if spec is None else spec.incarnation,
            "socket": str(place.socket),
            "argv": argv,
            "env": guest_environ(spec, place.mark),
            "cwd": "work" if sandbox is None else "/",
            "uid": place.account and place.account.uid,
            "gid": place.account and place.account.gid,
            "enclosed": sandbox is not None,
            "files": {} if sandbox is None else sandbox.descriptors(scratch.etc),
            "join": [] if group is None else group.join_files(),
            "oom_counter": None if group is None else group.oom_counter(),
            "query_line": None if runtime == "python" else image.query_command,
            "setup": None if spec is None else self._setup(place, spec, scratch, image),
            "mark": place.mark,
            "leash": UNUSED_LEASH if spec is None else self._enclosure.limits.leash,
            "limits": {"run_log_bytes": self._enclosure.limits.run_output},
            "failpoints": self._failpoints,
        }
        write_json(scratch.spec_file, content)

    def give(self, place: Place, scratch: Scratch, image: LocalImage, spec: KernelSpec) -> None:
        """Write into ``spec.json`` which kernel one that was nobody's becomes. `StartFailed`."""
        content = read_json(scratch.spec_file)
        content |= {
            "kernel_id": str(spec.kernel_id),
            "incarnation": spec.incarnation,
            "setup": self._setup(place, spec, scratch, image),
            "leash": self._enclosure.limits.leash,
        }
        write_json(scratch.spec_file, content)

    def _enclose(self, sandbox: Sandbox, place: Place, scratch: Scratch, paths: Sequence[Path]) -> list[str]:
        sandbox.write_files(scratch.etc, place.account)
        return sandbox.argv(
            work=scratch.work,
            network=self._enclosure.limits.network,
            readable=[self._inside, *paths],
            files=scratch.etc,
        )

    def _setup(
        self, place: Place, spec: KernelSpec, scratch: Scratch, image: LocalImage
    ) -> Mapping[str, Any]:
        home = str(scratch.work) if self._enclosure.sandbox is None else HOME
        try:
            limits = self._enclosure.bound(place.group, spec)
        except CgroupError as error:
            raise StartFailed(str(error)) from error
        return {"env": kernel_environ(spec, image, home), "limits": limits}

    async def start(self, place: Place, scratch: Scratch) -> Shim:
        """Start the shim that ``spec.json`` describes; returns when its socket is served. `StartFailed`."""
        failpoint("kernel.after_scratch")
        argv = [sys.executable, "-I", "-S", "-c", _SHIM, str(_PACKAGE_ROOT), str(scratch.root)]
        process = Process.spawn(argv, _SHIM_ENVIRON, stderr=scratch.shim_errors)
        failpoint("kernel.after_shim_spawned")
        return await self._when_up(process, scratch, place.socket)

    async def adopt(self, place: Place, scratch: Scratch) -> Shim | None:
        """The living shim that an earlier agent started there; None when there is none."""
        match read_json(scratch.shim_file):
            case {"pid": int(pid), "start_time": int(started)}:
                process = Process.hold(pid, started)
                return None if process is None else Shim(process, place.socket)
        for pid, argv in command_lines():  # it may not have come so far yet
            if argv[-1:] == [str(scratch.root)] and _SHIM in argv and (process := Process.hold(pid)):
                try:
                    return await self._when_up(process, scratch, place.socket)
                except StartFailed:
                    return None
        return None

    async def clear(self, place: Place) -> None:
        """Kill whatever may have been left running when the shim has gone; leave nothing behind."""
        place.socket.unlink(missing_ok=True)
        if place.group is not None:
            try:
                await place.group.remove()
            except CgroupError as error:
                log.error("%s", error)
        with trio.move_on_after(CLEAR_TIMEOUT) as scope:
            while strays := self._strays(place):
                if place.account is not None:
                    await kill_all_of(place.account)  # at once, so that none can start another in time
                with ExitStack() as stack:
                    for process in strays:
                        stack.enter_context(held(process)).kill()
                    for process in strays:
                        await process.wait()
        if scope.cancelled_caught:
            log.error("processes of %s cannot be killed", place.mark)

    def _strays(self, place: Place) -> list[Process]:
        found = []
        for pid, _ in command_lines():
            if place.account is None:
                is_its = place.mark in environment_of(pid)
            else:
                is_its = owner_of(pid) == place.account.uid
            if is_its and (process := Process.hold(pid)):
                found.append(process)
        return found

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


def publish_inside(data_dir: Path) -> Path:
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
