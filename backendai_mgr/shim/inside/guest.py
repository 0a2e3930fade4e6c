"""The guest: the first process inside of a kernel.  It runs nobody's code itself.

Usage: ``python guest.py KIND HOME ACCOUNT CONTROL_FD INTERPRETER_FD``.  KIND is ``python`` (it forks the
interpreter host, which serves INTERPRETER_FD) or ``command`` (there is none).  ACCOUNT is ``UID:GID``, which
it becomes first, or ``-``; then it goes to the folder HOME.  The variable BACKENDAI_EARLY holds a JSON object
of variables that must be there when an interpreter is executed: only then, as the kernel's account, it
executes itself again with them.  Messages on CONTROL_FD, a stream socket, are a
length (4 bytes, big endian) and a JSON object.  It receives

    {"configure": {"env", "limits"}}            for what it executes from now on; limits are rlimits by name
    {"execute": number, "line": text, "stdin": text | null}     a command line; stdin null: it can be fed
    {"open": number, "line": text | null, "terminal": bool}     a command line, or a shell, on a terminal of
                                                its own or with a pipe for all that it prints
    {"socket": number, "port": port}            of TCP, not connected, if somebody listens at that port here
    {"feed": number, "text": text | null}       to its standard input; null ends that
    {"signal": number, "to": number, "alone": bool}     to its process group, or to the leader of that alone;
                                                0 is the interpreter

and sends ``{"ready": true}`` (unless there is an interpreter, which says so itself), ``{"reads": number}``
when a command waits for input, ``{"opened": number}`` with the other end of a program's terminal or pipe as
a descriptor, ``{"socket": number}`` with the socket as one (or ``"failed": text`` instead), and ``{"exited":
number, "status": wait status}`` for commands and, as number 0, for the interpreter; ``{"signalled": number}``
answers each signal.  End of file ends it, and with it, where it is process 1, everything in the sandbox.

Any Python from 3.6 on runs this file; it needs the standard library only.
"""

import ctypes
import gc
import json
import os
import select
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # a PYTHONSAFEPATH of the user's leaves it out

import rlimits  # type: ignore[import-not-found]  # beside this file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, NoReturn, Optional

INTERPRETER = 0
EARLY = "BACKENDAI_EARLY"
SHELL = "/bin/sh"
SHELLS = ("/bin/bash", SHELL)  # of terminals; the first that is there
ROWS, COLUMNS = 24, 80  # until somebody says otherwise
LOOK_SECONDS = 0.1  # between two looks whether a command waits for input
MOST_UNFED = 1024 * 1024  # bytes that wait for a command to read them; what is more is dropped
_READ_CALL = {"x86_64": 0, "aarch64": 63}.get(os.uname().machine)  # number of read(2)
_TOO_MANY_REFS = 109  # ETOOMANYREFS
_LISTENS = "0A"  # a state in the kernel's tables of sockets
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_prctl = ctypes.CDLL(None, use_errno=True).prctl


class Command:
    """A command line that is being executed, and what it has not read yet."""

    def __init__(self, number: int, pid: int, stdin: "Optional[int]") -> None:
        self.number = number
        self.pid = pid
        self.stdin = stdin  # the end that we write to; None when it is closed
        self.inode = 0 if stdin is None else os.fstat(stdin).st_ino
        self.unfed = bytearray()
        self.ends = False  # no more input will come
        self.waits = False  # was seen waiting for input, and we said so

    def feed(self, text: "Optional[str]") -> None:
        self.waits = False
        if text is None:
            self.ends = True
        elif not self.ends:
            room = MOST_UNFED - len(self.unfed)
            self.unfed += text.encode("utf-8", "surrogateescape")[:room]
        self.write()

    def write(self) -> None:
        """Write what the pipe takes."""
        if self.stdin is None:
            return
        try:
            while self.unfed:
                del self.unfed[: os.write(self.stdin, self.unfed)]
        except BlockingIOError:
            return
        except OSError:  # it has closed its end
            self.ends = True
            self.unfed.clear()
        if self.ends:
            self.close()

    def close(self) -> None:
        if self.stdin is not None:
            os.close(self.stdin)
            self.stdin = None


class Guest:
    def __init__(self, control: int) -> None:
        self._control = control
        self._socket = None  # type: Any  # the same, once descriptors are handed out
        self._received = bytearray()
        self._interpreter = None  # type: Optional[int]
        self._commands = {}  # type: Dict[int, Command]  # by pid
        self._env = dict(os.environ)
        self._wake, wake = os.pipe()
        for fd in (control, self._wake, wake):
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)

    def fork_interpreter(self, fd: int) -> None:
        """Fork the process that runs Python code; it shares what we have loaded."""
        import host  # type: ignore[import-not-found]  # beside this file

        gc.collect()
        if hasattr(gc, "freeze"):  # from 3.7 on
            gc.freeze()
        pid = os.fork()
        if pid == 0:
            self._be_child()
            os.close(self._control)
            os.close(self._wake)
            # From a frame with other globals: before 3.10 frames of one module hand the builtins down.
            eval("lambda function, fd: function(fd)", {})(host.serve, fd)
        os.close(fd)
        self._interpreter = pid

    def serve(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        while True:
            feeding = [c.stdin for c in self._commands.values() if c.unfed and c.stdin is not None]
            for fd in feeding:
                poll.register(fd, select.POLLOUT)
            looking = any(c.stdin is not None and not c.waits for c in self._commands.values())
            ready = dict(poll.poll(LOOK_SECONDS * 1000 if looking else None))
            for fd in feeding:
                poll.unregister(fd)
            if self._wake in ready:
                os.read(self._wake, 4096)
            self._reap()
            for command in list(self._commands.values()):
                command.write()
            if self._control in ready:
                self._receive()
            if looking and not ready:
                self._look_who_waits()

    # -- messages

    def send(self, **message: "Any") -> None:
        body = json.dumps(message).encode()
        self._write(len(body).to_bytes(4, "big") + body)

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._control, data) :]
            except BlockingIOError:
                select.select((), (self._control,), ())
            except OSError:  # the shim has died, and so shall we
                os._exit(0)

    def hand_out(self, fd: int, **message: "Any") -> bool:
        """Send a message with a descriptor; False if none can be sent: others of our account fill the way."""
        import _socket  # the rest of `socket` is not needed, and every kernel would keep it in memory

        if self._socket is None:
            self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, self._control)
        body = json.dumps(message).encode()
        data = len(body).to_bytes(4, "big") + body
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))]
        while True:
            try:
                sent = self._socket.sendmsg([data], rights)
                break
            except BlockingIOError:
                select.select((), (self._control,), ())
            except OSError as error:
                if error.errno == _TOO_MANY_REFS:
                    return False
                os._exit(0)
        self._write(data[sent:])
        return True

    def _receive(self) -> None:
        try:
            data = os.read(self._control, 65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            os._exit(0)
        self._received += data
        while len(self._received) >= 4:
            end = 4 + int.from_bytes(self._received[:4], "big")
            if len(self._received) < end:
                return
            message = json.loads(self._received[4:end].decode())
            del self._received[:end]
            self._obey(message)

    def _obey(self, message: "Dict[str, Any]") -> None:
        if "configure" in message:
            self._configure(**message["configure"])
        elif "execute" in message:
            self._execute(message["execute"], message["line"], message["stdin"])
        elif "open" in message:
            self._open(message["open"], message["line"], message["terminal"])
        elif "socket" in message:
            self._make_socket(message["socket"], message["port"])
        elif "feed" in message:
            for command in self._commands.values():
                if command.number == message["feed"]:
                    command.feed(message["text"])
        elif "signal" in message:
            self._signal(message["signal"], message["to"], message["alone"])
            self.send(signalled=message["to"])

    def _configure(self, env: "Dict[str, str]", limits: "Dict[str, int]") -> None:
        self._env = env
        rlimits.lower(limits)

    def _signal(self, number: int, to: int, alone: bool) -> None:
        pid = self._interpreter if to == INTERPRETER else None
        for command in self._commands.values():
            if command.number == to:
                pid = command.pid
        if pid is not None:
            try:  # noqa: SIM105  (contextlib is not loaded yet)
                (os.kill if alone else os.killpg)(pid, number)
            except ProcessLookupError:
                pass

    # -- processes

    def _execute(self, number: int, line: str, stdin: "Optional[str]") -> None:
        fds = []  # type: List[int]
        try:
            theirs, ours = os.pipe()
            fds += theirs, ours
            begun, begins = os.pipe()
            fds += begun, begins
            pid = os.fork()
        except OSError as error:  # no process or descriptor may be added
            for fd in fds:
                os.close(fd)
            self._cannot(number, error)
            return
        if pid == 0:
            self._become(line, theirs)
        os.close(theirs)
        os.close(begins)
        os.read(begun, 1)  # until it leads a group of its own, which can then be signalled
        os.close(begun)
        os.set_blocking(ours, False)
        command = self._commands[pid] = Command(number, pid, ours)
        if stdin is not None:
            command.feed(stdin)
            command.feed(None)

    def _cannot(self, number: int, error: OSError) -> None:
        os.write(2, ("cannot execute: %s\n" % error.strerror).encode())
        self.send(exited=number, status=126 << 8)

    def _become(self, line: str, stdin: int) -> None:
        """In the child: turn into the shell that executes the line."""
        try:
            self._be_child()
            os.dup2(stdin, 0)
            self._execute_in_child(SHELL, ["sh", "-c", line], self._env)
        except BaseException as error:
            os.write(2, ("cannot execute: %s\n" % error).encode())
        finally:
            os._exit(126)

    def _make_socket(self, number: int, port: int) -> None:
        """A socket belongs to the network that it was made in: so others reach what listens here."""
        family = _listening(port)
        if family is None:
            self.send(socket=number, failed="nobody listens there")
            return
        try:
            import _socket

            made = _socket.socket(getattr(_socket, family), _socket.SOCK_STREAM)
        except (OSError, ImportError) as error:  # no descriptor is left
            self.send(socket=number, failed=str(error))
            return
        if not self.hand_out(made.fileno(), socket=number):
            self.send(socket=number, failed="no descriptor can be sent")
        made.close()

    def _open(self, number: int, line: "Optional[str]", terminal: bool) -> None:
        """Start a program beside the others."""
        fds = []  # type: List[int]
        try:
            import fcntl
            import struct
            import termios

            ours, theirs = os.openpty() if terminal else os.pipe()
            fds += ours, theirs
            begun, begins = os.pipe()
            fds += begun, begins
            if terminal:
                fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
            pid = os.fork()
        except (OSError, ImportError) as error:  # no process or descriptor is left, which an import needs too
            for fd in fds:
                os.close(fd)
            self._cannot_open(number, error)
            return
        if pid == 0:
            self._become_program(line, theirs, terminal)
        os.close(theirs)
        os.close(begins)
        os.read(begun, 1)
        os.close(begun)
        self._commands[pid] = Command(number, pid, None)
        try:
            handed = self.hand_out(ours, opened=number)
        except (OSError, ImportError):
            handed = False
        if not handed:
            self._signal(signal.SIGKILL, number, False)
        os.close(ours)

    def _cannot_open(self, number: int, error: Exception) -> None:
        """Tell it where its output would be: what is printed here belongs to the run that is executed."""
        try:
            ours, theirs = os.pipe()
            os.write(theirs, ("cannot execute: %s\n" % error).encode())
            os.close(theirs)
            self.hand_out(ours, opened=number)
            os.close(ours)
        except (OSError, ImportError):
            pass
        self.send(exited=number, status=126 << 8)

    def _become_program(self, line: "Optional[str]", end: int, terminal: bool) -> None:
        """In the child: turn into the program, with this end as its terminal, or as where it prints."""
        import fcntl
        import termios

        try:
            self._be_child()
            env = dict(self._env)
            if terminal:
                fcntl.ioctl(end, termios.TIOCSCTTY, 0)
                env.setdefault("TERM", "xterm-256color")
            for fd in (0, 1, 2) if terminal else (1, 2):
                os.dup2(end, fd)
            shell = next((path for path in SHELLS if os.path.exists(path)), SHELL)
            env.setdefault("SHELL", shell)
            if line is None:
                self._execute_in_child(shell, [os.path.basename(shell)], env)
            self._execute_in_child(SHELL, ["sh", "-c", line], env)
        except BaseException as error:
            os.write(2, ("cannot execute: %s\n" % error).encode())
        finally:
            os._exit(126)

    def _execute_in_child(self, path: str, argv: "List[str]", env: "Dict[str, str]") -> "NoReturn":
        os.closerange(3, 1 << 16)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; programs should not
            signal.signal(number, signal.SIG_DFL)
        os.execve(path, argv, env)

    def _be_child(self) -> None:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.umask(0o022)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._interpreter:
                self._interpreter = None
                self.send(exited=INTERPRETER, status=status)
            command = self._commands.pop(pid, None)
            if command is not None:
                command.close()
                self.send(exited=command.number, status=status)

    def _look_who_waits(self) -> None:
        """Tell of commands of which a process is in read(2) on the standard input that we feed."""
        open_ones = {c.inode: c for c in self._commands.values() if c.stdin is not None and not c.waits}
        for name in os.listdir("/proc"):
            if name.isdigit():
                command = open_ones.get(_inode_read_from(name) or 0)
                if command is not None and not command.unfed:
                    command.waits = True
                    self.send(reads=command.number)


def _listening(port: int) -> "Optional[str]":
    """The family of addresses at which somebody listens; to connect there would be noticed."""
    for path, family in (("/proc/net/tcp", "AF_INET"), ("/proc/net/tcp6", "AF_INET6")):
        try:
            with open(path) as table:
                for line in table:
                    words = line.split()
                    if words[3:4] == [_LISTENS] and int(words[1].rpartition(":")[2], 16) == port:
                        return family
        except OSError:
            pass
    return None


def _inode_read_from(pid: str) -> "Optional[int]":
    """The inode of the process's standard input if it is reading from it at this moment."""
    try:
        with open("/proc/%s/syscall" % pid) as file:
            words = file.read().split()
        if words[:1] == [str(_READ_CALL)] and int(words[1], 16) == 0:
            return os.stat("/proc/%s/fd/0" % pid).st_ino
    except (OSError, IndexError, ValueError):
        pass
    return None


def become(account: str) -> None:
    """Change to another account for good; whoever shares it shall see nothing of this process."""
    if account != "-":
        uid, gid = map(int, account.split(":"))
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    if _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) or _prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> None:
    kind, home, account, control, interpreter = sys.argv[1:]
    become(account)
    os.chdir(home)
    early = os.environ.pop(EARLY, "")
    if early:
        argv = [sys.executable, sys.argv[0], kind, ".", "-", control, interpreter]
        os.execve(sys.executable, argv, dict(os.environ, **json.loads(early)))
    guest = Guest(int(control))
    if kind == "python":
        guest.fork_interpreter(int(interpreter))
    else:
        os.close(int(interpreter))
        guest.send(ready=True)
    guest.serve()


if __name__ == "__main__":
    main()
