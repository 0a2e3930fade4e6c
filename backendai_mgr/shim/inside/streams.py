"""sys.stdin, sys.stdout and sys.stderr of user code: what it prints leaves soon, what it reads is asked for.

Loaded by `host` (see there for what holds of all modules in this folder).
"""

import _signal  # type: ignore[import-not-found]
import io
import os
import sys
import warnings
from _thread import RLock, allocate_lock, start_new_thread
from time import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional, Tuple

    from backendai_mgr.shim.inside.control import Control

FLUSH_SECONDS = 0.02
BUFFER_BYTES = 64 * 1024
_dup2, _fstat, _set_blocking = os.dup2, os.fstat, os.set_blocking
_TextIOWrapper, _FileIO = io.TextIOWrapper, io.FileIO
_BufferedReader, _BufferedWriter = io.BufferedReader, io.BufferedWriter
_set_mask, _SIG_BLOCK, _SIG_SETMASK = _signal.pthread_sigmask, _signal.SIG_BLOCK, _signal.SIG_SETMASK
_modules = sys.modules


class Streams:
    """sys.stdin, sys.stdout and sys.stderr, and the file descriptors below them."""

    def __init__(self, control: "Control") -> None:
        self._control = control
        self._spares = {fd: (os.dup(fd), _identity(fd)) for fd in (0, 1, 2)}
        self._stdio = Stdio()
        self._flushing = RLock()
        self._running = allocate_lock()  # held between runs
        self._running.acquire()
        self._active = False
        self.err = _writer(2)
        self._open()
        if hasattr(os, "register_at_fork"):  # from 3.7 on
            # A child must find neither text of ours in its buffers nor a lock that our thread held.
            os.register_at_fork(
                before=self._before_fork,
                after_in_parent=self._flushing.release,
                after_in_child=self._after_fork_in_child,
            )
        if sys.version_info >= (3, 12):
            warnings.filterwarnings("ignore", message="This process .* is multi-threaded")
        mask = _set_mask(_SIG_BLOCK, range(1, 32))  # signals are for the main thread
        start_new_thread(self._flush_regularly, ())
        _set_mask(_SIG_SETMASK, mask)

    def begin(self) -> None:
        """From now on what is printed leaves within FLUSH_SECONDS."""
        self._active = True
        self._running.release()

    def end(self) -> None:
        """Flush all, and repair what user code replaced, closed or redirected."""
        self._active = False
        self._running.acquire()
        self.flush_all()
        for fd, (spare, identity) in self._spares.items():
            if _identity(fd) != identity:
                _dup2(spare, fd)
                self.flush()  # what a closed descriptor had refused
        for fd in (1, 2):
            _set_blocking(fd, True)
        if _is_closed(self.stdin) or _is_closed(self.out) or _is_closed(self.err):
            self._open()
        self._install()

    def flush(self) -> None:
        with self._flushing:
            _flush(self.out)
            _flush(self.err)

    def flush_all(self) -> None:
        """Flush also what user code may have put in the place of ours, and C's stdio."""
        for name in ("stdout", "stderr"):
            _flush(getattr(sys, name, None))
        self.flush()
        self._stdio.flush()

    def read_line(self, prompt: object = "", is_password: bool = False) -> str:
        """What `input` and `getpass` do.  Raises EOFError."""
        theirs = getattr(sys, "stdin", None)
        if theirs is None:
            raise RuntimeError("input(): lost sys.stdin")
        text = str(prompt)
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
        line = self.stdin.ask(is_password) if is_password or theirs is self.stdin else theirs.readline()
        if not line:
            raise EOFError("EOF when reading a line")
        return line[:-1] if line.endswith("\n") else line

    def writable_stderr(self) -> io.TextIOWrapper:
        if _is_closed(self.err):
            self.err = _writer(2)
        return self.err

    def _open(self) -> None:
        self.stdin = Stdin(self._control.ask, self.flush_all)
        self.out, self.err = _writer(1), _writer(2)
        self._install()

    def _install(self) -> None:
        for name, stream in (("stdin", self.stdin), ("stdout", self.out), ("stderr", self.err)):
            setattr(sys, name, stream)
            setattr(sys, "__%s__" % name, stream)

    def _flush_regularly(self) -> None:
        while True:
            with self._running:
                pass
            sleep(FLUSH_SECONDS)
            if self._active:
                self.flush()

    def _before_fork(self) -> None:
        self.flush()
        self._flushing.acquire()

    def _after_fork_in_child(self) -> None:
        self._flushing.release()
        for stream in (self.out, self.err):  # nobody flushes regularly here
            if not _is_closed(stream):
                stream.reconfigure(line_buffering=True)


class Stdin(io.TextIOBase):
    """Asks for a line when it has none.  File descriptor 0, which child processes inherit, is empty."""

    name, mode, encoding, errors, newlines = "<stdin>", "r", "utf-8", "strict", None
    line_buffering = False

    def __init__(self, ask: "Callable[[bool], Optional[str]]", flush: "Callable[[], None]") -> None:
        self._ask = ask
        self._flush_output = flush
        self._rest = ""
        self._buffer = None  # type: Optional[io.BufferedReader]

    def ask(self, is_password: bool = False) -> str:
        """Return a line, or what is left of one; "" at the end of file."""
        if self.closed:
            raise ValueError("I/O operation on closed file.")
        text, self._rest = ("", self._rest) if is_password else (self._rest, "")
        if not text:
            self._flush_output()
            answer = self._ask(is_password)
            text = "" if answer is None else answer if answer.endswith("\n") else answer + "\n"
        return text if is_password else self._keep_from(text, text.find("\n") + 1)

    def readline(self, size: "Optional[int]" = -1) -> str:  # type: ignore[override]
        line = self.ask()
        if size is None or size < 0 or size >= len(line):
            return line
        self._rest = line + self._rest
        return self._keep_from(self._take_rest(), size)

    def read(self, size: "Optional[int]" = -1) -> str:
        lines, length = [], 0
        while size is None or size < 0 or length < size:
            line = self.readline(-1 if size is None or size < 0 else size - length)
            if not line:
                break
            lines.append(line)
            length += len(line)
        return "".join(lines)

    @property
    def buffer(self) -> io.BufferedReader:
        if self._buffer is None:
            self._buffer = _BufferedReader(RawStdin(self))
        return self._buffer

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def _take_rest(self) -> str:
        text, self._rest = self._rest, ""
        return text

    def _keep_from(self, text: str, index: int) -> str:
        """Return the text before an index; the rest is read next."""
        self._rest = text[index:] + self._rest
        return text[:index]


class RawStdin(io.RawIOBase):
    """The bytes of sys.stdin."""

    def __init__(self, text: Stdin) -> None:
        self._text = text
        self._rest = b""

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def readinto(self, buffer: "Any") -> int:
        data = self._rest or self._text.readline().encode("utf-8", "surrogatepass")
        size = min(len(data), len(buffer))
        buffer[:size] = data[:size]
        self._rest = data[size:]
        return size


class Stdio:
    """The output buffers of C's stdio, which extension modules may print to."""

    def __init__(self) -> None:
        self._libc = None  # type: Any
        self._seen = 0

    def flush(self) -> None:
        if self._libc is None and len(_modules) != self._seen:
            self._seen = len(_modules)
            if any(map(_is_foreign, list(_modules.items()))):
                try:
                    import ctypes  # only now: a plain kernel starts without it

                    self._libc = ctypes.CDLL(None)
                except Exception:  # not built, or broken by user code
                    return
        if self._libc is not None:
            self._libc.fflush(None)


def _is_foreign(item: "Tuple[str, Any]") -> bool:
    """Whether a module can have loaded C code that is not Python's own."""
    name, module = item
    if name == "ctypes":
        return True
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and file.endswith(".so") and "/lib-dynload/" not in file


def _identity(fd: int) -> "Optional[Tuple[int, int]]":
    try:
        status = _fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _writer(fd: int) -> io.TextIOWrapper:
    raw = _FileIO(fd, "w", closefd=False)
    return _TextIOWrapper(_BufferedWriter(raw, BUFFER_BYTES), "utf-8", "backslashreplace", "\n")


def _flush(stream: "Any") -> None:
    try:  # noqa: SIM105  (contextlib would see the real builtins)
        stream.flush()
    except Exception:  # whatever object user code put there
        pass


def _is_closed(stream: "Any") -> bool:
    try:
        return bool(stream.closed)
    except ValueError:  # detached
        return True
