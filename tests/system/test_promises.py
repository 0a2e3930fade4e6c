"""Promises that only the whole program can keep: no query on the way, streams that go on, stops that end."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import trio
from trio_websocket import ConnectionClosed, open_websocket_url

from .harness import PACKAGE, Installation, Up, processes_of, psql, wait_until
from .http import Http
from .processes import child
from .runs import Runs, patiently

pytestmark = pytest.mark.system


@pytest.fixture
def http(shared_up: Up) -> Iterator[Http]:
    with closing(Http(shared_up.said)) as http:
        yield http


def test_an_authenticated_request_needs_no_statement(shared_up: Up, http: Http) -> None:
    """Statements are counted by the server itself; what the manager does by itself is subtracted."""
    count = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    requests = 300
    http.call("GET", "/auth?echo=warm")
    before = int(psql(shared_up, count))
    for number in range(requests):
        assert http.call("GET", f"/auth?echo={number}").status_code == 200
    # Statistics of a session that idles are flushed within a second; its own commits count as well.
    psql(shared_up, "SELECT pg_stat_force_next_flush(), pg_sleep(1.2)")
    assert int(psql(shared_up, count)) - before < requests / 3


def test_a_run_starts_once_and_is_read_again_from_any_offset(shared_up: Up, http: Http) -> None:
    created = http.call("POST", "/session", body={"name": "once", "image": "python"}).json()
    run = f"/session/{created['sessionId']}/runs/one"
    witness = shared_up.data_dir / "kernels" / created["sessionId"] / "work" / "witness"
    body = {"mode": "query", "code": "open('witness', 'a').write('x')\nprint('0123456789')"}
    try:
        assert [http.call("PUT", run, body=body).status_code for _ in range(5)] == [201, 200, 200, 200, 200]
        other = body | {"code": "print('other')"}
        assert http.call("PUT", run, body=other).status_code == 409
        whole = http.call("GET", f"{run}/output?offset=11&wait=10").json()
        for offset in range(11):
            piece = http.call("GET", f"{run}/output?offset={offset}&wait=10").json()
            text = "".join(record["data"] for record in piece["records"])
            assert text == "0123456789\n"[offset:]
            assert piece["finished"]
        assert whole["exit_code"] == 0
        refused = http.call("GET", f"{run}/output?offset=12")
        assert (refused.status_code, list(refused.json()["data"])) == (400, ["offset"])
        assert witness.read_text() == "x"
    finally:
        http.call("DELETE", "/session/once")


async def test_sigterm_closes_streams_resumably_and_outlasts_clients_that_never_read(
    installation: Installation, folder: Path
) -> None:
    """Of the worker alone: sessions stay, our stream is told 1001, the process is gone in time."""
    with Up(installation, folder / "data") as up, closing(Http(up.said)) as http:
        created = http.call("POST", "/session", body={"name": "stopped", "image": "python"}).json()
        run = f"/session/{created['sessionId']}/runs/flood"
        body = {"mode": "query", "code": "while True: print('x' * 1000)"}
        assert http.call("PUT", run, body=body).status_code == 201
        worker = next(
            p for p, command in processes_of(up.data_dir).items() if "backendai_mgr worker " in command
        )
        target = f"/stream{run}"
        signed = http.headers("GET", target, content_type="application/octet-stream")
        del signed["Content-Type"]
        with socket.create_connection(_address(http)) as deaf:
            upgrade = {
                **signed,
                "Host": http.host,
                "Connection": "Upgrade",
                "Upgrade": "websocket",
                "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            }
            lines = [f"GET {target} HTTP/1.1", *(f"{k}: {v}" for k, v in upgrade.items()), "", ""]
            deaf.sendall("\r\n".join(lines).encode())
            assert deaf.recv(12) == b"HTTP/1.1 101"
            code = await _code_after(http, target, lambda: os.kill(worker, signal.SIGTERM))
            assert code == 1001
            wait_until(lambda: worker not in processes_of(up.data_dir), 15, "the worker is gone")
        wait_until(lambda: _ready(http), 30, "a new worker serves")
        state = http.call("GET", run).json()["state"]
        assert state == "running"
        assert up.stop() == 0
        assert processes_of(up.data_dir) == {}


def test_a_worker_that_dies_in_the_middle_of_a_start_is_followed_by_one_that_goes_on(
    folder: Path,
) -> None:
    """At each of the manager's crash points: the session runs, its kernel was made once."""
    names = set()
    for source in (PACKAGE / "services").glob("*.py"):
        names |= set(re.findall(r'failpoint\("([^"]+)"\)', source.read_text()))
    assert names == {"start.after_claim", "restart.after_begin", "put.after_start"}
    fragile = Installation()
    fragile.environ["BACKENDAI_FAILPOINTS"] = "start.after_claim=kill"
    with Up(fragile, folder / "data") as up, closing(Http(up.said)) as http:
        with contextlib.suppress(httpx.TransportError):
            http.call("POST", "/session", body={"name": "fragile", "image": "python"})
        wait_until(lambda: _status(http, "fragile") == "RUNNING", 30, "the session runs")
        assert len(list((up.data_dir / "kernels").iterdir())) == 1
        assert up.stop() == 0


def test_a_worker_that_dies_in_the_middle_of_a_restart_is_followed_by_one_that_goes_on(
    folder: Path,
) -> None:
    fragile = Installation()
    fragile.environ["BACKENDAI_FAILPOINTS"] = "restart.after_begin=kill"
    with Up(fragile, folder / "data") as up, closing(Http(up.said)) as http:
        made = up.command("run", "--session", "fragile", "--keep", "x = 1; open('kept', 'w').write('kept')")
        assert made.returncode == 0, made.stderr
        with pytest.raises(httpx.TransportError):
            http.call("PATCH", "/session/fragile")
        wait_until(lambda: _status(http, "fragile") == "RUNNING", 30, "the session runs")
        code = "print('x' in globals(), open('kept').read())"
        assert up.command("run", "--session", "fragile", code).stdout == "False kept\n"
        assert up.stop() == 0


def test_a_start_whose_answer_is_lost_is_found_again(folder: Path) -> None:
    """Of the second run: the manager's dies with it, and so does the agent's when it is asked again."""
    fragile = Installation()
    fragile.environ["BACKENDAI_FAILPOINTS"] = "put.after_start=kill@2,run.after_answer=kill@3"
    with Up(fragile, folder / "data") as up, closing(Http(up.said)) as http:
        before = child(up, "worker"), child(up, "agent")
        with Runs.in_new_session(http, "cut") as runs:
            statuses = []
            for number in range(2):
                url = f"/session/{runs.session_id}/runs/{number}"
                body = {"code": f"open('starts', 'a').write('{number}')"}
                answer = patiently(lambda url=url, body=body: http.call("PUT", url, body=body))
                statuses.append(answer.status_code)
                assert runs.follow(url)[1] == 0
            assert statuses == [201, 200]
            assert child(up, "worker") != before[0]
            assert child(up, "agent") != before[1]
            starts = up.data_dir / "kernels" / runs.session_id / "work" / "starts"
            assert starts.read_text() == "01"
        assert up.stop() == 0


def test_an_agent_that_dies_in_the_middle_of_a_restart_is_followed_by_one_that_goes_on(
    folder: Path,
) -> None:
    """The manager's call that was under way is made again at once, not after its deadline."""
    with Up(Installation(), folder / "data") as up, closing(Http(up.said)) as http:
        made = up.command("run", "--session", "fragile", "--keep", "x = 1; open('kept', 'w').write('kept')")
        assert made.returncode == 0, made.stderr
        (agent,) = (pid for pid, c in processes_of(up.data_dir).items() if "backendai_mgr agent " in c)
        os.kill(agent, signal.SIGSTOP)
        with up.popen("restart", "fragile", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            wait_until(lambda: _status(http, "fragile") == "RESTARTING", 20, "the restart has begun")
            os.kill(agent, signal.SIGKILL)
            out, err = client.communicate(timeout=45)
            assert (client.returncode, out, err) == (0, "fragile\n", "")
        code = "print('x' in globals(), open('kept').read())"
        assert up.command("run", "--session", "fragile", code).stdout == "False kept\n"
        assert up.stop() == 0


def test_a_connection_that_fails_takes_no_other_along(shared_up: Up, http: Http) -> None:
    """Bytes behind a refused upgrade make the HTTP server's own code fail."""
    upgrade = (
        f"GET /stream/session/nobody/execute HTTP/1.1\r\nHost: {http.host}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    before = processes_of(shared_up.data_dir)
    for _ in range(20):
        with socket.create_connection(_address(http), timeout=5) as connection:
            connection.sendall(upgrade)
            assert connection.recv(12) == b"HTTP/1.1 400"
            with contextlib.suppress(OSError):
                connection.sendall(upgrade)
                connection.recv(65536)
    assert http.call("GET", "/auth?echo=fine").status_code == 200
    workers = {pid for pid, command in before.items() if "backendai_mgr worker " in command}
    assert workers <= set(processes_of(shared_up.data_dir))


def _status(http: Http, name: str) -> str | None:
    try:
        return str(http.call("GET", f"/session/{name}").json().get("status"))
    except httpx.TransportError:
        return None


def _address(http: Http) -> tuple[str, int]:
    host, _, port = http.host.rpartition(":")
    return host, int(port)


def _ready(http: Http) -> bool:
    try:
        return http.client.get("/readyz").status_code == 200
    except httpx.HTTPError:
        return False


async def _code_after(http: Http, target: str, act: object) -> int:
    """Read a stream, act after its first frame, and read on: the code that it is closed with."""
    headers = http.headers("GET", target, content_type="application/octet-stream")
    del headers["Content-Type"]
    extra = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    url = http.endpoint.replace("http", "ws") + target
    with trio.fail_after(30):
        async with open_websocket_url(url, extra_headers=extra) as websocket:
            frame = json.loads(await websocket.get_message())
            assert frame["records"][0]["offset"] == 0
            act()  # type: ignore[operator]
            try:
                while True:
                    await websocket.get_message()
            except ConnectionClosed as closed:
                code = closed.reason.code if closed.reason else 1006
            await trio.aclose_forcefully(websocket._stream)
    return code
