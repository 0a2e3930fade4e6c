"""Services over the API: the list, what cannot be started, and the tunnels with their close codes."""

import json
from contextlib import asynccontextmanager
from urllib.parse import quote

import pytest
import trio
import trio_websocket

from backendai_mgr.domain.errors import AgentFailed, NotFound, ServiceFailed, Unavailable
from backendai_mgr.domain.requests import invalid
from backendai_mgr.domain.status import Status
from backendai_mgr.services.apps import StartApp
from tests.fakes.services import a_session

from .test_run_stream import rejected

PROXIES = ["tcpproxy", "httpproxy"]


@asynccontextmanager
async def connected(server, kind="tcpproxy", query="?app=http"):
    with trio.fail_after(20):
        async with server.websocket(f"/stream/session/my-session/{kind}{query}") as socket:
            yield socket


async def closed(socket):
    """The code and reason with which the server closes, after all that it still sends."""
    try:
        while True:
            await socket.get_message()
    except trio_websocket.ConnectionClosed as closed:
        return closed.reason.code, closed.reason.reason


async def test_the_list(server, client):
    server.sessions.sessions["my-session"] = a_session(
        service_ports=(
            {"name": "http", "protocol": "http", "container_ports": [8000], "host_ports": [30000]},
            {"name": "8080", "protocol": "preopen", "container_ports": [8080], "host_ports": [30001]},
        )
    )
    reply = await client.get("/stream/session/my-session/apps")
    assert reply.json() == [
        {"name": "http", "protocol": "http", "ports": [8000]},
        {"name": "8080", "protocol": "preopen", "ports": [8080]},
    ]


async def test_the_list_of_a_session_that_does_not_run(server, client):
    server.sessions.sessions["my-session"] = a_session(status=Status.RESTARTING)
    assert (await client.get("/stream/session/my-session/apps")).status_code == 409
    assert (await client.get("/stream/session/other/apps")).status_code == 404


async def test_start_service_has_no_app_proxy(client):
    reply = await client.post("/session/my-session/start-service", json={"app": "http"})
    assert reply.status_code == 503
    assert reply.json()["type"].endswith("/service-unavailable")
    reply = await client.post("/session/other/start-service", json={"app": "http"})
    assert reply.status_code == 404


async def test_shutdown_service(server, client):
    reply = await client.post("/session/my-session/shutdown-service", json={"service_name": "http"})
    assert (reply.status_code, reply.content) == (204, b"")
    assert server.apps.stopped == ["http"]
    server.apps.refusal = NotFound("app service", "my-session:ftp")
    reply = await client.post("/session/my-session/shutdown-service", json={"service_name": "ftp"})
    assert (reply.status_code, reply.json()["title"]) == (404, "No such app service.")


@pytest.mark.parametrize("kind", PROXIES)
async def test_bytes_both_ways(server, kind):
    async with connected(server, kind) as socket:
        tunnel = await server.apps.tunnel()
        await socket.send_message(b"GET / \xff")
        await socket.send_message("text is none of it")
        await socket.send_message(b"!")
        await tunnel.until(lambda: tunnel.received == b"GET / \xff!")
        for piece in (b"200", b"\0" * 65536):
            tunnel.say(piece)
            assert await socket.get_message() == piece
        await socket.ping(b"still there?")
    with trio.fail_after(20):
        await tunnel.closed.wait()


async def test_what_is_asked_for(server):
    envs, arguments = {"A": "b c"}, {"--one": None, "--two": "x", "--many": ["y", "z"]}
    query = f"?service=http&port=8001&envs={quote(json.dumps(envs))}&arguments={quote(json.dumps(arguments))}"
    async with connected(server, query=query):
        await server.apps.tunnel()
    wanted = {"--one": [], "--two": ["x"], "--many": ["y", "z"]}
    assert server.apps.started == [StartApp(service="http", port=8001, envs=envs, arguments=wanted)]


async def test_a_service_that_hangs_up_is_going_away(server):
    async with connected(server) as socket:
        tunnel = await server.apps.tunnel()
        tunnel.say(b"bye")
        tunnel.say(b"")
        assert await socket.get_message() == b"bye"
        assert (await closed(socket))[0] == 1001


async def test_where_nobody_listens_one_may_try_again(server):
    server.apps.listening = False
    async with connected(server) as socket:
        assert await closed(socket) == (1013, "Nothing listens at the service's port.")


@pytest.mark.parametrize("error", [Unavailable("The agent is away."), AgentFailed("execute", "broke")])
async def test_a_connection_that_breaks(server, error):
    async with connected(server) as socket:
        (await server.apps.tunnel()).say(error)
        assert (await closed(socket))[0] == 1011


async def test_a_server_that_stops_says_so(server):
    async with connected(server) as socket:
        await server.apps.tunnel()
        server.health.stopping.set()
        assert (await closed(socket))[0] == 1001


async def test_a_service_that_does_not_read_holds_the_client_up_and_nobody_else(server, client):
    async with connected(server) as socket:
        tunnel = await server.apps.tunnel()
        tunnel.reads = trio.Event()
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for _ in range(400):
                    await socket.send_message(b"x" * 65536)

            nursery.start_soon(send)
            for _ in range(10):
                assert (await client.get("/stream/session/my-session/apps")).status_code == 200
            assert tunnel.received == b""
            tunnel.reads.set()
        await tunnel.until(lambda: len(tunnel.received) == 400 * 65536)


@pytest.mark.parametrize(
    ("refusal", "status", "kind"),
    [
        (NotFound("app service", "my-session:http"), 404, "object-not-found"),
        (invalid("port", "http has no port 8001"), 400, "invalid-api-params"),
        (ServiceFailed("it ended with exit code 3: oops"), 500, "internal-server-error"),
        (Unavailable("The agent is away."), 503, "service-unavailable"),
    ],
)
async def test_what_is_refused_before(server, client, refusal, status, kind):
    server.apps.refusal = refusal
    reply = await rejected(client, "/stream/session/my-session/httpproxy?app=http")
    assert reply.status_code == status
    assert reply.json()["type"].endswith(kind)
    if status == 500:
        assert reply.json()["msg"] == "Failed to launch the app service"
        assert reply.json()["data"] == "it ended with exit code 3: oops"
    assert not server.apps.tunnels


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "app"),
        ("?app=http&port=80", "port"),
        ("?app=http&port=x", "port"),
        ("?app=http&envs=x", "envs"),
        ("?app=http&envs=[]", "envs"),
        ('?app=http&envs={"A":1}', "envs"),
        ('?app=http&envs={"A":null}', "envs"),
        ('?app=http&envs={"A":"%5Cu0000"}', "envs"),
        ('?app=http&arguments={"A":[1]}', "arguments"),
        ("?app=http&arguments=" + quote(json.dumps({str(n): None for n in range(65)})), "arguments"),
        ("?app=http&colour=red", "colour"),
    ],
)
async def test_wrong_parameters_are_problems(server, client, query, field):
    reply = await rejected(client, f"/stream/session/my-session/tcpproxy{quote(query, safe='?&=%')}")
    assert reply.status_code == 400
    assert list(reply.json()["data"]) == [field]
    assert not server.apps.started
