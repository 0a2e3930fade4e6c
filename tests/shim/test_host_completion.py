"""Completions, the configuration of a kernel, and the host in a process forked for it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shim.client import HOST, PATIENCE
from tests.shim.host_driver import HostProcess, host, in_state, pythons

FORKING = (
    "import os, signal, sys\n"
    "folder = sys.argv[1]\n"
    "sys.path.insert(0, folder)\n"
    "import host\n"
    "signal.signal(signal.SIGCHLD, lambda *_: None)\n"
    "pid = os.fork()\n"
    "if pid == 0:\n"
    "    os.setsid()\n"
    "    host.serve(int(sys.argv[2]))\n"
    "sys.exit(os.waitpid(pid, 0)[1])\n"
)


@pytest.fixture(scope="module", params=pythons())
def kernel(request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with host([request.param, HOST]) as kernel:
        yield kernel


@pytest.mark.parametrize(
    ("code", "present", "absent"),
    [
        ("apri", {"apricot(", "aprium"}, {"print("}),
        ("prin", {"print("}, {"apricot("}),
        ("x = [apric", {"apricot("}, set()),
        ("aprium.ups", {"aprium.upside"}, {"aprium.real"}),
        ("f(aprium.nested.ups", {"aprium.nested.upside"}, set()),
        ("aprium.", {"aprium.upside", "aprium.tidy("}, {"aprium.__class__("}),
        ("aprium.__cl", {"aprium.__class__("}, set()),
        ("aprium.surp", {"aprium.surprise"}, set()),
        ("first = 1\napric", {"apricot("}, set()),
        ("whi", {"while"}, set()),
        ("import sy", {"sys"}, {"sys("}),
        ("import os.pa", {"os.path"}, set()),
        ("from os import pat", {"path"}, set()),
        ("import mo", {"module_of_mine"}, set()),
        ("nowhere.x", set(), {"nowhere.x"}),
        ("'apri", set(), {"apricot("}),
        ("# apri", set(), {"apricot("}),
    ],
)
def test_completions(kernel: HostProcess, code: str, present: set[str], absent: set[str]) -> None:
    (kernel.work / "module_of_mine.py").touch()
    kernel.run(
        "import os\ndef apricot(): pass\nclass Tree:\n"
        "    def tidy(self): pass\n"
        "    @property\n"
        "    def surprise(self): raise SystemExit\n"
        "aprium = Tree(); aprium.upside = 1; aprium.nested = Tree(); aprium.nested.upside = 2"
    )
    matches = kernel.complete(code)
    assert present <= set(matches)
    assert not absent & set(matches)
    assert len(matches) == len(set(matches)) <= 200


def test_completion_looks_at_what_is_before_the_cursor(kernel: HostProcess) -> None:
    assert "print(" in kernel.complete("prin + 5", 4)
    assert kernel.complete("prin", 10**9) == kernel.complete("prin")
    assert isinstance(kernel.complete("", 0), list)
    assert isinstance(kernel.complete("prin", -3), list)


HOSTILE = {
    "raises": "class Bad:\n    def __dir__(self): raise SystemExit\n",
    "lies": "class Bad:\n    def __dir__(self): return [1, None, 'fine']\n",
    "shadows": "class Bad:\n    def __getattribute__(self, name): raise KeyError(name)\n"
    "    def __dir__(self): return ['fine']\n",
    "is endless": "class Bad:\n    def __dir__(self): return ['n%d' % n for n in range(10**5)]\n",
    "exits": "class Bad:\n    def __getattr__(self, name): raise KeyboardInterrupt\n",
    "prints": "class Bad:\n    def __dir__(self): print('noise'); return []\n",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_objects_cannot_break_completion(kernel: HostProcess, kind: str) -> None:
    kernel.run(HOSTILE[kind] + "bad = Bad()")
    assert len(kernel.complete("bad.")) <= 200
    kernel.printed(0)
    kernel.works()


def test_completion_can_be_interrupted(kernel: HostProcess) -> None:
    kernel.run(
        "import time\n"  # not later: an interrupt within the import machinery can be swallowed
        "class Slow:\n    def __dir__(self):\n        open('busy', 'w').close()\n"
        "        while 1: time.sleep(9)\nslow = Slow()"
    )
    kernel.send(complete=77, code="slow.", cursor=5)
    busy = kernel.work / "busy"
    while not busy.exists():
        in_state(kernel.process.pid, "SR")
    busy.unlink()
    kernel.interrupt()
    assert kernel.await_("completions") == {"completions": 77, "matches": []}
    kernel.works()


@pytest.mark.parametrize("python", pythons())
def test_configuration(python: str, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text("value = 6")
    with host([python, HOST], {"GONE": "1", "TZ": "UTC"}) as kernel:
        env = {"A": "\xe9", "PATH": "/bin:/usr/bin", "TZ": "XYZ-3", "PYTHONPATH": str(tmp_path)}
        kernel.send(configure={"env": env, "limits": {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": 99}})
        out = kernel.run(
            "import os, time, resource, theirs\n"
            "print(sorted(os.environ)); time.tzname[0], resource.getrlimit(resource.RLIMIT_NOFILE)"
        ).out
        names, rest = out.splitlines()
        assert set(eval(names)) - {"LC_CTYPE"} == set(env)
        assert rest == repr(("XYZ", (99, 99)))
        assert kernel.run("_ = os.system('echo $A-$GONE')").out == "\xe9-\n"
        kernel.send(configure={"env": {}, "limits": {}})
        assert kernel.run("os.environ['TZ']").out == "'XYZ-3'\n"


@pytest.mark.parametrize("python", pythons())
def test_a_forked_host(python: str) -> None:
    with host([python, "-c", FORKING, os.path.dirname(HOST)]) as kernel:
        kernel.works()
        code = (
            "import sys, signal\n"
            "[__name__, sys.argv, sys.path[0], any('inside' in p for p in sys.path), 'host' in sys.modules]"
        )
        assert kernel.run(code).out == "['__main__', [''], '', False, False]\n"
        assert kernel.run("signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL").out == "True\n"
        assert kernel.run("import builtins; real = len; del builtins.len; 1").out == "1\n"
        kernel.run("builtins.len = real")
        result = kernel.run("def f():\n    return 1 / 0\nf()")
        assert "inside" not in result.err
        assert "    return 1 / 0\n" in result.err
        kernel.start("input()")
        kernel.answer("a")
        assert kernel.end().out == "'a'\n"
        assert kernel.run("import os; os.close(1); os.close(2)").exit_code == 0
        assert "print(" in kernel.complete("pri")
        (kernel.work / "host.py").write_text("mine = 1")
        (kernel.work / "streams.py").write_text("mine = 2")
        assert kernel.run("import host, streams; host.mine + streams.mine").out == "3\n"
        pid = int(kernel.run("os.getpid()").out)
        kernel.start("while True: pass")
        os.kill(pid, 2)
        assert kernel.end().interrupted
        kernel.works()
        kernel.socket.close()
        assert kernel.process.wait(PATIENCE) == 0


def test_the_host_takes_its_modules_with_it(tmp_path: Path) -> None:
    """What is loaded late is what was there at the start."""
    copy = tmp_path / "inside"
    copy.mkdir()
    for file in Path(HOST).parent.glob("*.py"):
        (copy / file.name).write_bytes(file.read_bytes())
    with host([sys.executable, str(copy / "host.py")]) as kernel:
        for file in copy.iterdir():
            file.unlink()
        assert "print(" in kernel.complete("pri")
        kernel.run("class Rich:\n    def _repr_html_(self): return '<b>'\nRich()")
        assert kernel.displayed() == [("html", "<b>")]
