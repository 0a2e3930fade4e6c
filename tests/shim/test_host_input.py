"""Input of runs: questions on the control socket and their answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.shim.client import HOST, until
from tests.shim.host_driver import HostProcess, host, in_state, pythons


@pytest.fixture(scope="module", params=pythons())
def kernel(request: pytest.FixtureRequest) -> Iterator[HostProcess]:
    with host([request.param, HOST]) as kernel:
        yield kernel


def test_input(kernel: HostProcess) -> None:
    kernel.start("print('before', end=' ')\nname = input('name? ')\nname")
    number = kernel.prompt()
    assert kernel.printed(0) == "before name? "
    kernel.send(input=number, text="J\xfcrgen \U0001f600")
    assert kernel.end() == (0, "'J\xfcrgen \U0001f600'\n", "", False)


def test_end_of_file(kernel: HostProcess) -> None:
    kernel.start("input()")
    kernel.answer(None)
    result = kernel.end()
    assert result.exit_code == 1
    assert result.err.endswith("EOFError: EOF when reading a line\n")
    assert kernel.shows_our_frames or "inside" not in result.err
    kernel.works()


def test_passwords(kernel: HostProcess) -> None:
    kernel.start("import getpass\n[getpass.getpass(), getpass.getpass('again: ', stream=None)]")
    kernel.answer("one", is_password=True)
    kernel.answer("two", is_password=True)
    assert kernel.end() == (0, "Password: again: ['one', 'two']\n", "", False)
    kernel.start("getpass.getpass()")
    kernel.answer(None, is_password=True)
    assert "EOFError" in kernel.end().err


def test_getpass_is_otherwise_itself(kernel: HostProcess) -> None:
    code = (
        "import getpass, inspect\n"
        "[getpass.__file__[-10:], callable(getpass.getuser), type(getpass.__loader__).__name__]"
    )
    assert kernel.run(code).out == "['getpass.py', True, 'SourceFileLoader']\n"


@pytest.mark.parametrize(
    ("code", "answers", "expected"),
    [
        ("sys.stdin.readline()", ["a"], "'a\\n'"),
        ("sys.stdin.readline()", ["a\n"], "'a\\n'"),
        ("sys.stdin.readline()", [""], "'\\n'"),
        ("sys.stdin.readline()", [None], "''"),
        ("sys.stdin.readline(2), sys.stdin.readline()", ["abc"], "('ab', 'c\\n')"),
        ("sys.stdin.read()", ["a", "b", None], "'a\\nb\\n'"),
        ("sys.stdin.read(3), sys.stdin.read(1)", ["ab", "cd"], "('ab\\n', 'c')"),
        ("sys.stdin.readline()", [], "'d\\n'"),
        ("list(sys.stdin)", ["a", "b", None], "['a\\n', 'b\\n']"),
        ("sys.stdin.readlines()", ["a", None], "['a\\n']"),
        ("[input(), input(), sys.stdin.readline()]", ["a\nb\nc"], "['a', 'b', 'c\\n']"),
        ("sys.stdin.buffer.readline()", ["\xe9"], "b'\\xc3\\xa9\\n'"),
        ("sys.stdin.buffer.read()", ["a", None], "b'a\\n'"),
        ("[sys.stdin.fileno(), sys.stdin.isatty(), sys.stdin.encoding]", [], "[0, False, 'utf-8']"),
        ("import io; sys.stdin = io.StringIO('theirs'); input()", [], "'theirs'"),
        ("import subprocess; subprocess.check_output(['cat'])", [], "b''"),
    ],
)
def test_standard_input(kernel: HostProcess, code: str, answers: list[str | None], expected: str) -> None:
    kernel.start(f"import sys; {code}")
    for answer in answers:
        kernel.answer(answer)
    assert kernel.end() == (0, expected + "\n", "", False)


def test_answers_to_other_prompts_are_ignored(kernel: HostProcess) -> None:
    kernel.send(input=10**6, text="between runs")
    kernel.start("input()")
    number = kernel.prompt()
    kernel.send(input=number - 1, text="late")
    kernel.send(input=number + 1, text="early")
    kernel.send(input=number, text="right")
    assert kernel.end().out == "'right'\n"


@pytest.mark.parametrize(
    "code", ["input()", "import sys; sys.stdin.read()", "import getpass; getpass.getpass('')"]
)
def test_an_interrupt_leaves_the_question(kernel: HostProcess, code: str) -> None:
    kernel.start(code)
    number = kernel.prompt("getpass" in code)
    in_state(kernel.process.pid, "S")
    kernel.interrupt()
    result = kernel.end()
    assert (result.exit_code, result.interrupted) == (130, True)
    assert result.err.endswith("KeyboardInterrupt\n")
    assert kernel.shows_our_frames or "inside" not in result.err
    kernel.send(input=number, text="nobody waits for it")
    kernel.start("input()")
    kernel.answer("next")
    assert kernel.end().out == "'next'\n"


def test_an_interrupt_can_be_caught(kernel: HostProcess) -> None:
    kernel.start("try:\n    input()\nexcept KeyboardInterrupt:\n    print(input())")
    kernel.prompt()
    kernel.interrupt()
    kernel.answer("again")
    assert kernel.end() == (0, "again\n", "", False)


def test_an_alarm_leaves_the_question(kernel: HostProcess) -> None:
    kernel.start(
        "import signal\ndef ring(*_): raise TimeoutError('too slow')\n"
        "old = signal.signal(signal.SIGALRM, ring)\n"
        "_ = signal.setitimer(signal.ITIMER_REAL, 0.05)\ninput()"
    )
    kernel.prompt()
    assert kernel.end().err.endswith("TimeoutError: too slow\n")
    kernel.works()


def test_threads_ask_one_after_the_other(kernel: HostProcess) -> None:
    kernel.start(
        "import threading\nheard = []\n"
        "threads = [threading.Thread(target=lambda: heard.append(input())) for _ in range(5)]\n"
        "for t in threads: t.start()\nfor t in threads: t.join()\nsorted(heard)"
    )
    for text in "abcde":
        kernel.answer(text)
    assert kernel.end().out == "['a', 'b', 'c', 'd', 'e']\n"


def test_a_thread_that_asks_when_its_run_ends_is_told_so(kernel: HostProcess) -> None:
    kernel.start(
        "import threading\nended = threading.Event()\n"
        "def ask():\n"
        "    try: input()\n"
        "    except EOFError: ended.set()\n"
        "threading.Thread(target=ask, daemon=True).start()\n"
        "input()"
    )
    number = kernel.prompt()
    kernel.interrupt()  # of the main thread, which usually waits for its turn
    assert kernel.end().interrupted
    kernel.send(input=number, text="late")
    assert kernel.run("ended.wait(20)").out == "True\n"
    kernel.start("input()")
    kernel.answer("mine")
    assert kernel.end().out == "'mine'\n"


def test_there_is_nobody_to_ask_between_runs(kernel: HostProcess) -> None:
    go, gone = kernel.work / "go", kernel.work / "gone"
    kernel.run(
        "import os, threading, time\n"
        "def ask():\n"
        f"    while not os.path.exists({str(go)!r}): time.sleep(0.005)\n"
        "    try: input()\n"
        f"    except EOFError: open({str(gone)!r}, 'w').close()\n"
        "threading.Thread(target=ask).start()"
    )
    go.touch()
    until(gone.exists)
    go.unlink()
    gone.unlink()
    kernel.works()


def test_children_have_no_input(kernel: HostProcess) -> None:
    result = kernel.run(
        "import os, sys\n"
        "def child():\n"
        "    try: input('?')\n"
        "    except EOFError: return sys.stdin.readline() == ''\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(7 if child() else 1)\n"
        "print(os.waitpid(pid, 0)[1] >> 8)\n"
        "import multiprocessing\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool: print(pool.apply(child))"
    )
    assert (result.exit_code, result.err) == (0, "")
    assert result.out.replace("?", "") == "7\nTrue\n"
    assert not any("prompt" in message for message in kernel.messages)
    kernel.works()


def test_input_without_a_stdin(kernel: HostProcess) -> None:
    assert "RuntimeError: input(): lost sys.stdin" in kernel.run("import sys; sys.stdin = None; input()").err
    assert "closed file" in kernel.run("import sys; sys.stdin.close(); input()").err
    kernel.start("input()")
    kernel.answer("back")
    assert kernel.end().out == "'back'\n"
