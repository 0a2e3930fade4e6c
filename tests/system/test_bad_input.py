"""Whatever comes in, the running program answers with a clear problem or drops it, and goes on working."""

import os
import re
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import msgpack
import pytest
import trio
import zmq
from trio_websocket import open_websocket_url

from .harness import Up
from .http import Http, send_raw

pytestmark = pytest.mark.system

CREATE = {"name": "bad-input", "image": "python"}


@pytest.fixture(scope="module")
def http(shared_up: Up) -> Iterator[Http]:
    http = Http(shared_up.said)
    reply = http.call("POST", "/session", body=CREATE)
    assert reply.status_code == 201, reply.text
    yield http
    http.call("DELETE", "/session/bad-input")
    http.close()


@pytest.fixture(autouse=True)
def unharmed(shared_up: Up, http: Http) -> Iterator[None]:
    """After each fault a good request works, and neither a 500 nor a traceback was logged."""
    before = shared_up.log.stat().st_size
    yield
    assert http.call("GET", "/auth?echo=fine").json() == {"authorized": "yes", "echo": "fine"}
    body = {"mode": "query", "runId": None, "code": "print(6 * 7)"}
    result = http.call("POST", "/session/bad-input", body=body).json()["result"]
    assert result["console"] == [["stdout", "42\n"]]
    with shared_up.log.open() as log:
        log.seek(before)
        said = log.read()
    assert "Traceback" not in said
    assert " ERROR " not in said


def refused(reply: Any, status: int, kind: str, field: str | None = None) -> None:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"].startswith("application/problem+json")
    problem = reply.json()
    assert problem["type"] == f"https://api.backend.ai/probs/{kind}"
    assert problem["title"]
    if field is not None:
        assert field in problem["data"], problem


RUN = "/session/bad-input/runs/r1"
FILES = "/session/bad-input/files/"


def resources(**slots: Any) -> dict[str, Any]:
    return NEW | {"config": {"resources": slots}}


NEW = CREATE | {"name": "another-name"}
#: What only the services and the agent can judge; the rest is in tests/api/badinput.
WRONG = [
    ("POST", "/session", {"image": "python"}, "name"),
    ("POST", "/session", NEW | {"group": "nobodys"}, "group"),
    ("POST", "/session", NEW | {"domain": "nobodys"}, "domain"),
    ("POST", "/session", NEW | {"owner_access_key": "NOBODY"}, "owner_access_key"),
    ("POST", "/session", NEW | {"starts_at": "soon"}, "starts_at"),
    ("POST", "/session", NEW | {"dependencies": ["no-such-session"]}, "dependencies"),
    ("POST", "/session", resources(cpu="NaN"), "config.resources.cpu"),
    ("POST", "/session", resources(cpu="-1"), "config.resources.cpu"),
    ("POST", "/session", resources(cpu=[1]), "config.resources.cpu"),
    ("POST", "/session", resources(mem="1e999999"), "config.resources.mem"),
    ("POST", "/session", resources(mem="1 parsec"), "config.resources.mem"),
    ("POST", "/session", resources(unobtainium=1), "config.resources.unobtainium"),
    ("PUT", "/session/bad-input/runs/" + "x" * 65, {"code": "x"}, "run_id"),
    ("PUT", "/session/bad-input/runs/..%5c..", {"code": "x"}, "run_id"),
    ("GET", "/sessions?after=garbage", None, "after"),
    ("GET", FILES + "%2e%2e", None, "path"),
    ("GET", FILES + "%2e%2e/%2e%2e/etc/passwd", None, "path"),
    ("GET", FILES + "a/%2e%2e/%2e%2e/etc/passwd", None, "path"),
    ("GET", FILES + "x" * 5000, None, "path"),
    ("GET", FILES + "x/" * 2000 + "x", None, "path"),
    ("PUT", FILES + "..%2f..%2fstolen", "x", "path"),
    ("PUT", FILES + "%2e%2e", "x", "path"),
    ("PUT", FILES + "x" * 300, "x", "path"),
    ("POST", "/session/bad-input/download", {"files": ["../../etc/passwd"]}, "path"),
    ("POST", "/session/bad-input/download_single", {"file": "/etc/passwd"}, "path"),
    ("GET", "/session/bad-input/files", {"path": "../.."}, "path"),
]


@pytest.mark.parametrize(("method", "target", "body", "field"), WRONG)
def test_a_wrong_parameter_is_named(http: Http, method: str, target: str, body: Any, field: str) -> None:
    refused(http.call(method, target, body=body), 400, "invalid-api-params", field)


@pytest.mark.parametrize(
    "changes", [{"image": "no-such"}, {"image": "a/b/c:d:e@f"}, {"config": {"scaling_group": "nowhere"}}]
)
def test_what_a_session_would_need_is_not_there(http: Http, changes: dict[str, Any]) -> None:
    refused(http.call("POST", "/session", body=NEW | changes), 404, "object-not-found")


@pytest.mark.parametrize("name", ["../stolen", "..%2fstolen", "/etc/stolen", "a/../../stolen", ".."])
def test_an_uploaded_file_goes_nowhere_else(http: Http, name: str) -> None:
    target = "/session/bad-input/upload"
    kind = "multipart/form-data"
    headers = http.headers("POST", target, content_type=kind) | {"Content-Type": f"{kind}; boundary=b"}
    wrong = 400, "invalid-api-params", "path"
    form = f'--b\r\nContent-Disposition: form-data; name="src"; filename="{name}"\r\n\r\nx\r\n--b--\r\n'
    refused(http.client.post(target, headers=headers, content=form.encode()), *wrong)


def test_a_body_that_is_too_large_is_refused_and_the_connection_goes_on(http: Http) -> None:
    reply = http.call("POST", "/session", raw=b'{"name": "' + b"x" * (2 << 20) + b'"}')
    assert reply.status_code == 413
    assert reply.headers["content-type"].startswith("application/problem+json")


@pytest.mark.parametrize(
    ("method", "target", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "url-not-found"),
        ("GET", "/session/../../etc/passwd", 404, "url-not-found"),
        ("GET", "/session/%2e%2e%2f%2e%2e%2fetc", 404, "url-not-found"),
        ("GET", "/session/nobody", 404, "object-not-found"),
        ("GET", "/session/%00", 400, "invalid-api-params"),
        ("GET", "/session/" + "x" * 3000, 404, "object-not-found"),
        ("GET", "/session/%25%5f_%5c", 404, "object-not-found"),
        ("GET", "/session/bad-input/runs/never", 404, "object-not-found"),
        ("GET", "/session/bad-input/runs/%2e%2e", 404, "object-not-found"),
        ("GET", "/session/bad-input/runs/never/output", 404, "object-not-found"),
        ("PUT", "/session/nobody/runs/r1", 404, "object-not-found"),
        ("GET", FILES + "never", 404, "object-not-found"),
        ("PATCH", "/sessions", 405, "method-not-allowed"),
        ("DELETE", "/", 405, "method-not-allowed"),
    ],
)
def test_what_is_not_there_is_told(http: Http, method: str, target: str, status: int, kind: str) -> None:
    body = {"mode": "query", "code": "1"} if method == "PUT" else None
    refused(http.call(method, target, body=body), status, kind)


@pytest.mark.parametrize("query", ["offset=4611686018427387904", "length=4611686018427387904", "offset=9"])
def test_a_file_may_be_read_far_behind_its_end(http: Http, query: str) -> None:
    assert http.call("PUT", FILES + "short", raw=b"x").is_success
    reply = http.call("GET", f"{FILES}short?{query}")
    assert (reply.status_code, reply.content) == (200, b"x" if query.startswith("length") else b"")


def changed(**changes: str | None) -> Any:
    def change(http: Http, headers: dict[str, str]) -> dict[str, str]:
        return {k: v for k, v in (headers | changes).items() if v is not None}

    return change


def dated(date: str | timedelta) -> Any:
    """Signed at that date, or so long ago at the time of the request."""

    def change(http: Http, headers: dict[str, str]) -> dict[str, str]:
        text = date if isinstance(date, str) else (datetime.now(UTC) - date).isoformat()
        return http.headers("GET", "/auth?echo=x", date=text)

    return change


AUTH = [
    (changed(Authorization=None), 401, "auth-failed"),
    (changed(Authorization="Nonsense"), 400, "invalid-auth-params"),
    (changed(Authorization="Basic dXNlcjpwYXNz"), 400, "invalid-auth-params"),
    (changed(Authorization="BackendAI signMethod=HMAC-SHA256"), 400, "invalid-auth-params"),
    (changed(Authorization="BackendAI signMethod, credential=a:b"), 400, "invalid-auth-params"),
    (changed(Authorization="BackendAI signMethod=HMAC-SHA256, credential=NOBODY:00"), 401, "auth-failed"),
    (lambda http, headers: http.headers("GET", "/auth?echo=x", secret_key="wrong"), 401, "auth-failed"),
    (lambda http, headers: http.headers("GET", "/auth?echo=y"), 401, "auth-failed"),
    (lambda http, headers: http.headers("POST", "/auth?echo=x"), 401, "auth-failed"),
    (dated("yesterday"), 400, "invalid-auth-params"),
    (dated(timedelta(minutes=16)), 400, "invalid-auth-params"),
    (dated(timedelta(minutes=-16)), 400, "invalid-auth-params"),
    (changed(Date=None), 400, "invalid-auth-params"),
    (changed(**{"X-BackendAI-Version": "v1.20160915"}), 400, "generic-bad-request"),
    (changed(**{"X-BackendAI-Version": "latest"}), 400, "generic-bad-request"),
]


@pytest.mark.parametrize(("change", "status", "kind"), AUTH)
def test_who_cannot_prove_who_they_are_is_refused(http: Http, change: Any, status: int, kind: str) -> None:
    headers = change(http, http.headers("GET", "/auth?echo=x"))
    refused(http.client.get("/auth?echo=x", headers=headers), status, kind)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 1000,
        os.urandom(4096),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"POST /session HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /session HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /stream/session/bad-input/execute HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
    ],
)
def test_bytes_that_are_no_request_are_refused_or_dropped(http: Http, data: bytes) -> None:
    host, _, port = http.host.rpartition(":")
    answer = send_raw((host, int(port)), data)
    assert not re.match(rb"HTTP/1.1 (5|2)\d\d", answer) or data.startswith(b"GET / HTTP/1.1\r\n\r\n")


def agent_address(up: Up) -> str:
    config = tomllib.loads((up.data_dir / "etc" / "manager.toml").read_text())
    return str(config["local"]["agent-addr"])


@pytest.mark.parametrize(
    "data", [b"\x00" * 100, os.urandom(8192), b"GET / HTTP/1.1\r\n\r\n", b"\xff" + b"\x00" * 63]
)
def test_garbage_on_the_agents_port_is_dropped(shared_up: Up, data: bytes) -> None:
    host, _, port = agent_address(shared_up).rpartition(":")
    send_raw((host, int(port)), data, seconds=1)


GARBAGE_FRAMES = [
    [b""],
    [b"UPPER"],
    [b"UPPER", b"", b""],
    [b"UPPER", b"\xc1", b"\xc1"],
    [b"UPPER", os.urandom(64), os.urandom(64)],
    [b"UPPER", msgpack.packb({"type": 99, "meth": "x", "okey": "", "seq": 1, "zip": False}), b"\x80"],
    [b"EVENTS", b""],
    [b"EVENTS", msgpack.packb({"op": "subscribe", "epoch": "high", "owner": 5})],
    [b"EVENTS", msgpack.packb({"op": "ack", "epoch": 1, "seq": 1, "ended": "all"})],
    [b"STREAM", msgpack.packb({"op": "open", "sid": 1})],
    [b"STREAM", msgpack.packb({"op": "credit", "sid": 7, "bytes": -1})],
    [b"WHATEVER", b"x"],
    [b"x"] * 50,
]


def test_garbage_frames_to_the_agent_are_dropped(shared_up: Up) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.connect(f"tcp://{agent_address(shared_up)}")
        for frames in GARBAGE_FRAMES:
            dealer.send_multipart(frames)
        dealer.send_multipart([b"PING", b"still", b"there"])
        while True:
            assert dealer.poll(5000), "the agent does not answer any more"
            if dealer.recv_multipart() == [b"PONG", b"still", b"there"]:
                break


async def _websocket(http: Http, target: str, first: str | bytes) -> tuple[list[str], int]:
    """What a websocket answers to one frame, and the code that it closes with."""
    content_type = "application/octet-stream"
    headers = http.headers("GET", target, content_type=content_type)
    del headers["Content-Type"]
    extra = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    url = http.endpoint.replace("http", "ws") + target
    frames = []
    with trio.fail_after(20):
        async with open_websocket_url(url, extra_headers=extra) as websocket:
            await websocket.send_message(first)
            try:
                while True:
                    frames.append(await websocket.get_message())
            except Exception as error:
                closed = getattr(error, "reason", None)
            await trio.aclose_forcefully(websocket._stream)
    return frames, closed.code if closed else 0


@pytest.mark.parametrize(
    "first",
    [
        "",
        "{",
        "[]",
        "null",
        '{"mode": null}',
        '{"mode": "dance", "code": "1"}',
        '{"code": 1}',
        b"\x00\xff",
    ],
)
async def test_a_legacy_stream_tells_what_is_wrong_and_closes(http: Http, first: str | bytes) -> None:
    frames, _ = await _websocket(http, "/stream/session/bad-input/execute", first)
    assert len(frames) == 1
    assert '"error"' in frames[0]


@pytest.mark.parametrize("first", ["", "{", "[]", '{"dance": true}', b"\x00\xff"])
async def test_a_run_stream_closes_on_garbage_and_the_run_goes_on(http: Http, first: str | bytes) -> None:
    body = {"mode": "query", "code": "import time\nwhile True: time.sleep(0.1)"}
    run = f"/session/bad-input/runs/{uuid4()}"
    assert http.call("PUT", run, body=body).status_code == 201
    _, code = await _websocket(http, f"/stream{run}", first)
    assert code in (1007, 1008)
    assert http.call("GET", run).json()["state"] == "running"
    http.call("POST", f"{run}/interrupt")
    assert http.call("GET", f"{run}/output?wait=20&offset=0").json()["records"]


def test_a_websocket_is_refused_before_it_opens(http: Http) -> None:
    target = "/stream/session/bad-input/execute"
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    url = http.endpoint + target  # a connection for each, since an upgrade takes the whole of it
    refused(httpx.get(url, headers=upgrade), 400, "invalid-auth-params")
    headers = http.headers("GET", target, secret_key="wrong")
    refused(httpx.get(url, headers=headers | upgrade), 401, "auth-failed")
