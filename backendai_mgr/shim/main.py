"""The shim: one process per kernel, which outlives the agent that started it.

Started as ``python -I -S -c "import sys; sys.path.insert(0, sys.argv[1]); from backendai_mgr.shim.main import
main; main(sys.argv[2])" PACKAGE_ROOT SCRATCH``.  Reads ``SCRATCH/spec.json``:

    kernel_id, incarnation   of the kernel
    socket                   absolute path, under 100 bytes
    argv, env, cwd           of the interpreter; see `interpreter` for the argument that is appended
    uid, gid                 account of the interpreter, or null
    leash                    seconds without any client after which kernel and shim end (default 3600)
    limits                   run_log_bytes (64 MiB), exec_grace (5.0 s from a run's limit to the kill)
    failpoints               specification of crash points, or null

When the socket listens, ``SCRATCH/shim.json`` says so: pid, start_time (field 22 of /proc/PID/stat), socket.
Exit status: 0 after `forget` or the leash, 1 for a crash, 2 for a spec that cannot be used, 3 if another shim
holds the scratch directory.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import signal
import sys
import time
from typing import Any, NamedTuple, NoReturn

from backendai_mgr.shim import failpoint, processes
from backendai_mgr.shim.arbiter import GRACE, Arbiter
from backendai_mgr.shim.interpreter import Command
from backendai_mgr.shim.kernel import Kernel, KernelIdentity
from backendai_mgr.shim.output import BoundedLog
from backendai_mgr.shim.runlog import CAP_BYTES
from backendai_mgr.shim.runstore import RunStore, replace_file
from backendai_mgr.shim.server import Server

LEASH = 3600.0
MARKER = "BACKENDAI_KERNEL_ID"  # in the interpreter's environment: tells its stray processes


class Spec(NamedTuple):
    identity: KernelIdentity
    socket: str
    command: Command
    leash: float
    run_log_bytes: int
    exec_grace: float
    failpoints: str


def parse_spec(raw: dict[str, Any]) -> Spec:
    """Raises KeyError, TypeError or ValueError for a spec that cannot be used."""
    limits = raw.get("limits") or {}
    leash = raw.get("leash")
    if len(os.fsencode(raw["socket"])) >= 100:
        raise ValueError("the socket path is too long")
    return Spec(
        KernelIdentity(str(raw["kernel_id"]), int(raw["incarnation"])),
        raw["socket"],
        Command(list(raw["argv"]), dict(raw["env"]), raw["cwd"], raw.get("uid"), raw.get("gid")),
        LEASH if leash is None else float(leash),
        int(limits.get("run_log_bytes", CAP_BYTES)),
        float(limits.get("exec_grace", GRACE)),
        raw.get("failpoints") or "",
    )


def main(scratch: str) -> NoReturn:
    """Run the shim of the kernel whose scratch directory this is."""
    with contextlib.suppress(PermissionError):  # already the leader of its session
        os.setsid()
    os.umask(0o077)
    try:
        with open(os.path.join(scratch, "spec.json"), "rb") as file:
            spec = parse_spec(json.loads(file.read()))
        failpoint.enable(spec.failpoints or os.environ.get(failpoint.VARIABLE, ""))
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"{scratch}/spec.json: {error!r}", file=sys.stderr)
        sys.exit(2)
    if not _own(scratch):
        print(f"{scratch} belongs to another shim", file=sys.stderr)
        sys.exit(3)
    try:
        _serve(scratch, spec)
    finally:
        processes.kill(processes.descendants(os.getpid()))
    sys.exit(0)


def _serve(scratch: str, spec: Spec) -> None:
    announcement = os.path.join(scratch, "shim.json")
    processes.become_subreaper()
    if os.path.exists(announcement) and spec.command.env.get(MARKER):
        # The last shim died without ending its kernel: what its interpreter had started may still be there.
        processes.kill(processes.with_environment(f"{MARKER}={spec.command.env[MARKER]}".encode()))
    selector = selectors.EpollSelector()
    store = RunStore(scratch, log_bytes=spec.run_log_bytes)
    past = store.adopt("shim-died", time.time())
    arbiter = Arbiter(spec.identity.incarnation, grace=spec.exec_grace, past=past)
    log = BoundedLog(os.path.join(scratch, "kernel.log"))
    kernel = Kernel(spec.identity, spec.command, selector, store, arbiter, log)
    signals = _Signals(selector, kernel)
    server = Server(selector, spec.socket, kernel, leash=spec.leash)
    pid = os.getpid()
    started = {"pid": pid, "start_time": processes.start_time(pid), "socket": spec.socket}
    replace_file(announcement, json.dumps(started).encode())
    kernel.start()
    while not (server.finished or (signals.terminated and kernel.state == "ended")):
        deadlines = [at for at in (kernel.next_deadline(), server.next_deadline()) if at is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        for key, events in selector.select(timeout):
            key.data(events)
        kernel.tick()
        server.tick()
    server.close()


class _Signals:
    """SIGCHLD reaps, SIGTERM ends the kernel and then the shim; what a terminal would send is ignored."""

    def __init__(self, selector: selectors.BaseSelector, kernel: Kernel) -> None:
        self.terminated = False
        self._kernel = kernel
        self._read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            signal.signal(number, lambda *_: None)
        selector.register(self._read, selectors.EVENT_READ, self._arrived)

    def _arrived(self, events: int) -> None:
        arrived = os.read(self._read, 4096)
        if signal.SIGTERM in arrived:
            self.terminated = True
            self._kernel.end("terminated")
        self._kernel.reap()


def _own(scratch: str) -> bool:
    """Lock the scratch directory for as long as this process lives."""
    fd = os.open(os.path.join(scratch, "shim.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
