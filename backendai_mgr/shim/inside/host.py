"""The interpreter host: runs the code of a kernel's runs one after another in one process, keeping state.

Usage: ``python host.py CONTROL_FD``, the last argument being an inherited stream socket.  Messages are a
length (4 bytes, big endian) and a JSON object.  It receives ``{"run": number, "code": text}`` and sends
``{"ready": true}`` once, then for each run ``{"began": number}`` and
``{"done": number, "exit_code": int, "interrupted": bool}``; end of file ends it.

Any Python from 3.6 on runs this file; it needs the standard library only.  User code lives in the same
process, so the host keeps its own references to all that it uses, sees a copy of the builtins, and repairs
after each run what a run may have broken.
"""

import __future__

import _ast  # `ast` on top of it costs 5 ms of every start
import _signal  # type: ignore[import-not-found]  # `signal` wraps it in Python code: see `_scan_json`
import builtins
import io
import json
import linecache
import os
import sys
import traceback
import types
import warnings
from _thread import RLock, allocate_lock, start_new_thread
from collections import deque
from time import sleep

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module costs milliseconds, and nothing needs it at run time
    from typing import Any, Deque, Dict, Optional, Tuple  # noqa: F401

FLUSH_SECONDS = 0.02
BUFFER_BYTES = 64 * 1024
SOURCE_BYTES = 32 * 1024 * 1024  # of past runs, kept for tracebacks and inspect
RECURSION_LIMIT = sys.getrecursionlimit()
INTERRUPTED = 130
CO_COROUTINE = 0x80
TOP_LEVEL_AWAIT = getattr(_ast, "PyCF_ALLOW_TOP_LEVEL_AWAIT", 0)  # from 3.8 on
FUTURES = [getattr(__future__, name).compiler_flag for name in __future__.all_feature_names]

# User code may do to the modules and the builtins what it likes: from here on we see our own.
globals()["__builtins__"] = dict(vars(builtins))
_dup2, _exit, _fstat, _getpid = os.dup2, os._exit, os.fstat, os.getpid
_read, _write, _set_blocking = os.read, os.write, os.set_blocking
_scan_json = vars(json.JSONDecoder())["scan_once"]  # all C: Python code would see the real builtins
_Expression, _Expr, _ONLY_AST = _ast.Expression, _ast.Expr, _ast.PyCF_ONLY_AST
_TextIOWrapper, _FileIO = io.TextIOWrapper, io.FileIO
_BufferedReader, _BufferedWriter = io.BufferedReader, io.BufferedWriter
_set_handler, _SIGINT = _signal.signal, _signal.SIGINT
_set_mask, _SIG_SETMASK = _signal.pthread_sigmask, _signal.SIG_SETMASK
_print_exception = traceback.print_exception
_sources, _modules = linecache.cache, sys.modules
_displayhook, _settrace, _setprofile = sys.displayhook, sys.settrace, sys.setprofile
_getrecursionlimit, _setrecursionlimit = sys.getrecursionlimit, sys.setrecursionlimit
_WRITABLE_TRACEBACKS = sys.version_info >= (3, 7)
_FILE = __file__


class Control:
    """The socket to the shim."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.set_inheritable(fd, False)

    def receive(self) -> "Optional[Dict[str, Any]]":
        """Return the next message; None at the end of file."""
        head = self._exactly(4)
        body = None if head is None else self._exactly(int.from_bytes(head, "big"))
        if body is None:
            return None
        message = _scan_json(body.decode(), 0)[0]  # type: Dict[str, Any]
        return message

    def ready(self) -> None:
        self._send('{"ready":true}')

    def began(self, number: int) -> None:
        self._send('{"began":%d}' % number)

    def done(self, number: int, exit_code: int, interrupted: bool) -> None:
        truth = "true" if interrupted else "false"
        self._send('{"done":%d,"exit_code":%d,"interrupted":%s}' % (number, exit_code, truth))

    def _send(self, text: str) -> None:
        data = len(text).to_bytes(4, "big") + text.encode()
        while data:
            data = data[_write(self._fd, data) :]

    def _exactly(self, size: int) -> "Optional[bytes]":
        parts = []
        while size:
            part = _read(self._fd, size)
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class Streams:
    """sys.stdin, sys.stdout and sys.stderr, and the file descriptors below them."""

    def __init__(self) -> None:
        self._spares = {fd: (os.dup(fd), _identity(fd)) for fd in (0, 1, 2)}
        self._stdio = Stdio()
        self._flushing = RLock()
        self._running = allocate_lock()  # held between runs
        self._running.acquire()
        self._active = False
        self._open()
        if hasattr(os, "register_at_fork"):  # from 3.7 on
            # A child must find neither text of ours in its buffers nor a lock that our thread held.
            os.register_at_fork(
                before=self._before_fork,
                after_in_parent=self._flushing.release,
                after_in_child=self._after_fork_in_child,
            )
        warnings.filterwarnings("ignore", message="This process .* is multi-threaded")
        start_new_thread(self._flush_regularly, ())

    def begin(self) -> None:
        """From now on what is printed leaves within FLUSH_SECONDS."""
        self._active = True
        self._running.release()

    def end(self) -> None:
        """Flush all, and repair what user code replaced, closed or redirected."""
        self._active = False
        self._running.acquire()
        for name in ("stdout", "stderr"):
            _flush(getattr(sys, name, None))
        self.flush()
        self._stdio.flush()
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

    def _open(self) -> None:
        self.stdin = _TextIOWrapper(_BufferedReader(_FileIO(0, "r", closefd=False)), "utf-8")
        self.out = _writer(1)
        self.err = _writer(2)
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


class Sources:
    """The source text of past runs where tracebacks look for it, bounded."""

    def __init__(self) -> None:
        self._kept = deque()  # type: Deque[Tuple[str, int]]
        self._size = 0

    def add(self, name: str, code: str) -> None:
        _sources[name] = (len(code), None, [line + "\n" for line in code.split("\n")], name)
        self._kept.append((name, len(code)))
        self._size += len(code)
        while self._size > SOURCE_BYTES and len(self._kept) > 1:
            name, size = self._kept.popleft()
            self._size -= size
            _sources.pop(name, None)


class Host:
    """Serves one shim for ever; the runs' names live in a `__main__` module of their own."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._pid = _getpid()
        self._streams = Streams()
        self._sources = Sources()
        self._loop = None  # type: Any
        self._futures = 0
        self._armed = False
        self._module = types.ModuleType("__main__")
        vars(self._module)["__builtins__"] = builtins
        _modules["__main__"] = self._module
        vars(builtins)["input"] = _no_input
        _set_handler(_SIGINT, self._on_interrupt)

    def serve(self) -> None:
        self._control.ready()
        while True:
            message = self._control.receive()
            if message is None:
                _exit(0)
            if "configure" in message:
                self._configure(**message["configure"])
                continue
            number = message["run"]
            exit_code, interrupted = self._run(number, message["code"])
            if _getpid() != self._pid:  # user code forked, and its child came back here
                _flush(self._streams.out)
                _flush(self._streams.err)
                _exit(exit_code & 0xFF)
            self._streams.end()
            self._restore_interpreter()
            self._control.done(number, exit_code, interrupted)

    def _configure(self, env: "Dict[str, str]") -> None:
        os.environ.clear()
        os.environ.update(env)

    def _run(self, number: int, code: str) -> "Tuple[int, bool]":
        """Run the code; return its exit code and whether KeyboardInterrupt ended it."""
        self._streams.begin()
        _set_mask(_SIG_SETMASK, ())  # also lets a late interrupt of the last run go by
        _set_handler(_SIGINT, self._on_interrupt)
        self._armed = True
        try:
            self._execute(number, code)
        except BaseException as error:  # user code raises what it likes
            self._armed = False
            return self._report(error)
        self._armed = False
        return 0, False

    def _execute(self, number: int, code: str) -> None:
        self._control.began(number)
        name = "<run-%d>" % number
        self._sources.add(name, code)
        flags = self._futures | TOP_LEVEL_AWAIT
        tree = compile(code, name, "exec", _ONLY_AST | flags, True)
        last = None
        if tree.body and isinstance(tree.body[-1], _Expr):
            last = _Expression(tree.body.pop().value)
        body = compile(tree, name, "exec", flags, True)
        for future in FUTURES:
            self._futures |= body.co_flags & future
        shown = None if last is None else compile(last, name, "eval", flags | self._futures, True)
        self._evaluate(body)
        if shown is not None:
            value = self._evaluate(shown)
            getattr(sys, "displayhook", _displayhook)(value)

    def _on_interrupt(self, signum: int, frame: "Optional[types.FrameType]") -> None:
        """Interrupt user code; never the host on its way in or out, wherever the signal finds it."""
        if not self._armed:
            return
        while frame is not None and frame.f_code.co_filename == _FILE:
            if frame.f_code is _EXECUTE:
                break
            if frame.f_code is _SERVE:
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    def _evaluate(self, code: types.CodeType) -> "Any":
        value = eval(code, vars(self._module))
        return self._await(value) if code.co_flags & CO_COROUTINE else value

    def _await(self, coroutine: "Any") -> "Any":
        import asyncio

        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        finally:
            if not task.done():  # interrupted between its steps
                task.cancel()
                try:  # noqa: SIM105  (contextlib is not imported yet)
                    self._loop.run_until_complete(task)
                except asyncio.CancelledError:
                    pass

    def _report(self, error: BaseException) -> "Tuple[int, bool]":
        """Print what ended a run; return the outcome."""
        if isinstance(error, SystemExit):
            return self._exit_code(error.code), False
        interrupted = isinstance(error, KeyboardInterrupt)
        trace = _without_our_frames(error.__traceback__)
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
        try:
            _print_exception(type(error), error.with_traceback(trace), trace, file=self._stderr())
        except BaseException as trouble:  # its text is user code, and so may be what prints it
            names = type(error).__name__, type(trouble).__name__
            self._our_stderr().write("%s (its text cannot be shown: %s)\n" % names)
        return (INTERRUPTED if interrupted else 1), interrupted

    def _exit_code(self, code: object) -> int:
        if code is None:
            return 0
        if isinstance(code, int):
            return int(code) if -(2**31) <= code < 2**31 else int(code) & 0xFF
        try:
            self._stderr().write("%s\n" % (code,))
        except BaseException:  # its __str__ is user code
            self._our_stderr().write("SystemExit (its text cannot be shown)\n")
        return 1

    def _stderr(self) -> "Any":
        theirs = getattr(sys, "stderr", None)
        closed = getattr(theirs, "closed", False) if theirs is not self._streams.err else True
        return theirs if hasattr(theirs, "write") and not closed else self._our_stderr()

    def _our_stderr(self) -> io.TextIOWrapper:
        if _is_closed(self._streams.err):
            self._streams.err = _writer(2)
        return self._streams.err

    def _restore_interpreter(self) -> None:
        _settrace(None)
        _setprofile(None)
        if _getrecursionlimit() < RECURSION_LIMIT:
            _setrecursionlimit(RECURSION_LIMIT)
        _modules["__main__"] = self._module


_EXECUTE = Host._execute.__code__
_SERVE = Host.serve.__code__


def _without_our_frames(trace: "Optional[types.TracebackType]") -> "Optional[types.TracebackType]":
    """Cut what runs user code off the head of a traceback, and our own functions out of the rest."""
    start = trace
    while start is not None and not start.tb_frame.f_code.co_filename.startswith("<run-"):
        start = start.tb_next
    if start is None:  # nothing of the run in it: a SyntaxError, or an interrupt at an await
        start = trace
        while start is not None and start.tb_frame.f_code.co_filename == _FILE:
            start = start.tb_next
    here = start
    while here is not None:
        following = here.tb_next
        if following is not None and following.tb_frame.f_code.co_filename == _FILE and _WRITABLE_TRACEBACKS:
            here.tb_next = following.tb_next
        else:
            here = following
    return start


def _no_input(prompt: object = "") -> str:
    """Stands in for input(): there is nobody to ask."""
    text = str(prompt)
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()
    raise EOFError("this run has no input: input() cannot be answered here")


def _forget_our_directory() -> None:
    """Let user code import from its working directory instead of this file's."""
    ours = os.path.dirname(os.path.realpath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == ours:
        del sys.path[0]
    sys.path.insert(0, "")


def serve(control_fd: int) -> None:
    _forget_our_directory()
    sys.argv[:] = [""]
    Host(Control(control_fd)).serve()


def main() -> None:
    serve(int(sys.argv.pop()))


if __name__ == "__main__":
    # Called from a frame with other globals: before 3.10 frames of one module hand the builtins down.
    eval("lambda function: function()", {})(main)
