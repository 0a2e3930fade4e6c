"""Systems for tests of faults, and a program whose output is known beforehand."""

import hashlib
import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.system.harness import Installation, Up, deadline, psql
from tests.system.http import Http
from tests.system.processes import child
from tests.system.runs import HEALED, Runs, patiently

Site = tuple[Installation, Path]


#: Heartbeats are fast, so that what waits for them is too.
QUICK = ("--set", "manager.heartbeat-timeout=1.5", "--set", "agent.report-interval=0.2")
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
    """A system that stops well at the end."""
    installation, data_dir = site
    with Up(installation, data_dir, *QUICK, *options) as up:
        yield up
        if up.process.poll() is None:
            assert up.stop() == 0


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """The processes stand still meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def ready(http: Http) -> int:
    """The status of /readyz; 0 while nobody answers."""
    try:
        return http.client.get("/readyz").status_code
    except httpx.TransportError:
        return 0


def lease_is_over(up: Up) -> bool:
    """Whether no worker keeps the agent any more."""
    return psql(up, "SELECT expires_at < now() FROM agent_leases") == "t"


def agent_status(up: Up) -> str:
    """As the manager has stored it."""
    return psql(up, "SELECT status FROM agents")


def connections(up: Up) -> int:
    """How many sockets the worker has open."""
    worker = child(up, "worker")
    assert worker is not None
    names = (os.readlink(entry.path) for entry in os.scandir(f"/proc/{worker}/fd"))
    return sum(name.startswith("socket:") for name in names)


def free_port() -> int:
    """A port of loopback that nobody has; for what must keep its port over a restart."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


#: For a client command whose output is looked at.
PIPES = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


def rest_of(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """What it still writes to standard output and (little) to standard error, until its end.

    `communicate` would leave out what was received together with a line that was read before.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    with deadline(process, 2 * HEALED):
        out, err = process.stdout.read(), process.stderr.read()
        process.wait()
    return out, err


def running(runs: Runs, url: str) -> None:
    """Until the run has printed something."""
    assert runs.http.call("GET", f"{url}/output?offset=0&wait=20").json()["records"]


def answers(http: Http, session: str) -> str:
    """What the session says to a question about its memory, once it answers again."""
    url = f"/session/{session}/runs/{os.urandom(8).hex()}"
    made = patiently(lambda: http.call("PUT", url, body={"code": "print(memory, end='')"}))
    assert made.status_code in (200, 201), made.text
    return output(http, url)[0]
