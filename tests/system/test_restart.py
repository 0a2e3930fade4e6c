"""`restart` against a running system: what stays and what goes."""

from contextlib import closing

import pytest

from .harness import Up, wait_until
from .http import Http

pytestmark = pytest.mark.system


def test_files_and_past_output_stay_and_variables_go(shared_up: Up) -> None:
    made = shared_up.command(
        "run", "--session", "again", "--keep", "x = 6 * 7; open('kept', 'w').write('kept')"
    )
    assert made.returncode == 0, made.stderr
    with closing(Http(shared_up.said)) as http:
        code = "import time; print('so far', flush=True); time.sleep(1000)"
        cut = "/session/again/runs/cut"
        assert http.call("PUT", cut, body={"mode": "query", "code": code}).status_code == 201
        assert http.call("GET", f"{cut}/output?offset=0&wait=20").json()["next_offset"] == 7
        done = shared_up.command("restart", "again")
        assert (done.returncode, done.stdout, done.stderr) == (0, "again\n", "")
        code = "print('x' in globals(), open('kept').read())"
        assert shared_up.command("run", "--session", "again", code).stdout == "False kept\n"
        ended = http.call("GET", cut).json()
        assert (ended["state"], ended["reason"]) == ("lost", "restarted")
        output = http.call("GET", f"{cut}/output?offset=0").json()
        assert (output["finished"], output["next_offset"]) == (True, 7)
        assert http.call("POST", "/session/again/rename?name=renamed").status_code == 204
    assert shared_up.command("why", "renamed").stdout == "renamed is RUNNING. It is running.\n"
    assert shared_up.command("rm", "renamed").returncode == 0
    why = shared_up.command("why", "renamed")
    assert why.stdout == "renamed is TERMINATED. It was ended as its owner asked.\n"
    refused = shared_up.command("restart", "renamed")
    assert refused.returncode == 1
    assert "only a running session can be restarted" in refused.stderr


def test_a_kernel_that_ends_itself_is_told_with_its_exit_code(shared_up: Up) -> None:
    shared_up.command("run", "--session", "leaver", "--keep", "import os; os._exit(3)")
    wait_until(lambda: "is TERMINATED" in shared_up.command("why", "leaver").stdout, 20, "its end is known")
    why = shared_up.command("why", "leaver")
    assert why.stdout == "leaver is TERMINATED. It ended by itself, with exit code 3.\n"
