"""The shim: one process per kernel, which outlives the agent that started it.

Started as ``python -I -S -c "import sys; sys.path.insert(0, sys.argv[1]); from backendai_mgr.shim.main import
main; main(sys.argv[2])" PACKAGE_ROOT SCRATCH``.  SCRATCH is its working directory from then on, and may be
renamed.  Reads ``SCRATCH/spec.json`` (see `spec`).

When the socket listens, ``SCRATCH/shim.json`` says so: pid, start_time (field 22 of /proc/PID/stat), socket.
When all is over, ``SCRATCH/exit.json`` says how the kernel ended: reason, exit_code.
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
from typing import NoReturn

from backendai_mgr.shim import failpoint, processes
from backendai_mgr.shim.arbiter import Arbiter
from backendai_mgr.shim.kernel import Kernel
from backendai_mgr.shim.memory import OutOfMemory
from backendai_mgr.shim.output import BoundedLog
from backendai_mgr.shim.run import Refused
from backendai_mgr.shim.runstore import RunStore, replace_file
from backendai_mgr.shim.server import Server
from backendai_mgr.shim.spec import Spec, read_spec

_ANNOUNCEMENT = "shim.json"
_LAST_WORDS = "exit.json"


def main(scratch: str) -> NoReturn:
    """Run the shim of the kernel whose scratch directory this is."""
    with contextlib.suppress(PermissionError):  # already the leader of its session
        os.setsid()
    os.umask(0o077)
    try:
        os.chdir(scratch)
        spec = read_spec()
        failpoint.enable(spec.failpoints or os.environ.get(failpoint.VARIABLE, ""))
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"{scratch}/spec.json: {error!r}", file=sys.stderr)
        sys.exit(2)
    if not _own():
        print(f"{scratch} belongs to another shim", file=sys.stderr)
        sys.exit(3)
    try:
        _serve(spec)
    finally:
        processes.kill(processes.descendants(os.getpid()))
    sys.exit(0)


def _serve(spec: Spec) -> None:
    processes.become_subreaper()
    if os.path.exists(_ANNOUNCEMENT) and spec.mark:
        # The last shim died without ending its kernel: what its guest had started may still be there.
        processes.kill(processes.with_environment(spec.mark.encode()))
    selector = selectors.EpollSelector()
    store = RunStore(".", log_bytes=spec.run_log_bytes)
    past = store.adopt("shim-died", time.time())
    arbiter = Arbiter(spec.identity.incarnation, grace=spec.exec_grace, past=past)
    log = BoundedLog("kernel.log")
    kernel = Kernel(
        spec.identity,
        spec.command,
        selector,
        store,
        arbiter,
        log,
        setup=spec.setup,
        memory=OutOfMemory(spec.oom_counter),
        query_line=spec.query_line,
        complete_limit=spec.complete_limit,
    )
    signals = _Signals(selector, kernel)
    server = Server(selector, spec.socket, kernel, leash=spec.leash, reread=_assignment)
    pid = os.getpid()
    started = {"pid": pid, "start_time": processes.start_time(pid), "socket": spec.socket}
    replace_file(_ANNOUNCEMENT, json.dumps(started).encode())
    kernel.start()
    while not (server.finished or (signals.terminated and kernel.state == "ended")):
        deadlines = [at for at in (kernel.next_deadline(), server.next_deadline()) if at is not None]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        for key, events in selector.select(timeout):
            key.data(events)
        kernel.tick()
        server.tick()
    if kernel.exit is not None:  # where no agent has listened, the next one reads it
        with contextlib.suppress(OSError):
            replace_file(_LAST_WORDS, json.dumps(kernel.exit).encode())
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


def _assignment() -> Spec:
    """The spec, which was replaced meanwhile and says which kernel this is.  Raises Refused."""
    try:
        spec = read_spec()
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise Refused("bad-request", f"the spec cannot be used: {error!r}") from error
    if spec.setup is None:
        raise Refused("bad-request", "the spec is nobody's yet")
    return spec


def _own() -> bool:
    """Lock the scratch directory for as long as this process lives."""
    fd = os.open("shim.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
