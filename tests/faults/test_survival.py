"""Processes die or stand still: what can survive it does, and what cannot says so."""

import hashlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.system.harness import Installation, Up, processes_of, wait_until
from tests.system.http import Http
from tests.system.runs import Runs

pytestmark = pytest.mark.faults

Site = tuple[Installation, Path]

#: Heartbeats are fast, so that what waits for them is too.
QUICK = ("--set", "manager.heartbeat-timeout=1.5", "--set", "agent.report-interval=0.2")
#: Seconds until everything is as before.
HEALED = 30
LINES = 3000
#: Prints while the test does its worst. The file counts its starts.
PROGRAM = f"""
import random, time
open('starts', 'a').write('x')
source = random.Random(7)
for i in range({LINES}):
    print(source.random())
    if i % 100 == 0: time.sleep(0.1)
"""


def expected() -> str:
    """The digest of what `PROGRAM` prints."""
    source = random.Random(7)
    return digest("".join(f"{source.random()}\n" for _ in range(LINES)))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def started(site: Site, *options: str) -> Iterator[Up]:
    installation, data_dir = site
    with Up(installation, data_dir, *QUICK, *options) as up:
        yield up
        if up.process.poll() is None:
            assert up.stop() == 0


def child(up: Up, name: str) -> int:
    """The pid of the worker, the agent or the postmaster."""
    for pid, command in processes_of(up.data_dir).items():
        if re.search(rf"backendai_mgr {name} ", command):
            return pid
        if name == "postgres" and re.search(r"bin/postgres -D", command):
            return pid
    raise AssertionError(f"no {name}: {processes_of(up.data_dir)}")


def shim_of(up: Up, session_id: str) -> int:
    for pid, command in processes_of(up.data_dir).items():
        if "shim.main" in command and os.path.exists(f"/proc/{pid}/cwd"):
            where = os.readlink(f"/proc/{pid}/cwd")
            if where.endswith(session_id):
                return pid
    raise AssertionError("no shim")


def descendants(root: int) -> list[int]:
    """All below *root*, each after its parent."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [*parents.get(root, ())]
    for pid in found:
        found += parents.get(pid, ())
    return found


def patiently(call: Callable[[], httpx.Response], seconds: float = HEALED) -> httpx.Response:
    """Repeat a call that may be repeated until it is neither refused for now nor cut off."""
    until = time.monotonic() + seconds
    while True:
        try:
            answer = call()
            if answer.status_code not in (503, 502):
                return answer
            assert int(answer.headers["Retry-After"]) > 0
        except httpx.TransportError as error:
            answer = httpx.Response(599, text=str(error))
        assert time.monotonic() < until, answer.text
        time.sleep(0.05)


def output(http: Http, url: str) -> tuple[str, Any]:
    """All output of a run, whatever happens meanwhile, and its exit code."""
    text, offset = "", 0
    while True:
        target = f"{url}/output?offset={offset}&wait=1"
        answer = patiently(lambda target=target: http.call("GET", target))
        assert answer.status_code == 200, answer.text
        piece = answer.json()
        assert all(record["stream"] == "stdout" for record in piece["records"]), piece
        text += "".join(record["data"] for record in piece["records"])
        offset = piece["next_offset"]
        if piece["finished"]:
            return text, piece["exit_code"]


def running(runs: Runs, url: str) -> None:
    """Until the run has printed something."""
    assert runs.http.call("GET", f"{url}/output?offset=0&wait=20").json()["records"]


def answers(http: Http, session: str) -> str:
    """What the session says to a question about its memory, once it answers again."""
    url = f"/session/{session}/runs/{os.urandom(8).hex()}"
    made = patiently(lambda: http.call("PUT", url, body={"code": "print(memory, end='')"}))
    assert made.status_code in (200, 201), made.text
    return output(http, url)[0]


def test_a_killed_interpreter_loses_its_run_and_its_session_says_so(site: Site) -> None:
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "doomed") as runs:
        url = runs.start("print('on', flush=True)\nwhile True: pass")
        running(runs, url)
        shim = shim_of(up, runs.session_id)
        os.kill(descendants(shim)[-1], signal.SIGKILL)
        wait_until(lambda: runs.status() == "TERMINATED", HEALED, "the session ends")
        assert "SIGKILL" in runs.why()
        wait_until(lambda: not descendants(shim), HEALED, "all its processes are gone")


def test_a_kernel_dies_with_its_shim(site: Site) -> None:
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "doomed") as runs:
        runs.run("import subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True); None")
        shim = shim_of(up, runs.session_id)
        kernel = descendants(shim)
        assert len(kernel) >= 3
        os.kill(shim, signal.SIGKILL)
        wait_until(lambda: not any(_alive(pid) for pid in kernel), HEALED, "its processes die with it")
        wait_until(lambda: runs.status() == "TERMINATED", HEALED, "the session ends")
        assert "the process that looks after it" in runs.why()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("victim", ["agent", "worker", "postgres"])
def test_what_is_killed_comes_back_and_nothing_is_lost(site: Site, victim: str) -> None:
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "kept") as runs:
        runs.run("memory = 42")
        url = runs.start(PROGRAM)
        running(runs, url)
        began = time.monotonic()
        os.kill(child(up, victim), signal.SIGKILL)
        text, exit_code = output(http, url)
        assert (digest(text), exit_code) == (expected(), 0)
        assert answers(http, runs.session_id) == "42"
        assert time.monotonic() - began < HEALED
        assert patiently(lambda: http.call("GET", "/readyz")).status_code == 200
        assert runs.run("print(len(open('starts').read()))")[0] == "1\n"


def test_streams_go_on_while_the_database_is_away(site: Site) -> None:
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "kept") as runs:
        runs.run("memory = 42")
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with up.popen("run", "--session", runs.name, PROGRAM, **pipes) as follower:
            wait_until(lambda: len(runs.list()) == 2, HEALED, "it runs")
            os.kill(child(up, "postgres"), signal.SIGKILL)
            out, err = follower.communicate(timeout=60)
        assert (digest(out), err, follower.returncode) == (expected(), "", 0)


def test_the_next_up_takes_over_what_a_killed_one_left(site: Site) -> None:
    installation, data_dir = site
    with Up(installation, data_dir, *QUICK) as up:
        with closing(Http(up.said)) as http:
            name = f"kept-{os.urandom(4).hex()}"
            made = http.call("POST", "/session", body={"name": name, "image": "python"}).json()
            runs = Runs(http, name, made["sessionId"])
            runs.run("memory = 42")
            url = runs.start(PROGRAM)
            running(runs, url)
            up.signal(signal.SIGKILL)
            up.process.wait()
        with started(site) as again, closing(Http(again.said)) as http:
            text, exit_code = output(http, url)
            assert (digest(text), exit_code) == (expected(), 0)
            assert answers(http, runs.session_id) == "42"


@pytest.mark.parametrize("victim", ["agent", "worker", "postgres"])
def test_who_stands_still_for_longer_than_a_heartbeat_loses_no_kernel(site: Site, victim: str) -> None:
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "kept") as runs:
        runs.run("memory = 42")
        url = runs.start(PROGRAM)
        running(runs, url)
        pid = child(up, victim)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(4)  # what is tested is that so much time passes
        finally:
            os.kill(pid, signal.SIGCONT)
        text, exit_code = output(http, url)
        assert (digest(text), exit_code) == (expected(), 0)
        assert answers(http, runs.session_id) == "42"
        assert runs.why() == "It is running."
