"""What makes up a kernel dies, is left alone, or finds no room: its end is told, and nothing of it stays."""

import os
import signal
from collections.abc import Callable
from contextlib import closing

import pytest

from tests.system.disks import small_disk
from tests.system.harness import Up, processes_of, wait_until
from tests.system.http import Http
from tests.system.processes import alive, descendants, guest_of, interpreter_of, shim_of
from tests.system.runs import Runs

from .support import HEALED, PIPES, Site, rest_of, started

pytestmark = pytest.mark.faults

#: Has a process that would outlive it, and counts its starts.
BUSY = """
import subprocess
open('starts', 'a').write('x')
child = subprocess.Popen(['sleep', '1000'], start_new_session=True)
print('on', flush=True)
while True: pass
"""


@pytest.mark.parametrize(
    ("victim", "said"),
    [
        (interpreter_of, "It ended by itself, killed by SIGKILL (signal 9)."),
        (guest_of, "It ended by itself, killed by SIGKILL (signal 9)."),
        (shim_of, "Its kernel died together with the process that looks after it."),
    ],
    ids=["interpreter", "guest", "shim"],
)
def test_a_kernel_that_is_killed_loses_its_run_and_says_so(
    site: Site, victim: Callable[[Up, str], int], said: str
) -> None:
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "doomed") as runs:
        with up.popen("run", "--session", runs.name, BUSY, **PIPES) as follower:
            assert follower.stdout is not None
            assert follower.stdout.readline() == "on\n"
            shim = shim_of(up, runs.session_id)
            kernel = [shim, *descendants(shim)]
            work = up.data_dir / "kernels" / runs.session_id / "work"
            assert (work / "starts").read_text() == "x"
            os.kill(victim(up, runs.session_id), signal.SIGKILL)
            out, err = rest_of(follower)
            assert (out, follower.returncode) == ("", 1)
            assert err.startswith("The run was lost")
        wait_until(lambda: not any(alive(pid) for pid in kernel), HEALED, "all its processes die with it")
        wait_until(lambda: runs.status() == "TERMINATED", HEALED, "the session ends")
        assert runs.why() == said
        wait_until(lambda: not work.parent.exists(), HEALED, "its folder is removed")
        with Runs.in_new_session(http, "next") as following:
            assert following.run("print(6 * 7)") == ("42\n", 0)


def test_a_kernel_that_no_agent_looks_after_ends(site: Site) -> None:
    installation, data_dir = site
    leash = ("--set", "agent.leash=2")
    with Up(installation, data_dir, *leash) as up:
        with closing(Http(up.said)) as http:
            name = f"left-{os.urandom(4).hex()}"
            made = http.call("POST", "/session", body={"name": name, "image": "python"}).json()
            url = Runs(http, name, made["sessionId"]).start(BUSY)
            assert http.call("GET", f"{url}/output?offset=0&wait=20").json()["records"]
        shim = shim_of(up, made["sessionId"])
        kernel = [shim, *descendants(shim)]
        up.signal(signal.SIGKILL)
        up.process.wait()
        wait_until(lambda: not any(alive(pid) for pid in kernel), HEALED, "it ends")
        assert not any("shim.main" in command for command in processes_of(data_dir).values())
        with started(site, *leash) as again, closing(Http(again.said)) as http:
            runs = Runs(http, name, made["sessionId"])
            wait_until(lambda: runs.status() == "TERMINATED", HEALED, "the session ends")
            assert runs.why() == "Its kernel was ended because no agent had looked after it for too long."


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_full_disk_holds_up_no_program(site: Site) -> None:
    """What was not kept is told as a gap, to the byte."""
    lines, length = 3000, 10_000
    flood = f"for i in range({lines}): print(f'{{i:0{length - 1}}}')\nprint('end')"
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "full") as runs:
        with small_disk(up.data_dir / "kernels" / runs.session_id / "runs"):
            url = runs.start(flood)
            kept = gap = offset = 0
            finished = False
            while not finished:
                piece = http.call("GET", f"{url}/output?offset={offset}&wait=20").json()
                gap += sum(r["gap"] for r in piece["records"] if r["stream"] == "gap")
                kept += sum(len(r["data"]) for r in piece["records"] if r["stream"] == "stdout")
                offset, finished = piece["next_offset"], piece["finished"]
            assert piece["exit_code"] == 0
            assert gap > 0
            assert kept + gap == offset == lines * length + len("end\n")
            assert http.call("GET", url).json()["state"] == "finished"
            assert runs.status() == "RUNNING"
        assert runs.run("print('room again')") == ("room again\n", 0)
