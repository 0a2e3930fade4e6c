"""The interpreter host: runs the code of a kernel's runs one after another in one process, keeping state.

Usage: ``python host.py CONTROL_FD``, the last argument being an inherited stream socket; or, in a process
forked for it, ``import host; host.serve(control_fd)``.  Messages are a length (4 bytes, big endian) and a
JSON object.  It receives

* ``{"configure": {"env": {name: text}, "limits": {name of an rlimit: number}}}``, only before the first run;
* ``{"run": number, "code": text}``;
* ``{"input": number, "text": text or null}``, the answer to a prompt (null: end of file);
* ``{"complete": number, "code": text, "cursor": offset in characters}``, only between runs;

and sends

* ``{"ready": true}`` once, then for each run ``{"began": number}`` and
  ``{"done": number, "exit_code": int, "interrupted": bool}``;
* ``{"prompt": number, "is_password": bool}`` when the run asks for a line of input;
* ``{"display": "html", "data": html}`` and ``{"display": "media", "data": '["image/png", "<base64>"]'}``;
  what was printed before has been flushed;
* ``{"completions": number, "matches": [text]}``.

End of file ends it.

Any Python from 3.6 on runs the files of this folder; they need the standard library only.  User code lives in
the same process, so they keep their own references to all that they use, see a copy of the builtins, are not
in sys.modules, and the host repairs after each run what it may have broken.
"""

import __future__

import _ast  # `ast` on top of it costs 5 ms of every start
import _signal  # type: ignore[import-not-found]  # `signal` wraps it in Python code, which costs at start
import builtins
import os
import sys
import traceback
import types
from binascii import b2a_base64
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:  # the module costs milliseconds, and nothing needs it at run time
    import io
    from typing import Any, Callable, Dict, List, NoReturn, Optional, Set, Tuple  # noqa: F401

RECURSION_LIMIT = sys.getrecursionlimit()
INTERRUPTED = 130
CO_COROUTINE = 0x80
TOP_LEVEL_AWAIT = getattr(_ast, "PyCF_ALLOW_TOP_LEVEL_AWAIT", 0)  # from 3.8 on
FUTURES = [getattr(__future__, name).compiler_flag for name in __future__.all_feature_names]

# User code may do to the modules and the builtins what it likes: from here on we see our own.
globals()["__builtins__"] = dict(vars(builtins))
_exit, _getpid, _listdir = os._exit, os.getpid, os.listdir
_Expression, _Expr, _ONLY_AST = _ast.Expression, _ast.Expr, _ast.PyCF_ONLY_AST
_set_handler, _get_handler, _SIGINT = _signal.signal, _signal.getsignal, _signal.SIGINT
_set_mask, _SIG_SETMASK = _signal.pthread_sigmask, _signal.SIG_SETMASK
_print_exception = traceback.print_exception
_modules = sys.modules
_displayhook, _settrace, _setprofile = sys.displayhook, sys.settrace, sys.setprofile
_getrecursionlimit, _setrecursionlimit = sys.getrecursionlimit, sys.setrecursionlimit
_FOLDER = os.path.dirname(os.path.realpath(__file__))
_OURS = {__file__}  # the file names of our code
_KEPT = []  # type: List[Any]
_RICH = ("_repr_html_", "_repr_png_", "_repr_jpeg_", "_repr_svg_")


def _read_source(name: str) -> "Tuple[str, bytes]":
    path = "%s/%s.py" % (_FOLDER, name)
    with open(path, "rb") as file:
        return path, file.read()


#: Read now, so that what is compiled later, if at all, is what was here at the start.
_LATER = {name: _read_source(name) for name in ("completion", "display", "environment", "figures", "rlimits")}


def _fill(module: types.ModuleType, source: "Tuple[str, bytes]") -> None:
    path, text = source
    _OURS.add(path)
    vars(module).update({"__builtins__": globals()["__builtins__"], "__file__": path})
    exec(compile(text, path, "exec", 0, True), vars(module))


def _load(name: str, source: "Optional[Tuple[str, bytes]]" = None) -> "Any":
    """Return a new module of this folder, which `import` cannot find."""
    module = types.ModuleType(name)
    _fill(module, source or _LATER[name])
    return module


_control = _load("control", _read_source("control"))
_streams = _load("streams", _read_source("streams"))
_hooks = _load("hooks", _read_source("hooks"))
_tracebacks = _load("tracebacks", _read_source("tracebacks"))
#: What user code must find again, whatever it does.
_BASE_MODULES = {name: module for name, module in _modules.items() if name != "__main__"}
_BASE_BUILTINS = {name: value for name, value in vars(builtins).items() if callable(value)}
_HELD = [number for number in _control.SIGNALS if number != _SIGINT]


class Host:
    """Serves one shim for ever; the runs' names live in a `__main__` module of their own."""

    def __init__(self, control: "Any") -> None:
        self._control = control
        self._pid = _getpid()
        self._streams = _streams.Streams(control)
        self._sources = _tracebacks.Sources()
        self._loop = None  # type: Any
        self._futures = 0
        self._armed = False
        self._configurable = True
        self._display = self._completer = self._figures = None  # type: Any
        self._module = types.ModuleType("__main__")
        vars(self._module)["__builtins__"] = builtins
        _modules["__main__"] = self._module
        vars(builtins)["input"] = _hooks.named("input", self._streams.read_line)
        sys.displayhook = self._show
        actions = {"getpass": self._import_getpass, "matplotlib": _hooks.import_matplotlib}
        sys.meta_path.insert(0, _hooks.Finder(actions, {_hooks.FIGURES: self._import_figures}))
        control.on_interrupt = self._on_interrupt
        _set_handler(_SIGINT, control.on_interrupt)

    def serve(self) -> "NoReturn":
        self._control.ready()
        while True:
            message = self._control.receive()
            if message is None:
                _exit(0)
            if "run" in message:
                number = message["run"]
                exit_code, interrupted = self._run(number, message["code"])
                self._after_user_code(exit_code)
                self._control.done(number, exit_code, interrupted)
            elif "complete" in message:
                matches = self._complete(message["code"], message["cursor"])
                self._after_user_code(0)
                self._control.completions(message["complete"], matches)
            elif "configure" in message and self._configurable:
                _load("rlimits").lower(message["configure"]["limits"])
                _load("environment").configure(message["configure"]["env"])

    def _run(self, number: int, code: str) -> "Tuple[int, bool]":
        """Run the code; return its exit code and whether KeyboardInterrupt ended it."""
        try:
            try:
                self._before_user_code()
                self._execute(number, code)
            finally:
                self._armed = False
                _hold_signals(set())
        except BaseException as error:  # user code raises what it likes, in handlers of signals also just now
            self._armed = False
            _hold_signals(set())
            _set_handler(_SIGINT, self._control.on_interrupt)
            outcome = self._report(error)
        else:
            outcome = 0, False
        _hold_signals({_SIGINT})
        return outcome

    def _before_user_code(self) -> None:
        self._configurable = False
        self._streams.begin()
        _set_handler(_SIGINT, self._control.on_interrupt)
        _hold_signals(set())  # a late interrupt of the last run goes by here
        self._control.interrupted = False
        self._armed = True

    def _after_user_code(self, exit_code: int) -> None:
        if _getpid() != self._pid:  # user code forked, and its child came back here
            self._streams.flush_all()
            _exit(exit_code & 0xFF)
        self._control.over()
        self._streams.end()
        self._restore_interpreter()

    def _complete(self, code: str, cursor: int) -> "List[str]":
        matches = []  # type: List[str]
        try:
            try:
                self._before_user_code()
                matches = self._matches(code, cursor)
            finally:
                self._armed = False
                _hold_signals({_SIGINT})
        except BaseException:  # attributes are user code
            self._armed = False
            _hold_signals({_SIGINT})
        return matches

    def _matches(self, code: str, cursor: int) -> "List[str]":
        if self._completer is None:
            self._completer = _load("completion").Completer(
                vars(self._module), vars(builtins), _modules, _listdir, monotonic
            )
        matches = self._completer.matches(code, cursor)  # type: List[str]
        return matches

    def _execute(self, number: int, code: str) -> None:
        self._control.began(number)
        _set_mask(_SIG_SETMASK, ())
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
        try:
            self._evaluate(body)
            if shown is not None:
                value = self._evaluate(shown)
                getattr(sys, "displayhook", self._show)(value)
        finally:
            if self._figures is not None and self._control.serves_this_run():
                self._figures.show()

    def _on_interrupt(self, signum: int, frame: "Optional[types.FrameType]") -> None:
        """Interrupt user code; never the host on its way in or out, wherever the signal finds it."""
        if not self._armed:
            return
        while frame is not None and frame.f_code.co_filename in _OURS:
            if frame.f_code is _MASKED:
                self._control.interrupted = True
                return
            if frame.f_code in _INTERRUPTIBLE:
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
        self._print(error)
        return (INTERRUPTED if interrupted else 1), interrupted

    def _print(self, error: BaseException) -> None:
        """Print a traceback.  The exception's text is user code, and so may be what prints it."""
        try:
            _tracebacks.clean(error, _OURS)
            sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
            vars(sys)["last_exc"] = error
            self._armed = True
            _print_exception(type(error), error, error.__traceback__, file=self._stderr())
            self._armed = False
        except BaseException as trouble:
            self._armed = False
            names = type(error).__name__, type(trouble).__name__
            self._our_stderr().write("%s (its text cannot be shown: %s)\n" % names)

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

    def _our_stderr(self) -> "io.TextIOWrapper":
        ours = self._streams.writable_stderr()  # type: io.TextIOWrapper
        return ours

    def _restore_interpreter(self) -> None:
        _settrace(None)
        _setprofile(None)
        if _getrecursionlimit() < RECURSION_LIMIT:
            _setrecursionlimit(RECURSION_LIMIT)
        if "sys" not in _modules or "builtins" not in _modules:  # all were thrown away
            for name, module in _BASE_MODULES.items():
                _modules.setdefault(name, module)
        _modules["__main__"] = self._module
        # What was put in place of a builtin stays, if it can do its work at all.
        theirs = vars(builtins)
        for name, value in _BASE_BUILTINS.items():
            if theirs.get(name, _BASE_BUILTINS) is not value and not callable(theirs.get(name)):
                theirs[name] = value

    # -- what runs show, and what they import

    def _show(self, value: object) -> None:
        """The displayhook."""
        if value is None:
            return
        try:
            shown = any([hasattr(type(value), name) for name in _RICH]) and self._show_rich(value)
        except Exception as error:  # of theirs: the text is still there
            self._print_inside(error)
            shown = False
        if shown:
            vars(builtins)["_"] = value
        else:
            _displayhook(value)

    def _show_rich(self, value: object) -> bool:
        if not self._control.serves_this_run():
            return False
        if self._display is None:
            self._display = _load("display")
        rich = self._display.rich(value)
        if rich is not None:
            self._emit(*rich)
        return rich is not None

    def _emit(self, kind: str, data: "Any") -> None:
        if self._display is None:
            self._display = _load("display")
        stream, text = self._display.payload(kind, data, b2a_base64)
        if text is None:
            sys.stdout.write(self._display.too_large(kind))
        else:
            self._streams.flush_all()
            self._control.display(stream, text)

    def _print_inside(self, error: Exception) -> None:
        """Print a traceback from within a run."""
        _tracebacks.clean(error, _OURS)
        _print_exception(type(error), error, error.__traceback__, file=self._stderr())

    def _import_getpass(self, module: "Any", execute: "Callable[[Any], None]") -> None:
        execute(module)
        read_line = self._streams.read_line

        def getpass(prompt: object = "Password: ", stream: object = None, **options: object) -> str:
            line = read_line(prompt, True)  # type: str
            return line

        module.getpass = _hooks.named("getpass", getpass)

    def _import_figures(self, module: "Any") -> None:
        module.emit = lambda png: self._emit("image/png", png)
        _fill(module, _LATER["figures"])
        self._figures = module


_INTERRUPTIBLE = {Host._execute.__code__, Host._matches.__code__, Host._print.__code__}
_SERVE = Host.serve.__code__
_MASKED = _control.Control.masked.__code__


def _hold_signals(more: "Set[int]") -> None:
    """What user code does at signals it does in runs only: no exception of it may leave the host."""
    while True:
        try:
            _set_mask(_SIG_SETMASK, _control.SIGNALS)
            held = more.union([number for number in _HELD if callable(_get_handler(number))])
            _set_mask(_SIG_SETMASK, held)
            return
        except BaseException:  # of a handler, for the last time
            pass


def _reset_signals() -> None:
    """Undo what the process that we were forked from had set."""
    for number in _control.SIGNALS:
        if callable(_get_handler(number)):
            _set_handler(number, _signal.SIG_DFL)
    _signal.set_wakeup_fd(-1)


def _hide() -> None:
    """Let user code import from its working directory instead of from here."""
    for name in [name for name, module in _modules.items() if _is_here(getattr(module, "__file__", None))]:
        if name != "__main__":
            _KEPT.append(_modules.pop(name))
    sys.path[:] = [""] + [entry for entry in sys.path if entry and os.path.realpath(entry) != _FOLDER]
    sys.argv[:] = [""]


def _is_here(path: object) -> bool:
    return isinstance(path, str) and os.path.dirname(os.path.realpath(path)) == _FOLDER


def serve(control_fd: int) -> "NoReturn":
    """Serve the shim at the other end of a socket, in this process, which must have a single thread.

    For a process that was forked for this: descriptors 0, 1 and 2 are in place, the session and the account
    are its own.  Python handlers of signals are reset, and modules of this folder vanish from sys.modules.
    """
    _hide()
    _reset_signals()
    Host(_control.Control(control_fd)).serve()


if __name__ == "__main__":
    # Called from a frame with other globals: before 3.10 frames of one module hand the builtins down.
    eval("lambda function, fd: function(fd)", {})(serve, int(sys.argv.pop()))
