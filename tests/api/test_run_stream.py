"""The output websocket: every byte in order, slow and vanishing clients, stops, interrupts, garbage."""

import json
from contextlib import asynccontextmanager

import pytest
import trio
import trio_websocket
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from backendai_mgr.api.limits import Limits
from backendai_mgr.domain.errors import AgentFailed, Unavailable
from backendai_mgr.domain.status import RunState
from backendai_mgr.wire.records import from_json

from .harness import serving, signed_headers

TARGET = "/stream/session/my-session/runs/r1"
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


@asynccontextmanager
async def followed(server, target=TARGET):
    with trio.fail_after(20):
        async with server.websocket(target) as socket:
            yield socket


async def start(server, client, code="x"):
    reply = await client.put("/session/my-session/runs/r1", json={"code": code})
    assert reply.status_code == 201, reply.text
    return server.runs.runs["r1"]


async def read_all(socket):
    """Every record until the end, and the last frame."""
    records, next_offset = [], None
    while True:
        frame = json.loads(await socket.get_message())
        if "finished" in frame:
            return records, next_offset, frame
        records += map(from_json, frame["records"])
        next_offset = frame["next_offset"]


async def closed(socket):
    """How the server closed, after everything that it still sent."""
    while True:
        try:
            await socket.get_message()
        except trio_websocket.ConnectionClosed as end:
            return end.reason


async def test_output_as_it_comes_then_the_end(server, client):
    run = await start(server, client)
    async with followed(server) as socket:
        run.write(b"one\n")
        assert json.loads(await socket.get_message()) == {
            "records": [{"offset": 0, "time": 1.0, "stream": "stdout", "data": "one\n"}],
            "next_offset": 4,
        }
        run.write("zwei ä\n".encode(), "stderr")
        run.end(RunState.FINISHED, 3, "")
        records, next_offset, last = await read_all(socket)
        assert [(r.stream, r.data) for r in records] == [("stderr", "zwei ä\n".encode())]
        assert next_offset == run.status.end_offset
        assert last == {"finished": True, "state": "finished", "exit_code": 3, "reason": ""}
        assert (await closed(socket)).code == 1000


@pytest.mark.parametrize("offset", [0, 1, 5, 6, 11])
async def test_any_offset_is_a_beginning(server, client, offset):
    run = await start(server, client)
    run.write(b"hello ")
    run.write(b"world")
    run.end()
    async with followed(server, f"{TARGET}?offset={offset}") as socket:
        records, _, _ = await read_all(socket)
    assert b"".join(r.data for r in records) == b"hello world"[offset:]
    assert all(r.offset >= offset for r in records)


async def test_some_streams_only(server, client):
    run = await start(server, client)
    for stream in ("stdout", "html", "stderr", "stdout"):
        run.write(stream.encode(), stream)
    run.end()
    async with followed(server, f"{TARGET}?stream=html,stderr") as socket:
        records, next_offset, _ = await read_all(socket)
    assert [(r.offset, r.stream) for r in records] == [(6, "html"), (10, "stderr")]
    assert next_offset == 22


async def test_small_writes_share_frames(server, client):
    run = await start(server, client)
    for number in range(1000):
        run.write(b"%03d\n" % number)
    run.end()
    frames = 0
    async with followed(server) as socket:
        while "finished" not in json.loads(await socket.get_message()):
            frames += 1
    assert frames < 100


async def test_a_character_split_between_writes_comes_out_whole(server, client):
    run = await start(server, client)
    sign = "€".encode()
    async with followed(server) as socket:
        run.write(b"a" + sign[:1])
        assert json.loads(await socket.get_message())["next_offset"] == 1
        run.write(sign[1:] + b"b")
        frame = json.loads(await socket.get_message())
        assert [r["data"] for r in frame["records"]] == ["€b"]
        run.end()
        await read_all(socket)


async def test_a_character_that_stays_broken_is_not_lost(server, client):
    run = await start(server, client)
    run.write(b"a\xe2\x82")
    run.end()
    async with followed(server) as socket:
        records, next_offset, _ = await read_all(socket)
    assert b"".join(r.data for r in records) == b"a\xe2\x82"
    assert next_offset == 3


async def test_the_client_interrupts(server, client):
    run = await start(server, client)
    async with followed(server) as socket:
        await socket.send_message('{"interrupt": true}')
        _, _, last = await read_all(socket)
    assert run.interrupts == 1
    assert (last["state"], last["exit_code"]) == ("cancelled", 130)


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("nonsense", 1007),
        ("", 1007),
        (b"\x00\xff", 1007),
        (b"", 1007),
        ("[" * 100_000, 1007),
        ("null", 1007),
        ("[]", 1008),
        ('{"interrupt": false}', 1008),
        ('{"interrupt": true, "more": 1}', 1008),
        ('{"interrupt": 1}', 1008),
        ('{"stdin": "x"}', 1008),
        ('{"input": 1}', 1008),
        ('{"input": "x", "offset": -1}', 1008),
        ('{"input": "x", "offset": true}', 1008),
        ('{"input": "x", "more": 1}', 1008),
        ('{"ack": "x"}', 1008),
    ],
)
async def test_garbage_closes_with_a_reason(server, client, frame, code):
    run = await start(server, client)
    async with followed(server) as socket:
        await socket.send_message(frame)
        reason = await closed(socket)
    assert reason.code == code
    assert reason.reason
    assert run.interrupts == 0
    assert (await client.get("/auth?echo=still")).status_code == 200


async def shaken_hands(server, target=TARGET):
    """A bare connection whose handshake was accepted and that reads nothing more."""
    headers = signed_headers("GET", target, server.host) | HANDSHAKE | {"Host": server.host}
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    await stream.send_all("\r\n".join([*lines, "", ""]).encode())
    assert b" 101 " in await stream.receive_some(4096)
    return stream


async def stalled(run, client):
    """Wait until the stream's client takes nothing more. TCP itself pauses for a fifth of a second at times,
    so only a longer silence counts; other requests measure it."""
    await run.until(lambda: run.readers == 1)
    before, since = -1, trio.current_time()
    while trio.current_time() - since < 0.5:
        if run.handed_out != before:
            before, since = run.handed_out, trio.current_time()
        await client.get("/livez")


async def rejected(client, target):
    """The reply to a handshake that is not accepted."""
    return await client.get(target, headers=HANDSHAKE)


async def test_a_vanished_client_releases_the_stream(server, client):
    run = await start(server, client)
    with trio.fail_after(10):
        stream = await shaken_hands(server)
        await run.until(lambda: run.readers == 1)
        await stream.aclose()
        await run.until(lambda: run.readers == 0)
    assert run.interrupts == 0
    assert (await client.get("/auth?echo=still")).status_code == 200


async def test_a_client_that_reads_nothing_hurts_nobody_and_is_cut():
    async with serving(Limits(send_seconds=1)) as server, server.client() as client:
        run = await start(server, client)
        with trio.fail_after(30):
            async with await shaken_hands(server):
                for _ in range(400):
                    run.write(b"x" * 65536)
                await stalled(run, client)
                assert (await client.get("/auth?echo=meanwhile")).status_code == 200
                await run.until(lambda: run.readers == 0)
        run.end()
        async with followed(server) as socket:
            records, _, _ = await read_all(socket)
        assert sum(len(r.data) for r in records) == 400 * 65536


async def test_a_client_that_answers_no_ping_is_cut_and_one_that_does_is_not():
    async with serving(Limits(ping_seconds=0.1)) as server, server.client() as client:
        run = await start(server, client)
        with trio.fail_after(10):
            async with followed(server) as alive, await shaken_hands(server) as silent:
                while await silent.receive_some(4096):
                    pass
                run.write(b"still here")
                assert json.loads(await alive.get_message())["records"][0]["data"] == "still here"


async def test_an_error_does_not_hang_on_a_client_that_reads_nothing():
    async with serving(Limits(send_seconds=2)) as server, server.client() as client:
        run = await start(server, client)
        async with await shaken_hands(server) as stream:
            for _ in range(400):
                run.write(b"x" * 65536)
            with trio.fail_after(10):
                await stalled(run, client)
                websocket = Connection(ConnectionType.CLIENT)
                server.sessions.sessions.clear()  # what the interrupt is refused for
                await stream.send_all(websocket.send(TextMessage('{"interrupt": true}')))
                await run.until(lambda: run.readers == 0)


async def test_a_slow_client_gets_everything(server, client):
    run = await start(server, client)
    for number in range(200):
        run.write(bytes([number % 100]) * 65536)
    run.end()
    with trio.fail_after(30):
        async with followed(server) as socket:
            seen, expected = 0, 0
            while True:
                frame = json.loads(await socket.get_message())
                if "finished" in frame:
                    break
                for record in map(from_json, frame["records"]):
                    assert record.offset == expected
                    expected += len(record.data)
                    seen += len(record.data)
    assert seen == 200 * 65536


async def test_a_stopping_server_closes_resumably(server, client):
    run = await start(server, client)
    run.write(b"before")
    async with followed(server) as socket:
        next_offset = json.loads(await socket.get_message())["next_offset"]
        server.health.stopping.set()
        reason = await closed(socket)
    assert reason.code == 1001
    assert next_offset == 6
    assert run.interrupts == 0


async def test_output_that_comes_while_the_server_says_goodbye_is_no_error(server, client):
    run = await start(server, client)
    with trio.fail_after(10):
        async with await shaken_hands(server) as stream:
            for _ in range(200):
                run.write(b"x" * 65536)
            await stalled(run, client)
            server.health.stopping.set()
            while await stream.receive_some(65536):
                pass
    await run.until(lambda: run.readers == 0)


async def test_a_stopping_server_does_not_wait_for_a_client_that_reads_nothing():
    async with serving(Limits(close_seconds=0.3)) as server, server.client() as client:
        run = await start(server, client)
        async with await shaken_hands(server):
            for _ in range(400):
                run.write(b"x" * 65536)
            with trio.fail_after(10):
                await stalled(run, client)
                server.health.stopping.set()
                await run.until(lambda: run.readers == 0)


@pytest.mark.parametrize(
    ("target", "status", "kind", "field"),
    [
        ("/stream/session/my-session/runs/none", 404, "object-not-found", None),
        ("/stream/session/nobody/runs/r1", 404, "object-not-found", None),
        (TARGET + "?offset=7", 400, "invalid-api-params", "offset"),
        (TARGET + "?offset=-1", 400, "invalid-api-params", "offset"),
        (TARGET + "?offset=x", 400, "invalid-api-params", "offset"),
        (TARGET + "?ofset=1", 400, "invalid-api-params", "ofset"),
        ("/stream/session/my-session/nowhere", 404, "url-not-found", None),
        ("/session/my-session", 400, "generic-bad-request", None),
    ],
)
async def test_errors_before_the_upgrade_are_problems(server, client, target, status, kind, field):
    run = await start(server, client)
    run.write(b"abc")
    run.end()
    reply = await rejected(client, target)
    problem = reply.json()
    assert reply.status_code == status
    assert problem["type"] == f"https://api.backend.ai/probs/{kind}"
    assert field is None or field in problem["data"]


async def test_a_wrong_signature_is_refused_before_the_upgrade(server):
    headers = signed_headers("GET", TARGET, server.host, secret="other")
    async with server.client(auth=None, headers=headers) as client:
        reply = await rejected(client, TARGET)
    assert reply.status_code == 401
    assert reply.json()["msg"] == "Signature mismatch"


@pytest.mark.parametrize(
    ("refusal", "code", "reason"),
    [
        (Unavailable("The agent is gone."), 1011, "The agent is gone."),
        (AgentFailed("execute", "boom"), 1011, "Executing user code in the kernel has failed."),
    ],
)
async def test_a_failure_on_the_way_closes_with_its_reason(server, client, refusal, code, reason):
    run = await start(server, client)
    async with followed(server) as socket:
        await run.until(lambda: run.readers == 1)
        server.runs.refusal = refusal
        run.write(b"x")
        close = await closed(socket)
    assert (close.code, close.reason) == (code, reason)


async def test_an_unexpected_error_closes_without_details(server, client, errors_expected):
    run = await start(server, client)
    async with followed(server) as socket:
        await run.until(lambda: run.readers == 1)
        server.runs.refusal = ZeroDivisionError("secret")
        run.write(b"x")
        close = await closed(socket)
    assert close.code == 1011
    assert "secret" not in close.reason


async def test_a_draining_server_takes_no_new_streams(server, client):
    await start(server, client)
    server.health.draining = True
    reply = await rejected(client, TARGET)
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "2"
