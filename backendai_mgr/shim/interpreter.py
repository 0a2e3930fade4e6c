"""The child process that runs the user's code, seen from the shim.

The command line is the spec's ``argv`` with one argument appended: the number of the control socket's
descriptor (always 3, inherited).  So ``argv`` is for example ``["/usr/bin/python3", ".../shim/inside/host.py"]``, or
the same behind a sandbox that passes descriptors on.  Descriptors 0, 1, 2 are /dev/null and two pipes; no
other is open.  The child leads a session and a process group of its own and dies with the shim.

On the control socket (framing as in `framing`) the shim sends ``{"run": number, "code": text}``; the
interpreter sends ``{"ready": true}`` once, then for each run ``{"began": number}`` when interrupts will reach
the user's code and ``{"done": number, "exit_code": int, "interrupted": bool}`` when its output is flushed.
User code can write there too: nothing that arrives is trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from backendai_mgr.shim.framing import Decoder, encode
from backendai_mgr.shim.processes import die_with_parent

PIPE_BYTES = 1 << 20
CONTROL_FD = 3
_MAX_MESSAGE = 64 << 10  # from the interpreter
_F_SETPIPE_SZ = 1031
_LOWEST_FD = 10  # where the child keeps what it will move to 0..4
_ERROR_FD = 4


class Command(NamedTuple):
    """What to execute, and as whom.  `uid` None: as the shim itself."""

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    uid: int | None
    gid: int | None


class SpawnFailed(Exception):
    """The interpreter could not be executed; the text says why."""


class Interpreter:
    """A running interpreter.  `control`, `stdout` and `stderr` are non-blocking."""

    def __init__(self, pid: int, control: socket.socket, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.control = control
        self.stdout = stdout
        self.stderr = stderr
        self._decoder = Decoder(_MAX_MESSAGE)
        self._unsent = bytearray()

    def interrupt(self) -> None:
        """SIGINT to the interpreter and what it started in its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGINT)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def send(self, message: dict[str, Any]) -> bool:
        """Send, or keep what does not fit now; True if something is left for `flush`."""
        self._unsent += encode(message)
        return self.flush()

    def flush(self) -> bool:
        """Send what is left, when the control socket is writable; True if something is still left."""
        try:
            while self._unsent:
                del self._unsent[: self.control.send(self._unsent)]
        except BlockingIOError:
            return True
        except OSError:  # it died: its wait status will tell
            self._unsent.clear()
        return False

    def receive(self) -> Iterator[dict[str, Any]] | None:
        """Return what arrived on the control socket; None at its end.

        The iterator raises BadMessage if the interpreter does not keep to the framing.
        """
        try:
            data = self.control.recv(_MAX_MESSAGE)
        except BlockingIOError:
            return iter(())
        except ConnectionResetError:
            return None
        return self._decoder.feed(data) if data else None

    def close(self) -> None:
        self.control.close()
        os.close(self.stdout)
        os.close(self.stderr)


def spawn(command: Command) -> Interpreter:
    """Execute the interpreter.  Raises SpawnFailed; then nothing is left."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    out, err, failure = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    for pipe in out, err:
        os.set_blocking(pipe[0], False)
        with contextlib.suppress(PermissionError):  # over the limit of an ordinary user: it stays at 64 KiB
            fcntl.fcntl(pipe[1], _F_SETPIPE_SZ, PIPE_BYTES)
        if command.uid is not None:  # so that /dev/stdout can be opened
            os.fchown(pipe[1], command.uid, -1)
    shim = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        ours.close()
        theirs.close()
        for fd in (*out, *err, *failure):
            os.close(fd)
        raise SpawnFailed(str(error)) from error
    if pid == 0:
        _become(command, shim, theirs.fileno(), out[1], err[1], failure[1])
    theirs.close()
    for pipe in out, err, failure:
        os.close(pipe[1])
    with open(failure[0], "rb") as file:
        reason = file.read()  # ends when the child has executed its command
    ours.setblocking(False)
    interpreter = Interpreter(pid, ours, out[0], err[0])
    if reason:
        os.waitpid(pid, 0)
        interpreter.close()
        raise SpawnFailed(reason.decode(errors="replace"))
    return interpreter


def _become(command: Command, shim: int, control: int, out: int, err: int, failure: int) -> NoReturn:
    """In the child: turn into the interpreter, or say why not and exit."""
    try:
        failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, _LOWEST_FD)
        _arrange_descriptors(control, out, err, failure)
        failure = _ERROR_FD
        os.setsid()
        _reset_signals()
        os.umask(0o022)
        os.chdir(command.cwd)  # before the account changes: its own rights need not reach down to it
        if command.uid is not None:
            os.setgroups([])
            gid = command.uid if command.gid is None else command.gid
            os.setresgid(gid, gid, gid)
            os.setresuid(command.uid, command.uid, command.uid)
        die_with_parent(shim)
        os.execve(command.argv[0], [*command.argv, str(CONTROL_FD)], dict(command.env))
    except (OSError, ValueError, TypeError) as error:
        os.write(failure, str(error).encode())
    finally:
        os._exit(127)


def _arrange_descriptors(control: int, out: int, err: int, failure: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_FD) for fd in (null, out, err, control)]
    for target, fd in enumerate(high):
        os.dup2(fd, target, inheritable=True)
    os.dup2(failure, _ERROR_FD, inheritable=False)
    os.closerange(_ERROR_FD + 1, 1 << 20)


def _reset_signals() -> None:
    """Python ignores two signals, and an ignored signal stays so in whatever is executed."""
    for number in signal.SIGPIPE, signal.SIGXFSZ:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
