"""`runs` and `output`: what a session has run, and its bytes as they were."""

import json
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing

import pytest

from .harness import COMMAND, Up
from .http import Http
from .runs import Runs

pytestmark = pytest.mark.system

CODE = (
    "import sys\n"
    "for n in range(5000): _ = sys.stdout.buffer.write(bytes([n % 256]) * (n % 500))\n"
    "sys.stdout.flush(); _ = sys.stderr.buffer.write(bytes(range(256)) * 300); sys.exit(7)"
)
OUT = b"".join(bytes([n % 256]) * (n % 500) for n in range(5000))
ERR = bytes(range(256)) * 300


@pytest.fixture(scope="module")
def runs(shared_up: Up) -> Iterator[Runs]:
    with closing(Http(shared_up.said)) as http, Runs.in_new_session(http, "outputs") as runs:
        yield runs


def run_id(url: str) -> str:
    return url.rpartition("/")[2]


def output(up: Up, *words: str) -> tuple[int, bytes, bytes]:
    """Exit status and the raw bytes of both streams."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with up.popen("output", *words, stdout=out, stderr=err) as process:
            status = process.wait(COMMAND)
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


def test_the_bytes_of_a_run_come_as_they_were(shared_up: Up, runs: Runs) -> None:
    run = run_id(runs.start(CODE))
    assert output(shared_up, "--follow", runs.name, run) == (7, OUT, ERR)
    assert output(shared_up, runs.name, run) == (0, OUT, ERR)
    assert output(shared_up, "--stream", "stdout", runs.name, run) == (0, OUT, b"")
    assert output(shared_up, "--stream", "stderr", "--follow", runs.name, run) == (7, b"", ERR)
    whole, half = len(OUT + ERR), len(OUT) // 2
    status, out, err = output(shared_up, "--offset", str(half), runs.name, run)
    # The two streams may be mixed in any way.
    assert (status, len(out) + len(err)) == (0, whole - half)
    assert OUT.endswith(out)
    assert ERR.endswith(err)
    assert output(shared_up, "--offset", str(whole), "--follow", runs.name, run) == (7, b"", b"")
    status, out, err = output(shared_up, "--offset", str(whole + 1), runs.name, run)
    assert (status, out) == (1, b"")
    assert b"offset: past the end" in err


def test_a_run_is_followed_to_its_end_and_leaving_leaves_it_alone(shared_up: Up, runs: Runs) -> None:
    url = runs.start("import time; print('on', flush=True)\nwhile True: time.sleep(0.1)")
    command = ("output", "--follow", runs.name, run_id(url))
    with shared_up.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(COMMAND) == 130
    assert runs.http.call("GET", url).json()["state"] == "running"
    assert output(shared_up, runs.name, run_id(url)) == (0, b"on\n", b"")
    with shared_up.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        assert runs.http.call("POST", f"{url}/interrupt").status_code == 200
        assert process.wait(COMMAND) == 130


def test_runs_are_listed_for_people_and_programs(shared_up: Up, runs: Runs) -> None:
    url = runs.start("print('listed'); raise SystemExit(3)")
    assert runs.follow(url) == ("listed\n", 3)
    listed = shared_up.command("runs", "--json", runs.name)
    first, *_ = map(json.loads, listed.stdout.splitlines())
    assert (first["run_id"], first["state"], first["exit_code"]) == (run_id(url), "finished", 3)
    table = shared_up.command("runs", runs.name).stdout.splitlines()
    assert table[0].split() == ["RUN", "STATE", "EXIT", "MODE", "AGE", "TOOK", "OUTPUT"]
    assert re.fullmatch(rf"{run_id(url)} +finished +3 +query +\d+[smhd] +\d+s +7 B *", table[1]), table


@pytest.mark.parametrize("words", [("runs", "no-such-session"), ("output", "no-such-session", "r")])
def test_what_is_not_there_is_told_in_a_line(shared_up: Up, words: tuple[str, ...]) -> None:
    done = shared_up.command(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: No such session")
    assert len(done.stderr.splitlines()) == 1
