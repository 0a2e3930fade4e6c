"""One row for each kind of process that is killed; tests/faults does worse to them."""

import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from .harness import Installation, Up, processes_of, wait_until
from .http import Http
from .processes import child, interpreter_of, shim_of
from .runs import Runs

pytestmark = pytest.mark.system


def test_a_killed_up_takes_its_children_along_and_leaves_the_kernels(
    installation: Installation, folder: Path
) -> None:
    data_dir = folder / "data"
    with Up(installation, data_dir) as up:
        assert up.command("run", "--session", "kept", "--keep", "x = 41").returncode == 0
        up.signal(signal.SIGKILL)
        up.process.wait()
        wait_until(lambda: not (child(up, "worker") or child(up, "agent")), 4, "worker and agent stop")
        # The next one adopts the kernel: its memory is still there.
        with Up(installation, data_dir) as again:
            assert again.command("run", "--session", "kept", "print(x + 1)").stdout == "42\n"
            assert again.stop() == 0
        assert processes_of(data_dir) == {}


@pytest.mark.parametrize("name", ["worker", "agent", "postgres"])
def test_a_child_that_dies_is_started_again_and_sessions_stay(
    installation: Installation, folder: Path, name: str
) -> None:
    with Up(installation, folder / "data") as up:
        assert up.command("run", "--session", "kept", "--keep", "x = 41").returncode == 0
        killed = child(up, name)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: child(up, name) not in (None, killed), 20, "a new one runs")
        wait_until(
            lambda: up.command("run", "--session", "kept", "print(x + 1)").stdout == "42\n",
            60,
            "the session answers",
        )


@pytest.mark.parametrize(
    ("victim", "said"),
    [
        (interpreter_of, "It ended by itself, killed by SIGKILL (signal 9)."),
        (shim_of, "Its kernel died together with the process that looks after it."),
    ],
    ids=["interpreter", "shim"],
)
def test_a_kernel_that_is_killed_ends_its_session_which_says_so(
    shared_up: Up, victim: Callable[[Up, str], int], said: str
) -> None:
    with closing(Http(shared_up.said)) as http, Runs.in_new_session(http, "doomed") as runs:
        url = runs.start("print('on', flush=True)\nwhile True: pass")
        assert http.call("GET", f"{url}/output?offset=0&wait=20").json()["next_offset"] == 3
        os.kill(victim(shared_up, runs.session_id), signal.SIGKILL)
        wait_until(lambda: runs.status() == "TERMINATED", 20, "the session ends")
        assert runs.why() == said
