"""The protocol of the shim's socket, and what becomes of processes and output, with real kernels."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest

from backendai_mgr.shim import runfile
from tests.shim.client import (
    PATIENCE,
    Client,
    Refused,
    Shim,
    processes_marked,
    read_all,
    start,
    until,
)

BUSY = "print('in', flush=True)\nwhile True: pass"
STUBBORN = """
import time
print('in', flush=True)
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        print('no', flush=True)
"""


def begin(client: Client, run_id: str, code: str, timeout: float | None = None) -> None:
    """Start a run whose code prints something at once; return when it has."""
    start(client, run_id, code, timeout)
    client.ask("watch", run_id=run_id, offset=0)
    client.note("more", run_id=run_id)


def refusal(client: Client, op: str, **arguments: Any) -> str:
    with pytest.raises(Refused) as refused:
        client.ask(op, **arguments)
    return refused.value.code


# -- hello, start, status, list


def test_hello_tells_who_and_how(shim: Shim, client: Client) -> None:
    hello = client.ask("hello")
    assert shim.process is not None
    told = json.loads((shim.scratch / "shim.json").read_text())
    with open(f"/proc/{shim.process.pid}/stat") as file:
        start_time = int(file.read().rpartition(")")[2].split()[19])
    assert told == {"pid": shim.process.pid, "start_time": start_time, "socket": shim.socket}
    assert hello.pop("started_at") <= hello.pop("last_active")
    assert hello == {
        "kernel_id": shim.spec["kernel_id"],
        "incarnation": 1,
        "pid": shim.process.pid,
        "state": "running",
        "exit": None,
        "unassigned": False,
    }


def test_start_is_idempotent_and_the_run_starts_once(shim: Shim, client: Client) -> None:
    code = "open('witness', 'a').write('x')"
    first = start(client, "a", code)
    assert (first["created"], first["run"]["state"]) == (True, "running")
    client.ended("a")
    again = start(client, "a", code)
    assert again["created"] is False
    assert again["run"] == client.ask("status", run_id="a")["run"]
    assert again["run"]["state"] == "finished"
    with pytest.raises(Refused, match="conflict"):
        start(client, "a", "something else")
    assert (shim.work / "witness").read_text() == "x"


def test_refusals(shim: Shim, client: Client) -> None:
    spec = {"mode": "query", "code": "1", "timeout": None}
    good = {"run_id": "x", "incarnation": 1, "digest": "d", "spec": spec}
    assert refusal(client, "start", **{**good, "incarnation": 2}) == "bad-incarnation"
    assert refusal(client, "start", **{**good, "run_id": "../x"}) == "bad-request"
    assert refusal(client, "start", **{**good, "spec": 5}) == "bad-request"
    assert refusal(client, "start") == "bad-request"
    assert refusal(client, "status", run_id="absent") == "not-found"
    assert refusal(client, "status") == "bad-request"
    assert refusal(client, "interrupt", run_id="absent") == "not-found"
    assert refusal(client, "watch", run_id="absent", offset=0) == "not-found"
    assert refusal(client, "watch", run_id="absent", offset=-1) == "not-found"
    assert refusal(client, "cursor", run_id="absent") == "not-found"
    assert refusal(client, "forget") == "bad-request"
    assert refusal(client, "end", reason=5) == "bad-request"
    assert refusal(client, "nonsense") == "bad-request"
    assert refusal(client, ["list"]) == "bad-request"  # type: ignore[arg-type]
    assert client.ask("list") == {"runs": []}
    assert {path.name for path in (shim.scratch / "runs").iterdir()} <= {"next"}


def test_the_run_folder_tells_the_same(shim: Shim, client: Client) -> None:
    status = shim.run("print('hi')", "a", timeout=60.0)
    folder = shim.folder("a")
    claim, ended = runfile.read(folder)
    assert ended == status
    assert claim == {
        "run_id": "a",
        "incarnation": 1,
        "digest": status["digest"],
        "mode": "query",
        "timeout": 60.0,
        "queued_at": status["queued_at"],
    }
    assert status["end_offset"] == 3
    assert status["queued_at"] <= status["started_at"] <= status["ended_at"]
    assert client.ask("list")["runs"] == [status]


def test_runs_queue_in_order_and_at_most_64_wait(shim: Shim, client: Client) -> None:
    begin(client, "busy", BUSY)
    for number in range(64):
        assert start(client, f"q{number}", f"order = globals().get('order', []) + [{number}]")["created"]
    assert client.ask("status", run_id="q63")["run"]["state"] == "queued"
    with pytest.raises(Refused, match="queue-full"):
        start(client, "q64", "")
    assert start(client, "q5", "order = globals().get('order', []) + [5]")["created"] is False
    assert [run["run_id"] for run in client.ask("list")["runs"]] == ["busy", *(f"q{n}" for n in range(64))]
    cancelled = client.ask("interrupt", run_id="q7")["run"]
    assert (cancelled["state"], cancelled["exit_code"], cancelled["started_at"]) == ("cancelled", 130, None)
    client.ask("interrupt", run_id=None)
    assert client.ended("busy")["state"] == "cancelled"
    client.ended("q63")
    shim.run("print(order)", "order")
    assert json.loads(shim.output("order")) == [n for n in range(64) if n != 7]


# -- interrupt and limit


@pytest.mark.parametrize(
    "code",
    [
        BUSY,
        "print('in', flush=True)\nimport time; time.sleep(60)",
        "print('in', flush=True)\nimport subprocess; subprocess.run(['sleep', '60'])",
        "print('in', flush=True)\nimport asyncio; await asyncio.sleep(60)",
        "print('in', flush=True)\nimport threading; threading.Event().wait()",
    ],
    ids=["loop", "sleep", "subprocess", "await", "lock"],
)
def test_interrupt_ends_the_run_and_not_the_kernel(shim: Shim, client: Client, code: str) -> None:
    shim.run("import time")
    begin(client, "a", code)
    assert client.ask("interrupt", run_id="a")["run"]["state"] == "running"
    status = client.ended("a")
    assert (status["state"], status["exit_code"]) == ("cancelled", 130)
    assert shim.output("a", "stderr").endswith("KeyboardInterrupt\n") or "CancelledError" in shim.output("a")
    assert "shim" not in shim.output("a")
    assert client.ask("interrupt", run_id="a")["run"] == status
    assert shim.run("6*7", "b")["exit_code"] == 0


def test_interrupt_reaches_the_children_in_the_foreground(shim: Shim, client: Client) -> None:
    begin(client, "a", "import os; os.system('echo in; exec sleep 60')")
    client.ask("interrupt", run_id="a")
    assert client.ended("a")["state"] == "finished"  # as in a terminal: system() itself ignores it
    assert shim.output("a") == "in\n2\n"


def test_an_interrupt_right_after_the_start_is_not_lost(shim: Shim, client: Client) -> None:
    for number in range(30):
        start(client, f"r{number}", "while True: pass")
        client.ask("interrupt", run_id=f"r{number}")
        status = client.ended(f"r{number}")
        assert (status["state"], status["exit_code"]) == ("cancelled", 130)


def test_interrupts_at_any_moment_leave_the_kernel_usable(shim: Shim, client: Client) -> None:
    for number in range(100):
        start(client, f"r{number}", "x = [i for i in range(2000)]")
        for _ in range(number % 4):
            client.ask("interrupt", run_id=None)
        status = client.ended(f"r{number}")
        assert (status["state"], status["exit_code"]) in {("finished", 0), ("cancelled", 130)}
    assert shim.run("6*7", "last")["exit_code"] == 0
    assert shim.output("last") == "42\n"


def test_a_program_may_swallow_the_interrupt(shim: Shim, client: Client) -> None:
    code = (
        "try:\n  print('in', flush=True)\n  while 1: pass\nexcept KeyboardInterrupt: print('caught'); exit(5)"
    )
    begin(client, "a", code)
    client.ask("interrupt", run_id="a")
    status = client.ended("a")
    assert (status["state"], status["exit_code"]) == ("finished", 5)
    assert shim.output("a") == "in\ncaught\n"


def test_the_limit_interrupts_and_the_session_lives(shim: Shim, client: Client) -> None:
    status = shim.run(BUSY, "a", timeout=0.1)
    assert (status["state"], status["exit_code"]) == ("timeout", 130)
    assert status["ended_at"] - status["started_at"] >= 0.1
    assert shim.run("6*7", "b", timeout=60)["state"] == "finished"


def test_a_program_that_ignores_its_limit_loses_its_kernel(make_shim: Callable[..., Shim]) -> None:
    shim = make_shim(limits={"exec_grace": 0.2})
    client = shim.running()
    start(client, "a", STUBBORN, timeout=0.2)
    start(client, "b", "1")
    status = client.ended("a")
    assert (status["state"], status["exit_code"], status["reason"]) == ("timeout", None, "exec-timeout")
    assert shim.output("a") == "in\nno\n"
    lost = client.ended("b")
    assert (lost["state"], lost["exit_code"], lost["reason"]) == ("lost", None, "exec-timeout")
    end = client.note("kernel", state="ended")
    assert end["exit"] == {"reason": "exec-timeout", "exit_code": -9}
    assert processes_marked(shim.spec["kernel_id"]) == []


# -- output


def test_each_stream_keeps_its_order(shim: Shim) -> None:
    shim.run(
        "import sys\nfor i in range(20000):\n    print(i)\n    print(-i, file=sys.stderr)\n",
        "a",
    )
    assert shim.output("a", "stdout") == "".join(f"{i}\n" for i in range(20000))
    assert shim.output("a", "stderr") == "".join(f"{-i}\n" for i in range(20000))


def test_five_megabytes_arrive_exactly(shim: Shim) -> None:
    code = (
        "import random, sys\n"
        "generator = random.Random(7)\n"
        "for _ in range(80): sys.stdout.buffer.write(generator.randbytes(65536)); sys.stdout.flush()\n"
    )
    status = shim.run(code, "a")
    generator = random.Random(7)
    expected = hashlib.sha256(b"".join(generator.randbytes(65536) for _ in range(80)))
    got = hashlib.sha256(b"".join(record.data for record in read_all(shim.folder("a"))))
    assert status["end_offset"] == 80 * 65536
    assert got.hexdigest() == expected.hexdigest()


def test_output_belongs_to_the_run_that_printed_it(shim: Shim, client: Client) -> None:
    for number in range(50):
        start(client, f"r{number}", f"import os; os.write(1, b'{number};' * 5000); print('end')")
    client.ended("r49")
    for number in range(50):
        assert shim.output(f"r{number}") == f"{number};" * 5000 + "end\n"


def test_output_between_runs_goes_to_the_kernel_s_log(shim: Shim, client: Client) -> None:
    shim.run(
        "import os, threading\n"
        "go = threading.Event()\n"
        "def late():\n"
        "    go.wait(); os.write(1, b'between'); open('wrote', 'w').close()\n"
        "threading.Thread(target=late, daemon=True).start()",
        "a",
    )
    shim.run("threading.Timer(0.05, go.set).start()", "b")
    until((shim.work / "wrote").exists)
    shim.run("print('c')", "c")
    assert [shim.output(run_id) for run_id in "abc"] == ["", "", "c\n"]
    assert (shim.scratch / "kernel.log").read_text() == "between"


def test_output_before_a_run_is_not_that_run_s_even_if_read_after_its_start(
    shim: Shim, client: Client
) -> None:
    shim.run(
        "import os, threading, time\n"
        "def late():\n"
        "    while not os.path.exists('go'): time.sleep(0.002)\n"
        "    os.write(1, b'before'); open('wrote', 'w').close()\n"
        "threading.Thread(target=late, daemon=True).start()",
        "a",
    )
    assert shim.process is not None
    shim.process.send_signal(signal.SIGSTOP)
    try:
        spec = {"mode": "query", "code": "print('b')", "timeout": None}
        client.post("start", run_id="b", incarnation=1, digest="d", spec=spec)
        (shim.work / "go").touch()
        until((shim.work / "wrote").exists)
    finally:
        shim.process.send_signal(signal.SIGCONT)
    client.note("run", run_id="b", state="finished")
    assert shim.output("b") == "b\n"
    assert (shim.scratch / "kernel.log").read_text() == "before"


def test_the_log_of_a_run_is_bounded_with_head_and_tail(make_shim: Callable[..., Shim]) -> None:
    shim = make_shim(limits={"run_log_bytes": 20 << 20})
    shim.running()
    status = shim.run("import os\nfor i in range(1000): os.write(1, b'%08d' % i * 8192)", "a")
    assert status["end_offset"] == 1000 * 65536
    records = read_all(shim.folder("a"))
    gaps = [record for record in records if record.gap]
    assert len(gaps) == 1
    assert sum(len(record.data) for record in records) + gaps[0].gap == status["end_offset"]
    assert records[0].data.startswith(b"00000000")
    assert records[-1].data.endswith(b"00000999")
    assert sum(path.stat().st_size for path in shim.folder("a").iterdir()) < 29 << 20


# -- deleting


def test_a_deleted_run_leaves_nothing_but_its_used_id(make_shim: Callable[..., Shim]) -> None:
    shim = make_shim()
    client = shim.running()
    status = shim.run("print('gone')", "a")
    begin(client, "b", "print('stays', flush=True)\nimport time\nwhile True: time.sleep(0.01)")
    assert refusal(client, "delete", run_id="b") == "not-ended"
    assert client.ask("delete", run_id="a") == {}
    for _ in range(2):
        for op in "status", "delete", "interrupt", "watch":
            assert refusal(client, op, run_id="a", offset=0) == "not-found"
        assert refusal(
            client,
            "start",
            run_id="a",
            incarnation=1,
            digest=status["digest"],
            spec={"mode": "query", "code": "1"},
        ) == ("conflict")
        assert [run["run_id"] for run in client.ask("list")["runs"]] == ["b"]
        assert [path.name for path in shim.folder("a").iterdir()] == [runfile.NAME]
        shim.stop()  # the next one finds it on disk
        client = shim.running()


# -- watching


def test_watch_tells_once_and_must_be_armed_again(shim: Shim, client: Client) -> None:
    begin(client, "a", "print('one', flush=True)\nimport time\nwhile True: time.sleep(0.01)")
    armed = client.ask("watch", run_id="a", offset=0)  # already so
    assert armed == {"end": 4, "state": "running"}
    assert client.note("more", run_id="a") == {"note": "more", "run_id": "a", "end": 4, "state": "running"}
    client.ask("watch", run_id="a", offset=4)
    client.ask("watch", run_id="a", offset=1_000_000)  # replaces the other
    client.ask("interrupt", run_id="a")
    status = client.ended("a")
    more = client.note("more", run_id="a")
    assert (more["state"], more["end"]) == ("cancelled", status["end_offset"])
    client.ask("hello")
    assert [note for note in client.notes if note["note"] == "more"] == []
    client.ask("watch", run_id="a", offset=1_000_000)
    assert client.note("more", run_id="a")["state"] == "cancelled"


def test_two_clients_see_the_same(shim: Shim, client: Client) -> None:
    other = shim.connect()
    assert other is not None
    with Client(shim.socket) as silent:  # it has not said hello
        start(client, "a", "print('x')")
        for each in client, other:
            each.ask("watch", run_id="a", offset=0)
            assert each.note("run", state="finished")["run"]["run_id"] == "a"
            assert each.note("more", run_id="a")["end"] == 2
        silent.ask("list")
        assert silent.notes == []


def test_the_legacy_cursor(shim: Shim, client: Client) -> None:
    shim.run("1", "a")
    assert client.ask("cursor", run_id="a", expected=None, advance=None) == {"cursor": 0}
    assert client.ask("cursor", run_id="a", expected=0, advance=2) == {"cursor": 2}
    assert refusal(client, "cursor", run_id="a", expected=0, advance=5) == "moved"
    assert client.ask("cursor", run_id="a") == {"cursor": 2}
    assert refusal(client, "cursor", run_id="a", expected=2, advance="x") == "bad-request"


# -- bad clients


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        b"\0\0\0\5hello",
        b"\0\0\0\2[]",
        b"\0\0\0\2{}",
        b'\0\0\0\x0a{"id":"x"}',
        (100_000).to_bytes(4, "big") + b"[" * 100_000,
    ],
)
def test_garbage_ends_that_connection_only(shim: Shim, client: Client, garbage: bytes) -> None:
    with Client(shim.socket) as bad:
        bad.socket.sendall(garbage)
        with pytest.raises((EOFError, ConnectionResetError)):
            bad.receive()
    assert shim.run("1")["state"] == "finished"


def test_a_client_that_does_not_read_is_dropped_and_hurts_nobody(shim: Shim, client: Client) -> None:
    with Client(shim.socket) as deaf:
        deaf.ask("hello")
        deaf.socket.settimeout(PATIENCE)
        body = json.dumps({"id": 1, "op": "list"}).encode()
        request = len(body).to_bytes(4, "big") + body
        for number in range(20):
            shim.run("1", f"r{number}")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:  # until the shim hangs up
                deaf.socket.sendall(request * 50)
    assert shim.run("6*7", "after")["state"] == "finished"


def test_unfinished_messages_and_vanishing_clients(shim: Shim) -> None:
    for _ in range(100):
        with socket.socket(socket.AF_UNIX) as hasty:
            hasty.connect(shim.socket)
            hasty.sendall(b"\0\0\1\0{")
    assert shim.run("1")["state"] == "finished"


# -- the end


LEAVE_CHILDREN = """
import os, subprocess, sys
subprocess.Popen(['sleep', '1000'])
subprocess.Popen(['sleep', '1000'], start_new_session=True)
if os.fork() == 0:          # a daemon: own session, orphaned, new process group
    os.setsid()
    if os.fork() == 0:
        for fd in range(3, 20):
            try: os.close(fd)
            except OSError: pass
        os.execvp('sleep', ['sleep', '1000'])
    os._exit(0)
os.wait()
print('left', flush=True)
"""


def test_end_leaves_no_process_and_forget_no_socket(shim: Shim, client: Client) -> None:
    assert shim.run(LEAVE_CHILDREN, "children")["exit_code"] == 0
    assert len(processes_marked(shim.spec["kernel_id"])) == 5
    begin(client, "busy", BUSY)
    start(client, "waiting", "1")
    other = shim.connect()
    assert other is not None
    assert client.ask("end", reason="user-requested") == {}
    assert processes_marked(shim.spec["kernel_id"]) == []
    for run_id in "busy", "waiting":
        status = client.ask("status", run_id=run_id)["run"]
        assert (status["state"], status["exit_code"], status["reason"]) == ("lost", None, "user-requested")
        assert runfile.read(shim.folder(run_id))[1] == status
    assert shim.output("busy") == "in\n"
    assert other.note("kernel", state="ended")["exit"] == {"reason": "user-requested", "exit_code": -9}
    assert client.ask("hello")["state"] == "ended"
    assert client.ask("end", reason="again") == {}
    with pytest.raises(Refused, match="kernel-ended"):
        start(client, "late", "1")
    assert start(client, "waiting", "1")["created"] is False
    assert client.ask("forget") == {}
    assert shim.process is not None
    assert shim.process.wait(PATIENCE) == 0
    assert not os.path.exists(shim.socket)
    assert shim.folder("busy").exists()


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("import os, signal; print('bye', flush=True); os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import os; print('bye', flush=True); os._exit(7)", 7),
        ("import os; print('bye', flush=True); os.abort()", -6),
    ],
)
def test_an_interpreter_that_ends_itself_ends_its_kernel(
    shim: Shim, client: Client, code: str, exit_code: int
) -> None:
    shim.run("import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True); None")
    start(client, "gate", "import os, time\nwhile not os.path.exists('go'): time.sleep(0.005)")
    start(client, "a", code)
    start(client, "b", "1")
    (shim.work / "go").touch()
    note = client.note("kernel", state="ended")
    assert note["exit"] == {"reason": "self-terminated", "exit_code": exit_code}
    for run_id in "ab":
        status = client.ask("status", run_id=run_id)["run"]
        assert (status["state"], status["exit_code"], status["reason"]) == ("lost", None, "self-terminated")
    assert shim.output("a") == "bye\n"
    assert processes_marked(shim.spec["kernel_id"]) == []


FORGE = """
import json, os, socket, stat
fds = [int(name) for name in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{name}')]
fd = next(fd for fd in fds if stat.S_ISSOCK(os.fstat(fd).st_mode))
def say(body):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    os.write(fd, len(body).to_bytes(4, 'big') + body)
"""


def test_nonsense_from_user_code_is_ignored(shim: Shim) -> None:
    assert shim.run(FORGE)["exit_code"] == 0
    nonsense = (
        "for body in ({}, {'ready': True}, {'done': 'x'}, {'began': -1}, {'began': None}, {'done': [1]},\n"
        "             {'done': 10**30, 'exit_code': 1, 'interrupted': False}, {'run': 1, 'code': '1'}):\n"
        "    say(body)\n"
        "print('ok')"
    )
    assert shim.run(nonsense, "a")["exit_code"] == 0
    assert shim.output("a") == "ok\n"
    assert shim.run("6*7", "b")["exit_code"] == 0


def test_a_forged_end_harms_only_the_forger(shim: Shim, client: Client) -> None:
    shim.run(FORGE)
    forge = "import time\nsay({'done': 2, 'exit_code': 2**40, 'interrupted': False})\ntime.sleep(0.05)\n"
    assert shim.run(forge, "a")["exit_code"] == 1
    assert shim.run("6*7", "b")["state"] == "finished"
    assert client.ask("hello")["state"] == "running"


@pytest.mark.parametrize("body", [b"[]", b"nonsense", b"[" * 60_000])
def test_a_broken_control_socket_ends_the_kernel(shim: Shim, client: Client, body: bytes) -> None:
    shim.run(FORGE)
    start(client, "a", f"say({body[:1]!r} * {len(body)} if {len(body)} > 10 else {body!r})\nwhile True: pass")
    assert client.ended("a")["state"] == "lost"
    assert client.note("kernel", state="ended")["exit"]["reason"] == "control-lost"


def test_closing_the_control_socket_ends_the_kernel(shim: Shim, client: Client) -> None:
    shim.run(FORGE)
    start(client, "a", "os.close(fd)\nimport time; time.sleep(1000)")
    assert client.ended("a")["reason"] == "control-lost"


def test_a_command_that_cannot_be_executed(make_shim: Callable[..., Shim]) -> None:
    shim = make_shim(["/nonexistent/python", "host.py"])
    client = shim.start()
    assert client is not None
    hello = client.ask("hello")
    assert hello["state"] == "ended"
    assert hello["exit"]["exit_code"] is None
    assert hello["exit"]["reason"].startswith("spawn-failed: ")
    assert "No such file" in hello["exit"]["reason"]
    with pytest.raises(Refused, match="kernel-ended"):
        start(client, "a", "1")
    assert shim.stop() == 0


def test_an_interpreter_that_dies_at_once(make_shim: Callable[..., Shim]) -> None:
    shim = make_shim(["/bin/sh", "-c", "echo cannot start >&2; exit 3"])
    client = shim.start()
    assert client is not None
    if client.ask("hello")["state"] != "ended":
        client.note("kernel", state="ended")
    assert client.ask("hello")["exit"] == {"reason": "self-terminated", "exit_code": 3}
    assert (shim.scratch / "kernel.log").read_text() == "cannot start\n"


def test_the_leash_ends_kernel_and_shim(make_shim: Callable[..., Shim]) -> None:
    shim = make_shim(leash=0.3)
    client = shim.running()
    begin(client, "a", BUSY)
    client.socket.close()
    assert shim.process is not None
    assert shim.process.wait(PATIENCE) == 0
    assert not os.path.exists(shim.socket)
    assert processes_marked(shim.spec["kernel_id"]) == []
    status = runfile.read(shim.folder("a"))[1]
    assert status is not None
    assert status["reason"] == "leash"
    assert json.loads((shim.scratch / "exit.json").read_text())["reason"] == "leash"


def test_sigterm_ends_kernel_and_shim(shim: Shim, client: Client) -> None:
    assert shim.process is not None
    begin(client, "a", BUSY)
    shim.process.terminate()
    assert client.ended("a")["reason"] == "terminated"
    assert shim.process.wait(PATIENCE) == 0
    assert processes_marked(shim.spec["kernel_id"]) == []


def test_one_shim_per_scratch_directory(shim: Shim) -> None:
    living = shim.process
    assert shim.start() is not None or shim.process is not living
    assert shim.process is not None
    assert shim.process.wait(PATIENCE) == 3
    shim.process = living
    assert shim.run("1")["state"] == "finished"


def test_a_spec_that_cannot_be_used(make_shim: Callable[..., Shim]) -> None:
    for change in ({"socket": "/tmp/" + "x" * 100}, {"env": 5}, {"leash": "soon"}, {"failpoints": "x"}):
        shim = make_shim(**change)
        shim.socket = str(shim.scratch / "s")
        assert shim.start() is None
        assert shim.process is not None
        assert shim.process.wait(PATIENCE) == 2
        assert "spec.json" in (shim.scratch / "shim.err").read_text()
