"""User code that means harm, through the whole program: it gets nowhere, and the next run is unharmed."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from .harness import Installation, Up, processes_of, temporary_dir, wait_until
from .http import Http
from .runs import Runs

pytestmark = pytest.mark.system


@pytest.fixture(
    scope="module",
    params=["as root", pytest.param("as an ordinary user", marks=pytest.mark.deployment)],
)
def up(request: pytest.FixtureRequest) -> Iterator[Up]:
    if request.param == "as an ordinary user":
        installation, folder = request.getfixturevalue("ordinary")
        with Up(installation, folder / "hostile") as up:
            yield up
    elif os.geteuid() != 0:
        pytest.skip("only root can act as root")
    else:
        with temporary_dir() as folder, Up(Installation(), folder / "data") as up:
            yield up


@pytest.fixture(scope="module")
def http(up: Up) -> Iterator[Http]:
    with closing(Http(up.said)) as http:
        yield http


@pytest.fixture(scope="module")
def session(http: Http) -> Iterator[Runs]:
    with Runs.in_new_session(http, "hostile", mem="192m") as runs:
        runs.run("secret = 42")
        yield runs


@pytest.fixture(scope="module")
def victim(http: Http) -> Iterator[Runs]:
    """Another session of the same user."""
    with Runs.in_new_session(http, "victim", mem="192m", environ={"PASSWORD": "swordfish"}) as runs:
        runs.run("open('private', 'w').write('mine')")
        yield runs


@pytest.fixture(autouse=True)
def unharmed(session: Runs) -> Iterator[None]:
    """After each attack the session works as before."""
    yield
    assert session.run("print(secret, [i for i in range(3)], len('abc'))") == ("42 [0, 1, 2] 3\n", 0)


LIST = """
import os
def look(path):
    try:
        if os.path.isdir(path):
            return sorted(os.listdir(path))
        return open(path, 'rb').read(100)
    except OSError as error:
        return type(error).__name__
"""


def test_the_host_cannot_be_read(session: Runs, victim: Runs, up: Up) -> None:
    data = up.data_dir
    paths = [data, data / "kernels", data / "credentials.json", data / "up.json", data / "etc" / "agent.toml"]
    paths += [data / "pg", data / "postgres", data / "run", data / "kernels" / victim.session_id / "work"]
    paths += [data / "kernels" / session.session_id / name for name in ("runs", "spec.json", "shim.json")]
    paths += [Path.home(), Path("/root"), Path("/home"), Path("/etc/shadow"), Path("/var"), Path("/run")]
    out, _ = session.run(LIST + f"for path in {[str(path) for path in paths]}: print(look(path))")
    assert set(out.split("\n")) <= {
        "",
        "FileNotFoundError",
        "PermissionError",
        "[]",
        "['work']",
        "['inside']",
    }


def test_other_processes_cannot_be_seen_or_touched(session: Runs, victim: Runs, up: Up) -> None:
    outside = list(processes_of(up.data_dir))
    assert outside
    code = (
        LIST
        + f"outside = {outside}\n"
        + "pids = [int(name) for name in os.listdir('/proc') if name.isdigit()]\n"
        "seen = [look(f'/proc/{pid}/environ') for pid in pids]\n"
        "print(len(pids) < 10, any(b'swordfish' in text for text in seen if isinstance(text, bytes)))\n"
        "def kill(pid):\n"
        "    try: os.kill(pid, 9); return 'killed'\n"
        "    except OSError as error: return type(error).__name__\n"
        "print({kill(pid) for pid in outside if pid > 1000})\n"
        "print(kill(1), look('/proc/1/environ'), look('/proc/1/fd'))\n"
    )
    out, _ = session.run(code)
    lines = out.splitlines()
    assert lines[0] == "True False"
    assert lines[1] in ("{'ProcessLookupError'}", "set()")
    assert lines[2] == "killed PermissionError PermissionError"  # which process 1 does not notice
    assert victim.run("print(open('private').read())") == ("mine\n", 0)


CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    return os.strerror(ctypes.get_errno()) if libc.syscall(*arguments) == -1 else 'done'
"""


def test_the_operating_system_refuses_what_could_lead_out(session: Runs) -> None:
    # ptrace(ATTACH, 1), mount, unshare(NEWUSER), setns, keyctl, bpf
    calls = [
        (101, 16, 1, 0, 0),
        (165, 0, 0, 0, 0, 0),
        (272, 0x10000000),
        (308, 0, 0),
        (250, 0, 0),
        (321, 0, 0),
    ]
    if os.uname().machine != "x86_64":
        calls = [
            (117, 16, 1, 0, 0),
            (40, 0, 0, 0, 0, 0),
            (97, 0x10000000),
            (268, 0, 0),
            (219, 0, 0),
            (280, 0, 0),
        ]
    out, _ = session.run(CALL + f"for arguments in {calls}: print(call(*arguments))")
    assert set(out.splitlines()) == {"Operation not permitted"}
    out, _ = session.run(
        "print(*[line for line in open('/proc/self/status') if line.startswith(('CapEff', 'NoNew'))])"
    )
    assert out.split() == ["CapEff:", "0000000000000000", "NoNewPrivs:", "1"]


def test_there_is_no_network(session: Runs, up: Up) -> None:
    port = int(up.said["endpoint"].rpartition(":")[2])
    code = (
        "import socket\n"
        f"for address in ('127.0.0.1', {port}), ('127.0.0.1', 6001), ('192.0.2.1', 80):\n"
        "    try: socket.create_connection(address, timeout=5); print('connected')\n"
        "    except OSError as error: print(type(error).__name__)\n"
    )
    out, _ = session.run(code)
    assert "connected" not in out
    assert len(out.split()) == 3


def test_a_fork_bomb_is_bounded(session: Runs, victim: Runs) -> None:
    code = (
        "import os, signal, time\n"
        "children = []\n"
        "try:\n"
        "    while len(children) < 5000:\n"
        "        pid = os.fork()\n"
        "        if pid == 0: time.sleep(1000); os._exit(0)\n"
        "        children.append(pid)\n"
        "except OSError as error: print(type(error).__name__)\n"
        "for pid in children: os.kill(pid, signal.SIGKILL)\n"
        "for pid in children: os.waitpid(pid, 0)\n"
        "print(len(children))\n"
        "print(50 < len(children) < 1000)\n"
    )
    with Runs.in_new_session(session.http, "bomb", mem="1g") as bomb:
        out, _ = bomb.run(code)
        assert out.splitlines()[-1] == "True", out
        assert "Error" in out
        assert bomb.run("print(3)") == ("3\n", 0)
    assert victim.run("print(1)") == ("1\n", 0)


def test_files_in_memory_are_bounded(session: Runs) -> None:
    code = (
        "import os\n"
        "try:\n"
        "    with open('/tmp/big', 'wb') as file:\n"
        "        for _ in range(4096): file.write(bytes(1 << 20))\n"
        "except OSError as error: print(error.strerror)\n"
        "os.unlink('/tmp/big')\n"
    )
    with Runs.in_new_session(session.http, "filler", mem="160m") as filler:
        out, exit_code = filler.run(code)
        # A full disk or, where it counts as the kernel's memory, an end of the kernel that says so.
        if exit_code is None:
            wait_until(lambda: "memory" in filler.why(), 20, "the reason is told")
        else:
            assert out == "No space left on device\n"


def test_who_eats_memory_is_ended_and_told_so(session: Runs, up: Up) -> None:
    with Runs.in_new_session(session.http, "eater", mem="160m") as eater:
        _, exit_code = eater.run("data = []\nwhile True: data.append(bytearray(1 << 20))")
        if exit_code == 1:  # a limit of each process
            assert "limits" in eater.missing()
            assert eater.run("del data; print(1)") == ("1\n", 0)
        else:
            assert exit_code is None
            wait_until(lambda: "memory" in eater.why(), 20, "the reason is told")
            assert eater.last["reason"] == "out-of-memory"


VANDALISM = [
    "import sys; sys.stdout = None; sys.stderr = 5; sys.stdin = 'x'",
    "import sys; sys.stdout.close(); sys.stderr.close(); sys.__stdout__.close()",
    "import builtins; [delattr(builtins, name) for name in list(vars(builtins)) if name not in ('list',)]",
    "import builtins; builtins.len = builtins.print = builtins.__import__ = None",
    "import sys; sys.modules.clear()",
    "import os; [os.close(fd) for fd in (0, 1, 2)]",
    "import sys; sys.settrace(lambda *a: 1 / 0); sys.setrecursionlimit(60)",
    "import signal; [signal.signal(n, signal.SIG_IGN) for n in (2, 15, 1)]",
    "import sys; sys.displayhook = sys.excepthook = sys.exit; sys.path.clear(); sys.meta_path.clear()",
    "import os; os.environ.clear(); os.chdir('/')",
]


@pytest.mark.parametrize("code", VANDALISM)
def test_the_interpreter_survives_its_user(http: Http, code: str) -> None:
    with Runs.in_new_session(http, "vandal") as vandal:
        vandal.run("value = 7")
        vandal.run(code)
        assert vandal.run("import sys; sys.stdout.write(f'{value}\\n'); None") == ("7\n", 0)


def test_what_is_written_to_the_control_socket_harms_nobody_else(session: Runs, victim: Runs) -> None:
    forge = (
        "import os, stat\n"
        "fds = [int(n) for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')]\n"
        "for fd in fds:\n"
        "    if stat.S_ISSOCK(os.fstat(fd).st_mode):\n"
        "        for body in b'{}', b'{\"ready\":true}', b'{\"began\":99}', b'{\"done\":[]}':\n"
        "            os.write(fd, len(body).to_bytes(4, 'big') + body)\n"
        "print('ok')\n"
    )
    assert session.run(forge) == ("ok\n", 0)
    assert victim.run("print(2)") == ("2\n", 0)
