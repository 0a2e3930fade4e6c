"""Odd and hostile user code, and what ends a kernel."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest

from tests.shim.client import HOST, PATIENCE, until
from tests.shim.host_driver import HostDied, HostProcess, host, pythons


@pytest.fixture(scope="module", params=pythons())
def kernel(request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with host([request.param, HOST]) as kernel:
        yield kernel


CLEAN = {
    "SyntaxError": ("x = = 1", "SyntaxError"),
    "RecursionError": ("def f(): f()\nf()", "RecursionError"),
    "implicit chain": ("try: input(1 / 0)\nexcept ZeroDivisionError: {}['k']", "KeyError: 'k'"),
    "of an import": ("import nowhere_to_be_found", "nowhere_to_be_found"),
    "of a bad import": ("open('broken.py', 'w').write('1/0')\nimport broken", "ZeroDivisionError"),
    "of a thread": (
        "import threading\nt = threading.Thread(target=lambda: 1/0); t.start(); t.join(); None",
        "ZeroDivisionError",
    ),
    "displayhook": (
        "import sys\ndef hook(value): 1/0\nold, sys.displayhook = sys.displayhook, hook\n5",
        "ZeroDivisionError",
    ),
    "after it": ("sys.displayhook = old; 1/0", "ZeroDivisionError"),
    "endless chain": (
        "a, b = ValueError('a'), ValueError('b')\na.__cause__, b.__cause__ = b, a\nraise a",
        "ValueError",
    ),
    "a lying exception": ("class E(Exception):\n    exceptions = 5\nraise E('five')", "E: five"),
    "SystemExit in repr": ("class E:\n    def __repr__(self): raise SystemExit(5)\nE()", ""),
}


@pytest.mark.parametrize("name", CLEAN)
def test_tracebacks_are_clean(kernel: HostProcess, name: str) -> None:
    code, last = CLEAN[name]
    err = kernel.run(code).err
    assert last in err
    assert "shim" not in err
    kernel.run("None")


def test_exception_groups_are_clean() -> None:
    code = (
        "import sys\nerrors = []\n"
        "class Bad:\n    def __repr__(self): raise ValueError('inner')\n"
        "try: sys.displayhook(Bad())\nexcept ValueError as e: errors.append(e)\n"
        "raise ExceptionGroup('group', errors + [KeyError('other')])"
    )
    with host() as kernel:
        err = kernel.run(code).err
    assert "ExceptionGroup: group (2 sub-exceptions)" in err
    assert "ValueError: inner" in err
    assert "shim" not in err


def test_an_endless_text_of_an_exception_can_be_interrupted(kernel: HostProcess) -> None:
    kernel.start(
        "class E(Exception):\n    def __str__(self):\n        open('reached', 'w').close()\n"
        "        while True: pass\nraise E"
    )
    until((kernel.work / "reached").exists)
    kernel.interrupt()
    result = kernel.end()
    assert result.exit_code == 1
    assert "E" in result.err
    (kernel.work / "reached").unlink()
    kernel.works()


ODD = {
    "cleared sys.modules": "import sys; sys.modules.clear()",
    "no builtins": "import builtins; vars(builtins).clear()",
    "no meta_path": "import sys; sys.meta_path.clear(); sys.path_hooks.clear()",
    "raising handler": "import signal\ndef h(*_): raise ValueError('signal')\n"
    "signal.signal(signal.SIGINT, h); None",
    "raising timer": (
        "import signal\ndef h(*_): raise ValueError('timer')\nsignal.signal(signal.SIGALRM, h)\n"
        "_ = signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)\n"
        "try: [0 for _ in range(10**5)]\nexcept ValueError: pass"
    ),
    "closed input": "quit()",
    "atexit": "import atexit; atexit.register(print, 'never'); None",
    "daemon thread": "import threading, time; threading.Thread(target=time.sleep, args=[9]).start()",
    "waiting thread": "import threading, time; threading.Thread(target=time.sleep, args=(99,)).start()",
    "low limits": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))",
    "forked children": "import os\nfor _ in range(3):\n    if os.fork() == 0: raise SystemExit(2)\n"
    "for _ in range(3): os.wait()",
    "forked in a thread": (
        "import os, threading\n"
        "def f():\n    if os.fork() == 0: os._exit(0)\n    os.wait()\n"
        "t = threading.Thread(target=f); t.start(); t.join()"
    ),
    "no stdout at all": "import os, sys; sys.stdout = None; os.close(1); os.close(2); os.close(0)",
    "garbage in stdout": "import sys; sys.stdout = 5; sys.stderr = object()",
    "no input function": "import builtins; del builtins.input, builtins.print",
    "stopped garbage collection": "import gc; gc.disable(); gc.freeze() if hasattr(gc, 'freeze') else None",
    "excepthook": "import sys; sys.excepthook = None; sys.unraisablehook = None; 1/0",
    "asyncio": "import asyncio\nasync def f(): raise SystemExit(3)\n"
    "asyncio.new_event_loop().run_until_complete(f())",
    "closed loop": "import asyncio; asyncio.new_event_loop().close()",
    "other frames": "import sys\nf = sys._getframe()\nwhile f: f.f_locals; f = f.f_back",
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    "python", sorted({sys.executable, pythons()[0], *(p for p in pythons() if "/3.6." in p)})
)
def test_the_host_survives(python: str, name: str) -> None:
    with host([python, HOST]) as kernel:
        kernel.run(ODD[name])
        assert kernel.run("1").exit_code in (0, 1)
        others = {"raising timer": {1, 9}}
        assert kernel.run("raise SystemExit(9)").exit_code in others.get(name, {9})
        kernel.complete("a.")
        assert "never" not in kernel.printed(0)


ENDS = {
    "os._exit": ("import os; os._exit(5)", 5),
    "SIGTERM": ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    "SIGKILL": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "a crash": ("import ctypes; ctypes.string_at(0)", -signal.SIGSEGV),
    "abort": ("import os; os.abort()", -signal.SIGABRT),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_kernel_ends(name: str) -> None:
    code, status = ENDS[name]
    with host() as kernel, pytest.raises(HostDied) as died:
        kernel.run(code)
    assert died.value.args == (status,)


def test_a_signal_between_runs_ends_the_kernel_too() -> None:
    with host() as kernel:
        kernel.works()
        kernel.process.send_signal(signal.SIGTERM)
        assert kernel.process.wait(PATIENCE) == -signal.SIGTERM


def test_output_of_all_sorts_is_there_at_the_end_of_its_run(kernel: HostProcess) -> None:
    code = (
        "import os, subprocess, sys, threading\nprint('text')\nsys.stdout.flush()\n"
        "_ = os.system('echo shell'); _ = subprocess.run(['echo', 'exec'])\n"
        "pid = os.fork()\nif pid == 0:\n    print('fork'); sys.stdout.flush(); os._exit(0)\n"
        "_ = os.waitpid(pid, 0)\n"
        "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
        "import ctypes; _ = ctypes.CDLL(None).puts(b'c')\nprint('last')"
    )
    result = kernel.run(code)
    assert sorted(result.out.split()) == ["c", "exec", "fork", "last", "shell", "text", "thread"]
    assert (result.exit_code, result.err) == (0, "")


def test_huge_output(kernel: HostProcess) -> None:
    result = kernel.run("for n in range(200000): print('line', n)")
    assert result.out.splitlines()[::199999] == ["line 0", "line 199999"]
    assert len(kernel.run("'x' * 10**7").out) == 10**7 + 3


def test_a_thread_that_prints_on_harms_nothing(kernel: HostProcess) -> None:
    kernel.run(
        "import sys, threading\nstop, some = threading.Event(), threading.Event()\n"
        "def noise():\n"
        "    while not stop.is_set():\n"
        "        print('noise'); print('noise', file=sys.stderr); some.set(); stop.wait(0.001)\n"
        "thread = threading.Thread(target=noise); thread.start()"
    )
    for _ in range(20):
        assert kernel.run("6*7").exit_code == 0
    assert "42\n" in kernel.run("some.wait(20); 6*7").out
    kernel.run("stop.set(); thread.join()")
    kernel.works()


def test_names_and_pickles_of_user_classes(kernel: HostProcess) -> None:
    code = (
        "import pickle, multiprocessing\nclass Point:\n    def __init__(self, x): self.x = x\n"
        "def double(point): return Point(point.x * 2)\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    points = pool.map(double, [Point(1), Point(2)])\n"
        "[p.x for p in points], Point.__module__, pickle.loads(pickle.dumps(Point(5))).x"
    )
    assert kernel.run(code) == (0, "([2, 4], '__main__', 5)\n", "", False)


def test_modules_of_the_user_s_come_first(kernel: HostProcess) -> None:
    """Whatever they are called, they are theirs, and the host does not use them."""
    names = [
        "control",
        "hooks",
        "tracebacks",
        "display",
        "completion",
        "figures",
        "environment",
        "rlimits",
    ]
    for name in names:
        (kernel.work / f"{name}.py").write_text("mine = True")
    assert kernel.run(f"import {', '.join(names)}\nall([{'.mine, '.join(names)}.mine])").out == "True\n"
    assert kernel.complete("contro") == ["control"]
    for name in names:
        (kernel.work / f"{name}.py").unlink()


def test_debugger(kernel: HostProcess) -> None:
    kernel.start("import pdb\nx = 5\npdb.set_trace()\nprint('done')")
    kernel.answer("p x")
    kernel.answer("continue")
    out = kernel.end().out
    assert "5\n" in out
    assert out.endswith("done\n")
