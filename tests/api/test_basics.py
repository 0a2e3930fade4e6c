"""What every request meets: common headers, CORS, early replies, probes, metrics, errors of ours."""

import json
import logging
from contextlib import suppress

import pytest
import trio

from backendai_mgr.api.context import RequestIdFilter, request_id
from backendai_mgr.api.limits import Limits
from backendai_mgr.domain.errors import (
    AgentFailed,
    Conflict,
    Forbidden,
    InsufficientPrivilege,
    NotFound,
    QuotaExceeded,
    SessionExists,
    TooManyMatches,
    Unavailable,
)
from backendai_mgr.services.ports import StoreUnavailable

from .harness import serving, signed_headers

PREFIX = "https://api.backend.ai/probs/"


async def test_version_and_announcement_are_public(server):
    async with server.client(auth=None) as anyone:
        reply = await anyone.get("/")
        assert reply.json() == {"version": "v6.20220315", "manager": "22.03.3"}
        assert (await anyone.get("/manager/announcement")).json() == {"enabled": False, "message": ""}


@pytest.mark.parametrize("path", ["/", "/nowhere", "/auth?echo=x", "/session/nobody", "/%ff"])
async def test_common_headers_of_every_reply(server, path):
    async with server.client(auth=None) as anyone:
        reply = await anyone.get(path)
    assert reply.headers.get_list("server") == ["BackendAI"]
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["access-control-expose-headers"] == "*"
    assert "access-control-allow-credentials" not in reply.headers
    assert len(reply.headers["x-request-id"]) == 16


async def test_preflight_needs_no_signature(server):
    asked = {
        "Origin": "https://console.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-backendai-version",
    }
    async with server.client(auth=None) as anyone:
        reply = await anyone.options("/session/abcd", headers=asked)
        assert reply.status_code == 200
        assert set(reply.headers["access-control-allow-methods"].split(", ")) >= {"GET", "POST", "DELETE"}
        assert reply.headers["access-control-allow-headers"] == "authorization,x-backendai-version"
        assert (await anyone.options("/nowhere", headers=asked)).status_code == 404
        plain = await anyone.options("/session/abcd")
        assert "access-control-allow-methods" not in plain.headers
        assert "DELETE" in plain.headers["allow"]


async def test_head_is_get_without_a_body(client):
    reply = await client.head("/auth?echo=x")
    assert reply.status_code == 200
    assert reply.content == b""
    assert int(reply.headers["content-length"]) > 0


# ---------------------------------------------------------------- bodies that are too large


async def exchange(stream, method, target, host, body, *, chunked=False, chunk=65536):
    """Send a request on a bare connection while reading; its status and headers."""
    headers = signed_headers(method, target, host, "application/json") | {
        "Host": host,
        "Content-Type": "application/json",
    }
    headers |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    await stream.send_all("\r\n".join([*lines, "", ""]).encode())
    for at in range(0, len(body), chunk):
        piece = body[at : at + chunk]
        await stream.send_all(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
    if chunked:
        await stream.send_all(b"0\r\n\r\n")
    received = b""
    while b"\r\n\r\n" not in received:
        piece = await stream.receive_some(65536)
        if not piece:
            return None, {}, b""
        received += piece
    head, _, rest = received.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    found = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    while len(rest) < int(found["content-length"]):
        rest += await stream.receive_some(65536)
    return int(status.split()[1]), found, rest


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("mebibytes", [2, 17, 40])
async def test_the_connection_lives_on_after_413(server, mebibytes, chunked):
    with trio.fail_after(20):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            body = b" " * (mebibytes << 20)
            status, headers, reply = await exchange(
                stream, "POST", "/session", server.host, body, chunked=chunked
            )
            assert status == 413
            assert json.loads(reply)["type"] == PREFIX + "generic-bad-request"
            assert headers.get("connection") != "close"
            status, _, _ = await exchange(stream, "POST", "/auth", server.host, b'{"echo": "x"}')
            assert status == 200


async def test_an_endless_body_is_cut_after_its_reply():
    limits = Limits(json_bytes=1000, code_body_bytes=2000, drain_bytes=1 << 20, drain_seconds=5)
    async with serving(limits) as server:
        with trio.fail_after(20):
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                head = f"POST /auth HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 1000000000\r\n\r\n"
                await stream.send_all(head.encode())
                with suppress(trio.BrokenResourceError):
                    while True:
                        await stream.send_all(b" " * 65536)


async def test_a_client_that_stalls_in_its_body_gets_its_refusal():
    async with serving(Limits(drain_seconds=0.2)) as server:
        with trio.fail_after(10):
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
                head = f"POST /auth HTTP/1.1\r\nHost: {server.host}\r\nContent-Length: 100\r\n\r\nabc"
                await stream.send_all(head.encode())
                received = b""
                while piece := await stream.receive_some(65536):
                    received += piece
        assert received.startswith(b"HTTP/1.1 400")
        assert b"connection: close" in received.lower()


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "?x"),
        ("OPTIONS", "*"),
        ("GET", "x"),
        ("CONNECT", "example.com:443"),
        ("GET", "http://"),
        ("GET", "http://example.com"),
        ("GET", "http://example.com/"),
        ("GET", "/\x7f"),
        ("GET", "/?\xff"),
    ],
)
async def test_strange_targets(server, method, target):
    with trio.fail_after(10):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1"))
            reply = await stream.receive_some(65536)
    status = int(reply.split()[1])
    assert status == (200 if target.startswith("http://") else 400)


@pytest.mark.parametrize("host", ["", "a b", "[::1", "\xff", "x" * 5000, "a,b", "xn--\x7f"])
async def test_strange_hosts(server, host):
    with trio.fail_after(10):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1"))
            reply = await stream.receive_some(65536)
    assert int(reply.split()[1]) in (200, 400)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("refusal", "status", "kind", "rest"),
    [
        (NotFound("environment image", "unknown alias"), 404, "object-not-found",
         {"title": "No such environment image.", "msg": "unknown alias"}),
        (SessionExists(data={"existingSessionId": "x"}), 400, "session-already-exists",
         {"title": "The session already exists but you requested not to reuse existing one.",
          "data": {"existingSessionId": "x"}}),
        (TooManyMatches(data={"matches": []}), 404, "too-many-sessions-matched",
         {"title": "Too many sessions matched.", "data": {"matches": []}}),
        (Forbidden("no"), 403, "generic-forbidden", {"title": "Forbidden operation.", "msg": "no"}),
        (InsufficientPrivilege("no"), 403, "insufficient-privilege",
         {"title": "Insufficient privilege.", "msg": "no"}),
        (QuotaExceeded("no"), 412, "quota-exceeded",
         {"title": "You have reached your resource limit.", "msg": "no"}),
        (Conflict("no"), 409, "conflict",
         {"title": "The present state does not allow this operation.", "msg": "no"}),
        (Unavailable("later", retry_after=7), 503, "service-unavailable",
         {"title": "Serivce unavailable.", "msg": "later"}),
        (StoreUnavailable(), 503, "service-unavailable",
         {"title": "Serivce unavailable.", "msg": "The database cannot be reached."}),
        (AgentFailed("create", "ValueError('x')"), 500, "kernel-creation-failed",
         {"title": "Kernel creation has failed.",
          "agent-details": {"type": PREFIX + "agent-failure", "title": "Agent-side exception occurred.",
                            "exception": "ValueError('x')"}}),
        (AgentFailed("destroy", timeout=True), 500, "kernel-destruction-failed",
         {"title": "Kernel destruction has failed.",
          "agent-details": {"type": PREFIX + "agent-timeout", "title": None}}),
        (ExceptionGroup("", [ExceptionGroup("", [Forbidden("no")])]), 403, "generic-forbidden",
         {"title": "Forbidden operation.", "msg": "no"}),
    ],
)  # fmt: skip
async def test_each_refusal(server, client, refusal, status, kind, rest):
    server.sessions.refusal = refusal
    reply = await client.post("/session", json={"name": "abcd", "image": "python"})
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.status_code == status
    assert reply.json() == {"type": PREFIX + kind, **rest}
    if status == 503:
        assert reply.headers["retry-after"] == ("7" if isinstance(refusal, Unavailable) else "2")


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("secret"), ExceptionGroup("", [Forbidden("no"), ValueError("secret")])]
)
async def test_a_bug_is_logged_and_not_told(server, client, caplog, errors_expected, error):
    server.sessions.refusal = error
    reply = await client.get("/session/my-session")
    assert reply.status_code == 500
    assert reply.json() == {"type": PREFIX + "internal-server-error", "title": "Internal server error."}
    logged = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(logged) == 1
    assert logged[0].exc_info
    assert (await client.get("/session/my-session")).status_code == 200


# ---------------------------------------------------------------- operations


async def test_a_draining_server_finishes_but_begins_nothing(server, client):
    assert (await client.put("/session/my-session/runs/r1", json={"code": "1"})).status_code == 201
    server.health.draining = True
    query = {"mode": "query", "code": "1", "runId": "r2"}
    for begun in (
        await client.post("/session", json={"name": "abcd", "image": "python"}),
        await client.post("/session/my-session", json=query),
        await client.put("/session/my-session/runs/r2", json={"code": "1"}),
    ):
        assert begun.status_code == 503
        assert begun.headers["retry-after"] == "2"
    again = await client.post("/session/my-session", json=query | {"mode": "continue", "runId": "r1"})
    assert again.status_code == 200
    assert (await client.get("/session/my-session/runs/r1")).status_code == 200


async def test_probes(server):
    async with server.client(auth=None) as anyone:
        assert (await anyone.get("/livez")).json() == {"live": True}
        assert (await anyone.get("/readyz")).json() == {"ready": True}
        assert (await anyone.get("/readyz?verbose")).json() == {"ready": True, "details": {"database": True}}
        server.health.wrong = {"database": "The database cannot be reached."}
        reply = await anyone.get("/readyz?verbose")
        assert reply.status_code == 503
        assert reply.json()["data"] == {"problems": server.health.wrong, "details": {"database": False}}
        assert (await anyone.get("/livez")).status_code == 200


async def test_metrics_are_by_route_and_bounded(server, client):
    for number in range(20):
        await client.get(f"/session/session-{number}")
        await client.get(f"/nowhere/{number}")
        await client.request(f"FLY{number}", "/auth")
    text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("backendai_http_requests_total")]
    assert 'backendai_http_requests_total{method="GET",route="/session/<ref>",status="404"} 20.0' in lines
    assert 'backendai_http_requests_total{method="GET",route="unmatched",status="404"} 20.0' in lines
    assert 'backendai_http_requests_total{method="other",route="unmatched",status="405"} 20.0' in lines
    assert len(lines) == 3
    assert "backendai_http_request_seconds_bucket" in text


async def test_open_websockets_are_counted(server, client):
    await client.put("/session/my-session/runs/r1", json={"code": "1"})
    route = "/stream/session/<name>/runs/<run_id>"

    def opened():
        return server.registry.get_sample_value("backendai_websockets_open", {"route": route})

    async with server.websocket("/stream/session/my-session/runs/r1"):
        await server.runs.runs["r1"].until(lambda: server.runs.runs["r1"].readers == 1)
        assert opened() == 1
    with trio.fail_after(5):
        await server.runs.runs["r1"].until(lambda: server.runs.runs["r1"].readers == 0)
        while opened():
            await client.get("/livez")


def test_log_records_carry_the_request_id():
    record = logging.LogRecord("x", logging.INFO, "", 0, "", (), None)
    token = request_id.set("abc")
    try:
        assert RequestIdFilter().filter(record)
    finally:
        request_id.reset(token)
    assert record.request == "abc"
