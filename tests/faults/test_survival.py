"""Processes of the system die or stand still: sessions go on, and no output is lost or repeated."""

import os
import signal
from contextlib import closing

import pytest

from tests.system.harness import Up, wait_until
from tests.system.http import Http
from tests.system.processes import child, descendants
from tests.system.runs import Runs

from .support import (
    HEALED,
    PIPES,
    PROGRAM,
    QUICK,
    Site,
    agent_status,
    answers,
    digest,
    expected,
    free_port,
    lease_is_over,
    output,
    ready,
    rest_of,
    running,
    started,
    stopped,
)

pytestmark = pytest.mark.faults


def starts(runs: Runs) -> str:
    """How often `PROGRAM` was started, as its own witness has it."""
    return runs.run("print(len(open('starts').read()))")[0]


@pytest.mark.parametrize("victim", ["agent", "worker", "postgres"])
def test_what_is_killed_comes_back_and_nothing_is_lost(site: Site, victim: str) -> None:
    """Twice, while the command line follows a run: it shows each byte once, and so it can be read later."""
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "kept") as runs:
        runs.run("memory = 42")
        with up.popen("run", "--session", runs.name, PROGRAM, **PIPES) as follower:
            assert follower.stdout is not None
            received = ""
            for _ in range(2):
                received += follower.stdout.readline()
                killed = child(up, victim)
                assert killed is not None
                os.kill(killed, signal.SIGKILL)
                wait_until(lambda killed=killed: child(up, victim) not in (None, killed), HEALED, "a new one")
            out, err = rest_of(follower)
            assert (digest(received + out), err, follower.returncode) == (expected(), "", 0)
        wait_until(lambda: ready(http) == 200, HEALED, "the system is ready")
        assert answers(http, runs.session_id) == "42"
        (_, followed, _) = runs.list()
        text, exit_code = output(http, f"/session/{runs.session_id}/runs/{followed['run_id']}")
        assert (digest(text), exit_code) == (expected(), 0)
        assert starts(runs) == "1\n"


def test_while_the_database_is_away_runs_go_on_and_what_needs_it_is_put_off(site: Site) -> None:
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "kept") as runs:
        runs.run("memory = 42")
        with up.popen("run", "--session", runs.name, PROGRAM, **PIPES) as follower:
            assert follower.stdout is not None
            received = follower.stdout.readline()
            postgres = child(up, "postgres")
            assert postgres is not None
            with stopped(up.process.pid):  # so that it starts no other
                os.kill(postgres, signal.SIGKILL)
                wait_until(lambda: ready(http) == 503, HEALED, "the system is not ready")
                refused = http.call("POST", "/session", body={"name": "more", "image": "python"})
                assert (refused.status_code, refused.headers["Content-Type"]) == (
                    503,
                    "application/problem+json",
                )
                assert int(refused.headers["Retry-After"]) > 0
                out, err = rest_of(follower)
                assert (digest(received + out), err, follower.returncode) == (expected(), "", 0)
            wait_until(lambda: ready(http) == 200, HEALED, "the system is ready again")
        assert answers(http, runs.session_id) == "42"
        assert starts(runs) == "1\n"
        with Runs.in_new_session(http, "more") as more:
            assert more.run("print(6 * 7)") == ("42\n", 0)


def test_a_database_connection_that_is_killed_is_opened_again(site: Site) -> None:
    """The server ends all others with it, and recovers by itself."""
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "kept") as runs:
        runs.run("memory = 42")
        url = runs.start(PROGRAM)
        running(runs, url)
        postgres, backend = child(up, "postgres"), child(up, "backend")
        assert backend is not None
        os.kill(backend, signal.SIGKILL)
        text, exit_code = output(http, url)
        assert (digest(text), exit_code) == (expected(), 0)
        wait_until(lambda: ready(http) == 200, HEALED, "the system is ready")
        assert child(up, "postgres") == postgres
        with Runs.in_new_session(http, "more") as more:
            assert more.run("print(6 * 7)") == ("42\n", 0)


def test_an_agent_that_stays_away_is_lost_and_found_again(site: Site) -> None:
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "kept") as runs:
        runs.run("memory = 42")
        url = runs.start(PROGRAM)
        running(runs, url)
        agent = child(up, "agent")
        assert agent is not None
        with stopped(up.process.pid):  # so that it starts no other
            os.kill(agent, signal.SIGKILL)
            wait_until(lambda: agent_status(up) == "LOST", HEALED, "its silence is noticed")
            refused = http.call("GET", f"{url}/output?offset=0")
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) > 0
            assert runs.status() == "RUNNING"
        assert answers(http, runs.session_id) == "42"
        text, exit_code = output(http, url)
        assert (digest(text), exit_code) == (expected(), 0)
        wait_until(lambda: agent_status(up) == "ALIVE", HEALED, "it is known to be back")
        assert (runs.why(), starts(runs)) == ("It is running.", "1\n")


def test_the_next_up_takes_over_what_a_killed_one_left(site: Site) -> None:
    """A client that follows a run notices no more than a pause."""
    installation, data_dir = site
    port = str(free_port())
    with Up(installation, data_dir, *QUICK, "--port", port) as up, closing(Http(up.said)) as http:
        name = f"kept-{os.urandom(4).hex()}"
        made = http.call("POST", "/session", body={"name": name, "image": "python"}).json()
        runs = Runs(http, name, made["sessionId"])
        runs.run("memory = 42")
        with up.popen("run", "--session", name, PROGRAM, **PIPES) as follower:
            assert follower.stdout is not None
            received = follower.stdout.readline()
            (latest, _) = runs.list()
            up.signal(signal.SIGKILL)
            up.process.wait()
            with started(site, "--port", port):
                out, err = rest_of(follower)
                assert (digest(received + out), err, follower.returncode) == (expected(), "", 0)
                text, exit_code = output(http, f"/session/{runs.session_id}/runs/{latest['run_id']}")
                assert (digest(text), exit_code) == (expected(), 0)
                assert answers(http, runs.session_id) == "42"
                assert starts(runs) == "1\n"


@pytest.mark.parametrize("victim", ["agent", "worker", "postgres"])
def test_who_stands_still_for_longer_than_a_heartbeat_loses_no_kernel(site: Site, victim: str) -> None:
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "kept") as runs:
        runs.run("memory = 42")
        url = runs.start(PROGRAM)
        running(runs, url)
        pid = child(up, victim)
        assert pid is not None
        backends = [other for other in descendants(pid) if victim == "postgres"]
        with stopped(pid, *backends):
            if victim == "agent":
                wait_until(lambda: agent_status(up) == "LOST", HEALED, "its silence is noticed")
            elif victim == "worker":
                wait_until(lambda: lease_is_over(up), HEALED, "another could take over")
            else:
                assert output(http, url)[1] == 0  # the run lasts longer
        text, exit_code = output(http, url)
        assert (digest(text), exit_code) == (expected(), 0)
        assert answers(http, runs.session_id) == "42"
        wait_until(lambda: agent_status(up) == "ALIVE", HEALED, "the agent is known to be alive")
        assert (child(up, victim), runs.why(), starts(runs)) == (pid, "It is running.", "1\n")
