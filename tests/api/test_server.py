"""The server below the application: every wait ends, every buffer has a bound, nobody waits for another."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import httpx
import pytest
import trio
import trio_websocket
from prometheus_client import CollectorRegistry

from backendai_mgr.api.front import Front
from backendai_mgr.api.limits import Limits
from backendai_mgr.api.metrics import Metrics
from backendai_mgr.api.server.serving import open_listener, serve_http

from .harness import serving, signed_headers

SOON = 10
HELLO = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HANDSHAKE = HELLO[:-2] + (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def respond(send, status=200, body=b"ok"):
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def running(app, limits=None, *, tls=None, drain_timeout=0.2) -> AsyncIterator[int]:
    """Serve an ASGI application on the port that the block gets. Its end is in time, whatever clients do."""
    limits = limits or Limits()
    listener = open_listener("127.0.0.1", 0)
    stop = trio.Event()

    async def with_lifespan(scope, receive, send):
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    front = Front(with_lifespan, Metrics(CollectorRegistry()), limits)
    serve = partial(
        serve_http, front, listener, limits=limits, stop=stop, tls=tls, drain_timeout=drain_timeout
    )
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(serve)
            yield listener.getsockname()[1]
            nursery.cancel_scope.deadline = trio.current_time() + SOON
            stop.set()
    assert not nursery.cancel_scope.cancelled_caught


async def hello(scope, receive, send):
    """Greets every request and never reads from a websocket."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await trio.sleep_forever()
    await respond(send)


async def fill(send):
    while True:
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})


async def greeted(stream):
    """Send a request on a connection and see the reply."""
    await stream.send_all(HELLO)
    assert (await stream.receive_some(65536)).endswith(b"ok")


class Held:
    """Requests wait in it until they are let go."""

    def __init__(self):
        self.entered, self.release = trio.Event(), trio.Event()

    async def __call__(self, scope, receive, send):
        self.entered.set()
        await self.release.wait()
        await respond(send)


async def connect(port):
    return await trio.open_tcp_stream("127.0.0.1", port)


async def reply(stream):
    """(status, headers and body) of all that comes until the server closes."""
    received = b""
    while piece := await stream.receive_some(65536):
        received += piece
    return int(received.split()[1]), received


async def ask(port):
    """A whole exchange on a connection of its own: its status."""
    async with await connect(port) as stream:
        await stream.send_all(HELLO)
        return int((await stream.receive_some(65536)).split()[1])


# ---------------------------------------------------------------- clients that are slow


@pytest.mark.parametrize("head", [b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b"])
async def test_a_head_that_does_not_come_is_told_so(head):
    async with running(hello, Limits(head_seconds=0.3)) as port, await connect(port) as stream:
        await stream.send_all(head)
        status, text = await reply(stream)
    assert status == 408
    assert json.loads(text.partition(b"\r\n\r\n")[2])["msg"] == "The request's head did not come in time."


async def test_a_head_that_dribbles_does_not_buy_time():
    async def dribble(stream):
        await stream.send_all(b"GET / HTTP/1.1\r\nX-A: ")
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"b")
                await trio.sleep(0.05)  # the pace of the client

    async with (
        running(hello, Limits(head_seconds=0.5)) as port,
        await connect(port) as stream,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(dribble, stream)
        status, _ = await reply(stream)
        nursery.cancel_scope.cancel()
    assert status == 408


async def test_a_second_request_on_the_connection_is_timed_as_the_first():
    async with (
        running(hello, Limits(head_seconds=0.3, keep_alive_seconds=60)) as port,
        await connect(port) as stream,
    ):
        await greeted(stream)
        await stream.send_all(HELLO[:9])
        status, _ = await reply(stream)
    assert status == 408


@pytest.mark.parametrize("first", [b"", HELLO])
async def test_an_idle_connection_is_closed_without_a_word(first):
    async with (
        running(hello, Limits(head_seconds=0.2, keep_alive_seconds=0.2)) as port,
        await connect(port) as stream,
    ):
        if first:
            await stream.send_all(first)
            assert (await stream.receive_some(65536)).endswith(b"ok")
        assert await stream.receive_some(65536) == b""


async def test_a_body_that_does_not_come_is_told_so():
    async with serving(Limits(body_seconds=0.3, drain_seconds=0.1)) as server:
        fields = signed_headers("POST", "/auth", server.host, "application/json") | {
            "Host": server.host,
            "Content-Type": "application/json",
            "Content-Length": "20",
        }
        lines = ["POST /auth HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        with trio.fail_after(SOON):
            async with await connect(server.port) as stream:
                await stream.send_all("\r\n".join([*lines, "", '{"echo": ']).encode())
                status, text = await reply(stream)
    assert status == 408
    assert json.loads(text.partition(b"\r\n\r\n")[2])["msg"] == "The request body did not come."


async def test_a_client_that_reads_nothing_is_cut():
    told = trio.Event()

    async def flood(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fill, send)
            while (await receive())["type"] != "http.disconnect":
                pass
            told.set()
            nursery.cancel_scope.cancel()

    async with running(flood, Limits(send_seconds=0.3)) as port, await connect(port) as stream:
        await stream.send_all(HELLO)
        await told.wait()


async def test_a_client_that_reads_nothing_does_not_hold_up_a_stop():
    async def flood(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await fill(send)

    async with running(flood) as port:
        stream = await connect(port)
        await stream.send_all(HELLO)
        await stream.receive_some(1)
    await stream.aclose()


async def test_who_sends_to_a_client_that_left_lets_others_have_their_turn():
    left = trio.Event()

    async def endless(scope, receive, send):
        if scope["type"] == "http":
            await respond(send)
            return
        await send({"type": "websocket.accept"})
        await receive()
        while (await receive())["type"] != "websocket.disconnect":
            pass
        left.set()
        while True:  # as a handler does that has not heard of it yet
            await send({"type": "websocket.send", "text": "x"})

    async with running(endless) as port:
        async with trio_websocket.open_websocket_url(f"ws://127.0.0.1:{port}/") as socket:
            await socket._stream.aclose()
        await left.wait()
        with trio.fail_after(SOON):
            assert await ask(port) == 200


async def test_a_reply_that_breaks_off_is_not_taken_for_whole():
    async def broken(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async with running(broken) as port, httpx.AsyncClient(trust_env=False) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(f"http://127.0.0.1:{port}/")


# ---------------------------------------------------------------- clients that are many


async def test_an_idle_connection_gives_way_to_a_new_one():
    async with (
        running(hello, Limits(connections=2)) as port,
        await connect(port) as oldest,
        await connect(port) as newer,
    ):
        for stream in (oldest, newer):
            await greeted(stream)
        assert await ask(port) == 200
        assert await oldest.receive_some(65536) == b""
        await greeted(newer)


async def test_one_connection_too_many_is_told_so():
    held = Held()
    async with running(held, Limits(connections=1)) as port, await connect(port) as busy:
        await busy.send_all(HELLO)
        await held.entered.wait()
        async with await connect(port) as refused:
            await refused.send_all(HELLO)
            status, text = await reply(refused)
        held.release.set()
        assert (await busy.receive_some(65536)).endswith(b"ok")
    assert status == 503
    assert b"\r\nretry-after: 1\r\n" in text
    assert json.loads(text.partition(b"\r\n\r\n")[2])["msg"] == "Too many clients are connected."


async def test_one_request_too_many_is_told_so_and_its_connection_lives_on():
    held = Held()
    async with (
        running(held, Limits(requests=1)) as port,
        await connect(port) as busy,
        await connect(port) as other,
    ):
        await busy.send_all(HELLO)
        await held.entered.wait()
        await other.send_all(HELLO)
        refused = await other.receive_some(65536)
        held.release.set()
        assert (await busy.receive_some(65536)).endswith(b"ok")
        await greeted(other)
    assert refused.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in refused


async def test_one_websocket_too_many_is_told_so():
    async with (
        running(hello, Limits(websockets=1)) as port,
        await connect(port) as first,
        await connect(port) as second,
    ):
        await first.send_all(HANDSHAKE)
        assert (await first.receive_some(65536)).startswith(b"HTTP/1.1 101")
        await second.send_all(HANDSHAKE)
        assert (await second.receive_some(65536)).startswith(b"HTTP/1.1 503")
        assert await ask(port) == 200


# ---------------------------------------------------------------- what is too long


async def test_a_head_that_is_too_long():
    async with running(hello, Limits(head_bytes=2000)) as port:
        async with await connect(port) as stream:
            await stream.send_all(HELLO[:-2] + b"X-A: " + b"b" * 2500 + b"\r\n\r\n")
            whole = await stream.receive_some(65536)
            await greeted(stream)
        async with await connect(port) as stream:
            await stream.send_all(HELLO[:-2] + b"X-A: " + b"b" * 2500)
            status, _ = await reply(stream)
    assert whole.startswith(b"HTTP/1.1 431")
    assert json.loads(whole.partition(b"\r\n\r\n")[2])["msg"].startswith("The request's line and headers")
    assert status == 431


async def test_a_websocket_message_that_is_too_long():
    async with (
        running(hello, Limits(message_bytes=1000)) as port,
        trio_websocket.open_websocket_url(f"ws://127.0.0.1:{port}/") as socket,
    ):
        await socket.send_message("x" * 1001)
        with pytest.raises(trio_websocket.ConnectionClosed) as closed:
            await socket.get_message()
        await trio.aclose_forcefully(socket._stream)  # the library leaves it open
    assert closed.value.reason.code == 1009
