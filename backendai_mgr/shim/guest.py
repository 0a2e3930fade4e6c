"""The processes of a kernel, seen from the shim: the guest, and the interpreter that it forks.

The command line is the spec's ``argv`` with three arguments appended, which `inside.guest` explains: the
account that it is to become, and the descriptors of two sockets, one to the guest and one to the interpreter.
So ``argv`` is for example ``["/usr/bin/python3", ".../guest.py", "python", "."]``, or the same behind a
sandbox that passes descriptors on.  Descriptors 0, 1, 2 are /dev/null and two pipes; beside the sockets only
those of `Command.files` are open.  The child leads a session of its own and dies with the shim.

On the interpreter's socket (framing as in `framing`) the shim sends ``{"run": number, "code": text}``,
``{"input": prompt, "text": text | null}``, ``{"complete": number, "code": text, "cursor": characters}`` and,
before the first run only, ``{"configure": {"env", "limits"}}``.  The interpreter sends ``{"ready": true}``
once; for each run ``{"began": number}`` when interrupts will reach the user's code and ``{"done": number,
"exit_code": int, "interrupted": bool}`` when its output is flushed; and ``{"prompt": number, "is_password":
bool}``, ``{"completions": number, "matches": [text]}``, ``{"display": "media" | "html", "data": text}``.
User code can write there too: nothing that arrives is trusted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from backendai_mgr.shim.framing import Decoder, encode
from backendai_mgr.shim.processes import die_with_parent

PIPE_BYTES = 1 << 20
CONTROL_FD, INTERPRETER_FD = 3, 4
INTERPRETER = 0  # its number for the guest
MAX_MESSAGE = 16 << 20  # from inside: a picture
_READ_BYTES = 256 << 10
_F_SETPIPE_SZ = 1031
_LOWEST_FD = 40  # where the child keeps what it will move further down
_ERROR_FD = 5
_MAX_DESCRIPTORS = 16  # that came with one message, or before it was read


class Command(NamedTuple):
    """What to execute, and as whom.

    `uid` None: as the shim itself.  With `enclosed` the guest changes to that account, else we do.  `files`
    are opened for reading at these descriptors; the child joins the control groups whose process lists are in
    `join`.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    uid: int | None
    gid: int | None
    enclosed: bool = False
    files: Mapping[int, str] = {}
    join: Sequence[str] = ()

    def arguments(self) -> list[str]:
        account = f"{self.uid}:{self.gid}" if self.enclosed and self.uid is not None else "-"
        return [*self.argv, account, str(CONTROL_FD), str(INTERPRETER_FD)]


class SpawnFailed(Exception):
    """The guest could not be executed; the text says why."""


class Channel:
    """Messages over one of the sockets, which is non-blocking."""

    def __init__(self, connection: socket.socket, *, descriptors: bool = False) -> None:
        """`descriptors`: messages may bring such along."""
        connection.setblocking(False)
        self.socket = connection
        self._room = socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS) if descriptors else 0
        self._descriptors: deque[int] = deque()
        self._decoder = Decoder(MAX_MESSAGE)
        self._unsent = bytearray()

    def send(self, message: dict[str, Any]) -> bool:
        """Send, or keep what does not fit now; True if something is left for `flush`."""
        self._unsent += encode(message)
        return self.flush()

    def flush(self) -> bool:
        """Send what is left, when the socket is writable; True if something is still left."""
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent)]
        except BlockingIOError:
            return True
        except OSError:  # the peer died: its wait status will tell
            self._unsent.clear()
        return False

    def receive(self) -> Iterator[dict[str, Any]] | None:
        """Return what arrived; None at the end.

        The iterator raises BadMessage if the peer does not keep to the framing.
        """
        try:
            data = self._receive()
        except BlockingIOError:
            return iter(())
        except ConnectionResetError:
            return None
        return self._decoder.feed(data) if data else None

    def take_descriptor(self) -> int | None:
        """Return the oldest descriptor that has come and was not taken; the caller closes it."""
        return self._descriptors.popleft() if self._descriptors else None

    def close(self) -> None:
        self.socket.close()
        while (fd := self.take_descriptor()) is not None:
            os.close(fd)

    def _receive(self) -> bytes:
        if not self._room:
            return self.socket.recv(_READ_BYTES)
        data, extra, _, _ = self.socket.recvmsg(_READ_BYTES, self._room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, content in extra:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._descriptors.extend(
                    struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
                )
        while len(self._descriptors) > _MAX_DESCRIPTORS:
            os.close(self._descriptors.popleft())
        return data


class Guest:
    """A running guest.  `stdout` and `stderr` are non-blocking."""

    def __init__(self, pid: int, control: Channel, interpreter: Channel, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.control = control
        self.interpreter = interpreter
        self.stdout = stdout
        self.stderr = stderr

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        self.control.close()
        self.interpreter.close()
        os.close(self.stdout)
        os.close(self.stderr)


def spawn(command: Command) -> Guest:
    """Execute the guest.  Raises SpawnFailed; then nothing is left."""
    control, interpreter = (socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2))
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
        for end in (*control, *interpreter):
            end.close()
        for fd in (*out, *err, *failure):
            os.close(fd)
        raise SpawnFailed(str(error)) from error
    if pid == 0:
        _become(command, shim, (control[1].fileno(), interpreter[1].fileno(), out[1], err[1]), failure[1])
    for theirs in control[1], interpreter[1]:
        theirs.close()
    for pipe in out, err, failure:
        os.close(pipe[1])
    with open(failure[0], "rb") as file:
        reason = file.read()  # ends when the child has executed its command
    guest = Guest(pid, Channel(control[0], descriptors=True), Channel(interpreter[0]), out[0], err[0])
    if reason:
        os.waitpid(pid, 0)
        guest.close()
        raise SpawnFailed(reason.decode(errors="replace"))
    return guest


def exit_code_of(command: Command, status: int) -> int:
    """How the guest ended, by its wait status: an exit code, or -N for signal N.

    The sandbox tells of a signal as shells do, with 128 + N.
    """
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if command.enclosed and code > 128 else code


def _become(command: Command, shim: int, ends: tuple[int, int, int, int], failure: int) -> NoReturn:
    """In the child: turn into the guest, or say why not and exit."""
    try:
        failure = fcntl.fcntl(failure, fcntl.F_DUPFD_CLOEXEC, _LOWEST_FD)
        for path in command.join:
            with open(path, "w") as group:
                group.write("0")
        _arrange_descriptors(command, ends, failure)
        failure = _ERROR_FD
        os.setsid()
        _reset_signals()
        os.umask(0o022)
        os.chdir(command.cwd)  # before the account changes: its own rights need not reach down to it
        if command.uid is not None and not command.enclosed:
            os.setgroups([])
            gid = command.uid if command.gid is None else command.gid
            os.setresgid(gid, gid, gid)
            os.setresuid(command.uid, command.uid, command.uid)
        die_with_parent(shim)
        os.execve(command.argv[0], command.arguments(), dict(command.env))
    except (OSError, ValueError, TypeError) as error:
        os.write(failure, str(error).encode())
    finally:
        os._exit(127)


def _arrange_descriptors(command: Command, ends: tuple[int, int, int, int], failure: int) -> None:
    """Put everything at its place: 0 to 4, the error pipe, and the files from there on."""
    control, interpreter, out, err = ends
    null = os.open(os.devnull, os.O_RDWR)
    places = dict(enumerate((null, out, err, control, interpreter)))
    places |= {place: os.open(path, os.O_RDONLY) for place, path in command.files.items()}
    high = {place: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_FD) for place, fd in places.items()}
    os.closerange(_ERROR_FD, _LOWEST_FD)
    for place, fd in high.items():
        os.dup2(fd, place, inheritable=True)
    os.dup2(failure, _ERROR_FD, inheritable=False)
    os.closerange(_LOWEST_FD, 1 << 20)


def _reset_signals() -> None:
    """Python ignores two signals, and an ignored signal stays so in whatever is executed."""
    for number in signal.SIGPIPE, signal.SIGXFSZ:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
