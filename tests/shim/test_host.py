"""What user code sees of the interpreter host, through a real shim."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.shim.client import HOST, Shim, scratch_directory, start
from tests.shim.host_driver import pythons


@pytest.fixture(scope="module")
def kernel() -> Iterator[Shim]:
    """One kernel for all tests here: each leaves it usable, which is part of what they test."""
    with scratch_directory() as root:
        shim = Shim(Path(root) / "a")
        shim.running()
        try:
            yield shim
        finally:
            shim.close()


def result(kernel: Shim, code: str) -> tuple[object, str, str]:
    """Run; return exit code, stdout and stderr."""
    status = kernel.run(code)
    assert status["state"] == "finished"
    run_id = status["run_id"]
    return status["exit_code"], kernel.output(run_id, "stdout"), kernel.output(run_id, "stderr")


def works(kernel: Shim) -> None:
    assert result(kernel, "print('still'); 6*7") == (0, "still\n42\n", "")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("6*7", (0, "42\n", "")),
        ("x = 5", (0, "", "")),
        ("None", (0, "", "")),
        ("", (0, "", "")),
        ("'text'", (0, "'text'\n", "")),
        ("print('a', end='')", (0, "a", "")),
        ("import sys; print('e', file=sys.stderr)", (0, "", "e\n")),
        ("print('\\xe9\\u20ac\\U0001f600')", (0, "\xe9\u20ac\U0001f600\n", "")),
        ("print('\\udc80')", (0, "\\udc80\n", "")),
        ("raise SystemExit", (0, "", "")),
        ("raise SystemExit(3)", (3, "", "")),
        ("exit(4)", (4, "", "")),
        ("import sys; sys.exit('bad')", (1, "", "bad\n")),
        ("raise SystemExit(2**40 + 7)", (7, "", "")),
        ("raise SystemExit(True)", (1, "", "")),
        ("import sys; [sys.argv, sys.path[0], __name__]", (0, "[[''], '', '__main__']\n", "")),
        ("import os; os.getcwd().endswith('/work')", (0, "True\n", "")),
        ("import signal; signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN", (0, "True\n", "")),
    ],
)
def test_result(kernel: Shim, code: str, expected: tuple[int, str, str]) -> None:
    assert result(kernel, code) == expected


def test_state_is_kept(kernel: Shim) -> None:
    result(kernel, "import math as m\ndef f(x): return m.floor(x) + base\nbase = 10")
    assert result(kernel, "f(2.5)") == (0, "12\n", "")
    assert result(kernel, "_ + 1") == (0, "13\n", "")


def test_future_imports_are_kept(kernel: Shim) -> None:
    assert result(kernel, "from __future__ import annotations\ndef g(x: nowhere): pass")[0] == 0
    assert result(kernel, "def h(x: nowhere): pass\nh.__annotations__") == (0, "{'x': 'nowhere'}\n", "")


def test_tracebacks_show_the_user_s_lines_only(kernel: Shim) -> None:
    code, out, err = result(kernel, "def f():\n    raise ValueError('boo')\ndef g(): f()\ng()")
    assert (code, out) == (1, "")
    assert "shim" not in err
    assert err.startswith("Traceback (most recent call last):\n")
    assert "line 4, in <module>\n    g()\n" in err
    assert "line 2, in f\n    raise ValueError('boo')\n" in err
    assert err.endswith("ValueError: boo\n")


def test_tracebacks_reach_into_earlier_runs(kernel: Shim) -> None:
    result(kernel, "def early():\n    return 1 / 0")
    assert "    return 1 / 0\n" in result(kernel, "early()")[2]


def test_chained_exceptions(kernel: Shim) -> None:
    err = result(kernel, "try:\n    1/0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e")[2]
    assert "ZeroDivisionError: division by zero" in err
    assert "direct cause" in err
    assert "shim" not in err


@pytest.mark.parametrize("code", ["x =", "def f(:", "'\x00'", "return 1", "(" * 500, "\ud800"])
def test_code_that_does_not_compile(kernel: Shim, code: str) -> None:
    exit_code, out, err = result(kernel, code)
    assert (exit_code, out) == (1, "")
    assert "Error" in err
    assert "shim" not in err
    works(kernel)


def test_top_level_await_runs_on_one_loop(kernel: Shim) -> None:
    result(kernel, "import asyncio\nqueue = asyncio.Queue()\nawait queue.put(5)")
    assert result(kernel, "await queue.get()") == (0, "5\n", "")
    assert result(kernel, "asyncio.run(asyncio.sleep(0, 6))") == (0, "6\n", "")
    assert result(kernel, "await asyncio.sleep(0, 7)") == (0, "7\n", "")
    err = result(kernel, "async def fail():\n    1/0\nawait fail()")[2]
    assert "shim" not in err
    assert "base_events" not in err
    assert err.endswith("ZeroDivisionError: division by zero\n")


def test_output_of_children_and_of_c_is_of_this_run(kernel: Shim) -> None:
    assert result(kernel, "import os; os.system('echo child; echo oops >&2')") == (0, "child\n0\n", "oops\n")
    code = "import ctypes; libc = ctypes.CDLL(None); libc.printf(b'from c\\n'); None"
    assert result(kernel, code) == (0, "from c\n", "")


def test_printed_text_arrives_while_the_run_goes_on(kernel: Shim) -> None:
    client = kernel.connect()
    assert client is not None
    go = kernel.work / "go"
    code = f"import os, time\nprint('first')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.005)"
    start(client, "live", code)
    client.ask("watch", run_id="live", offset=0)
    assert client.note("more", run_id="live")["state"] == "running"
    assert kernel.output("live") == "first\n"
    go.touch()
    assert client.ended("live")["exit_code"] == 0
    client.socket.close()


BREAKERS = {
    "closed descriptors": "import os\nfor fd in 0, 1, 2: os.close(fd)",
    "closed stdout": "import sys; sys.stdout.close(); sys.stderr.close()",
    "closed stdin": "exit(0)",
    "detached stdout": "import sys; sys.stdout.detach()",
    "deleted streams": "import sys; del sys.stdout, sys.stderr, sys.stdin",
    "streams of None": "import sys; sys.stdout = sys.stderr = sys.stdin = None",
    "a stdout of no use": "import sys\nclass Bad:\n    def __getattr__(self, name): 1/0\nsys.stdout = Bad()",
    "a non-blocking stdout": "import os; os.set_blocking(1, False); os.set_blocking(2, False)",
    "stdout sent to a file": "import os; os.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
    "no displayhook": "import sys; real = sys.displayhook; del sys.displayhook",
    "a trace function": "import sys\ndef t(*a): raise ValueError\nsys.setprofile(t)",
    "a small stack": "import sys; sys.setrecursionlimit(40)",
    "blocked signals": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [2])",
    "ignored SIGINT": "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "no __main__": "import sys; sys.modules['__main__'] = None",
    "cleared linecache": "import linecache; linecache.cache.clear(); del linecache.cache",
    "a signal to itself": "import os, signal; os.kill(os.getpid(), 2); 1",
    "a thread that prints on": (
        "import threading, sys\n"
        "def noise():\n"
        "    for _ in range(1000): print('x', file=sys.stderr)\n"
        "thread = threading.Thread(target=noise); thread.start(); thread.join()"
    ),
    "text that cannot be shown": "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E",
    "an exit that cannot be shown": "class E:\n    def __str__(self): raise KeyboardInterrupt\nexit(E())",
    "a broken traceback module": "import traceback; traceback.TracebackException = None; 1/0",
    "os without functions": "import os, io; os.read = os.write = os.getpid = io.FileIO = None",
}


@pytest.mark.parametrize("name", BREAKERS)
def test_the_kernel_survives(make_shim: Callable[..., Shim], name: str) -> None:
    shim = make_shim()
    shim.running()
    assert shim.run(BREAKERS[name])["state"] == "finished"
    if name == "a broken traceback module":
        shim.run("import importlib; importlib.reload(traceback)")
    works(shim)
    assert shim.run("raise SystemExit(9)")["exit_code"] == 9


def test_the_kernel_survives_broken_builtins(kernel: Shim) -> None:
    broken = "import builtins as b\nsaved = vars(b).copy()\nvars(b).update(dict.fromkeys(saved))"
    assert kernel.run(broken)["state"] == "finished"
    status = kernel.run("'literals need no builtins'\nraise_ = 1")
    assert (status["state"], status["exit_code"]) == ("finished", 0)
    assert kernel.run("1/0")["exit_code"] == 1
    assert kernel.run("b.__dict__.update(saved)")["state"] == "finished"
    works(kernel)


def test_text_printed_before_stdout_was_closed_is_kept(kernel: Shim) -> None:
    assert result(kernel, "import os; print('kept'); os.close(1)")[1] == "kept\n"
    works(kernel)


def test_a_fork_that_comes_back_leaves_no_second_host(kernel: Shim) -> None:
    code, out, _ = result(
        kernel, "import os\nprint('before')\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint('both')"
    )
    assert code == 0
    assert sorted(out.split()) == ["before", "both", "both"]
    works(kernel)


def test_a_pool_of_processes_works(kernel: Shim) -> None:
    code = (
        "import multiprocessing\n"
        "def square(x): return x * x\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool: squares = pool.map(square, range(4))\n"
        "squares"
    )
    assert result(kernel, code) == (0, "[0, 1, 4, 9]\n", "")


def test_pickle_and_inspect_find_what_runs_define(kernel: Shim) -> None:
    result(kernel, "class Point:\n    pass\ndef origin():\n    return Point()")
    assert result(kernel, "import pickle; type(pickle.loads(pickle.dumps(Point()))) is Point")[1] == "True\n"
    shown = "'def origin():\\n    return Point()\\n'\n"
    assert result(kernel, "import inspect; inspect.getsource(origin)")[1] == shown


@pytest.mark.parametrize("python", pythons())
def test_every_python_runs_the_host(make_shim: Callable[..., Shim], python: str) -> None:
    version = subprocess.run(
        [python, "-c", "import sys; print(tuple(sys.version_info[:2]))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    shim = make_shim([python, HOST])
    shim.running()
    assert result(shim, "import sys; print(tuple(sys.version_info[:2]))") == (0, version, "")
    assert result(shim, "x = 6\nx * 7") == (0, "42\n", "")
    code, _, err = result(shim, "def f():\n    return 1 / 0\nf()")
    assert code == 1
    assert "shim" not in err
    assert "    return 1 / 0\n" in err
    if version >= "(3, 8)" or version.startswith("(3, 1"):
        assert result(shim, "import asyncio\nawait asyncio.sleep(0, 5)") == (0, "5\n", "")
    assert result(shim, "import builtins; real = len; builtins.len = None")[0] == 0
    assert result(shim, "builtins.len = real")[0] == 0
    assert result(shim, "import os, sys; os.close(1); sys.stderr.close()")[0] == 0
    assert result(shim, "import os\nif os.fork() == 0: raise SystemExit(1)\nos.wait()[1] >> 8")[1:] == (
        "1\n",
        "",
    )
    assert result(shim, "raise SystemExit(3)")[0] == 3
