"""Services through the whole program: a web server in a session, reached through the proxy websockets."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_websocket

from .harness import Installation, Up
from .http import Http
from .processes import shim_of
from .runs import Runs
from .websockets import connected

pytestmark = pytest.mark.system


@pytest.fixture
def http(shared_up: Up) -> Iterator[Http]:
    with closing(Http(shared_up.said)) as http:
        yield http


async def asked(http: Http, target: str, request: bytes) -> tuple[bytes, int]:
    """All that comes back, and the code that it is closed with."""
    answer = b""
    async with connected(http, target) as socket:
        await socket.send_message(request)
        try:
            while True:
                answer += await socket.get_message()
        except trio_websocket.ConnectionClosed as closed:
            return answer, closed.reason.code


def test_a_web_server_in_a_session(http: Http) -> None:
    with Runs.in_new_session(http, "served") as runs:
        text = os.urandom(2_000_000).hex().encode()
        assert http.call("PUT", f"/session/{runs.name}/files/page", raw=text).status_code == 201
        listed = http.call("GET", f"/stream/session/{runs.name}/apps").json()
        assert listed == [{"name": "files", "protocol": "http", "ports": [8000]}]
        target = f"/stream/session/{runs.name}/httpproxy?app=files"
        for _ in range(2):
            answer, code = trio.run(asked, http, target, b"GET /page HTTP/1.0\r\n\r\n")
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.0 200")
            assert body == text
            assert code == 1001
        assert runs.run("1 + 1") == ("2\n", 0)  # which it holds up in no way
        (service,) = [run for run in runs.list() if run["mode"] == "service"]
        assert (service["run_id"], service["state"]) == ("service-files-1", "running")
        output = http.call("GET", f"/session/{runs.name}/runs/service-files-1/output?offset=0&wait=0").json()
        assert "GET /page" in "".join(record["data"] for record in output["records"])
        stop = http.call("POST", f"/session/{runs.name}/shutdown-service", body={"service_name": "files"})
        assert stop.status_code == 204


@pytest.fixture
def opened(http: Http) -> Iterator[Runs]:
    """A session whose user opens port 9123."""
    body = {"name": "opened", "image": "python", "config": {"preopen_ports": [9123]}}
    made = http.call("POST", "/session", body=body).json()
    try:
        ports = {port["name"]: port for port in made["servicePorts"]}
        assert ports["9123"] == {"name": "9123", "protocol": "preopen", "ports": [9123]}
        yield Runs(http, "opened", made["sessionId"])
    finally:
        http.call("DELETE", f"/session/{made['sessionId']}")


TARGET = "/stream/session/opened/tcpproxy?app=9123"
SERVER = """
import socket, threading
def serve(server=socket.create_server(("127.0.0.1", 9123))):
    while True:
        peer = server.accept()[0]
        peer.sendall(peer.recv(100)[::-1])
        %s
threading.Thread(target=serve, daemon=True).start()
"""


def test_what_the_user_opens(http: Http, opened: Runs) -> None:
    assert trio.run(asked, http, TARGET, b"anybody?") == (b"", 1013)
    assert opened.run(SERVER % "peer.close()")[1] == 0
    assert trio.run(asked, http, TARGET, b"hello") == (b"olleh", 1001)


def test_a_session_that_ends_takes_its_connections_along(shared_up: Up, http: Http, opened: Runs) -> None:
    assert opened.run(SERVER % "kept = peer")[1] == 0

    async def main() -> Any:
        async with connected(http, TARGET) as socket:
            await socket.send_message(b"hello")
            assert await socket.get_message() == b"olleh"
            os.kill(shim_of(shared_up, opened.session_id), signal.SIGKILL)
            with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                await socket.get_message()
            return closed.value.reason.code

    assert trio.run(main) == 1001


@pytest.mark.parametrize(
    ("query", "status"),
    [("", 400), ("?app=none", 404), ("?app=files&port=8001", 400), ('?app=files&envs={"A":"b"}', 400)],
)
def test_what_cannot_be_reached(http: Http, query: str, status: int) -> None:
    with Runs.in_new_session(http, "refused") as runs:
        target = f"/stream/session/{runs.name}/httpproxy{query}".replace('"', "%22")
        headers = http.headers("GET", target) | {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        assert http.client.get(target, headers=headers).status_code == status


def test_an_ordinary_users_sessions_have_services_and_terminals(
    ordinary: tuple[Installation, Path],
) -> None:
    installation, folder = ordinary
    with Up(installation, folder / "services") as up, closing(Http(up.said)) as http:
        with Runs.in_new_session(http, "mine") as runs:
            runs.run("open('page', 'w').write('hello')")
            target = f"/stream/session/{runs.name}/httpproxy?app=files"
            answer, code = trio.run(asked, http, target, b"GET /page HTTP/1.0\r\n\r\n")
            assert answer.endswith(b"\r\n\r\nhello")
            assert code == 1001
            done = up.command("terminal", runs.name, stdin="test -t 0 && cat page; exit 4\n")
            assert "hello" in done.stdout
            assert done.returncode == 4
        assert up.stop() == 0


@pytest.mark.parametrize("option", [("--network",), ("--isolation", "none")], ids=lambda option: option[-1])
def test_sessions_that_share_the_machines_network_listen_apart(
    installation: Installation, folder: Path, option: tuple[str, ...]
) -> None:
    options = (*option, "--set", "agent.service-ports=31950-31980")
    with (
        Up(installation, folder / "data", *options) as up,
        closing(Http(up.said)) as http,
        Runs.in_new_session(http, "one") as one,
        Runs.in_new_session(http, "two") as two,
    ):
        for runs in (one, two):
            runs.run(f"open('page', 'w').write('{runs.name}')")
        for runs in (one, two):
            target = f"/stream/session/{runs.name}/httpproxy?app=files"
            answer, _ = trio.run(asked, http, target, b"GET /page HTTP/1.0\r\n\r\n")
            assert answer.endswith(b"\r\n\r\n" + runs.name.encode())
