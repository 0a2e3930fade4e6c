"""HTTP/2: the authority is the host, and a websocket by extended CONNECT is signed as GET."""

import json
import ssl
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import pytest
import trio
import trustme
import wsproto.connection
import wsproto.events
from h2.errors import ErrorCodes

from backendai_mgr.api.limits import Limits
from backendai_mgr.api.server.tls import server_context

from .harness import serving, signed_headers
from .test_server import connect, fill, respond, running

TARGET = "/stream/session/my-session/runs/r1"


async def test_a_signed_request():
    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.tempfile() as pem:
        async with (
            serving(tls=server_context(Path(pem), Path(pem))) as server,
            server.client(http2=True, verify=context) as client,
        ):
            reply = await client.get("/auth?echo=x")
            assert reply.http_version == "HTTP/2"
            assert reply.status_code == 200, reply.text
            assert (await client.post("/session", content=b" " * (2 << 20))).status_code == 413
            assert (await client.get("/auth?echo=x")).status_code == 200


class Client:
    """One HTTP/2 connection by prior knowledge."""

    #: Whether what comes may come again, and what has come already.
    acknowledge = True
    before = b""

    def __init__(self, stream):
        self._stream = stream
        self.kept = []
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))

    async def flush(self):
        await self._stream.send_all(self.connection.data_to_send())

    async def events(self):
        """The next events, acknowledged."""
        data, self.before = self.before or await self._stream.receive_some(65536), b""
        assert data, "the server has closed the connection"
        events = self.connection.receive_data(data)
        for event in events:
            if isinstance(event, h2.events.DataReceived) and self.acknowledge:
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        await self.flush()
        return events


async def upgraded(client, server, **signature):
    """Ask for the websocket; the reply's status."""
    client.connection.initiate_connection()
    await client.flush()
    headers = signed_headers("GET", TARGET, server.host, **signature)
    client.connection.send_headers(
        1,
        [
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", TARGET),
            (":authority", server.host),
            ("sec-websocket-version", "13"),
            *((name.lower(), value) for name, value in headers.items()),
        ],
    )
    await client.flush()
    while True:
        for event in await client.events():
            if isinstance(event, h2.events.ResponseReceived):
                return int(dict(event.headers)[":status"])


async def test_a_websocket(server, client):
    await client.put("/session/my-session/runs/r1", json={"code": "x"})
    server.runs.runs["r1"].write(b"hello")
    server.runs.runs["r1"].end()
    with trio.fail_after(10):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            h2_client = Client(stream)
            assert await upgraded(h2_client, server) == 200
            websocket = wsproto.connection.Connection(wsproto.connection.ConnectionType.CLIENT)
            frames, code = [], None
            while code is None:
                for event in await h2_client.events():
                    if isinstance(event, h2.events.DataReceived):
                        websocket.receive_data(event.data)
                for message in websocket.events():
                    if isinstance(message, wsproto.events.TextMessage):
                        frames.append(json.loads(message.data))
                    elif isinstance(message, wsproto.events.CloseConnection):
                        code = message.code
    assert frames[0]["records"][0]["data"] == "hello"
    assert frames[-1]["finished"] is True
    assert code == 1000


async def test_a_websocket_with_a_wrong_signature(server):
    with trio.fail_after(10):
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            assert await upgraded(Client(stream), server, secret="other") == 401


# ---------------------------------------------------------------- streams beside each other


async def untiring(scope, receive, send):
    """Greets requests, breaks off those for /broken, and never reads from a websocket."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await trio.sleep_forever()
    while scope["method"] == "GET" and (await receive())["more_body"]:
        pass
    if scope["path"] == "/flood":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await fill(send)
    if scope["path"] == "/broken":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        return
    await respond(send)


async def asked(client, stream_id, path="/", *, method="GET", end=True, fields=()):
    client.connection.send_headers(
        stream_id,
        [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x"), *fields],
        end_stream=end,
    )
    await client.flush()


async def until(client, kind, stream_id):
    """The next event of that kind on a stream; others are kept."""
    while True:
        for event in client.kept:
            if isinstance(event, kind) and event.stream_id == stream_id:
                client.kept.remove(event)
                return event
        client.kept += await client.events()


async def begun(stream):
    client = Client(stream)
    client.connection.initiate_connection()
    await client.flush()
    return client


def status(event):
    return int(dict(event.headers)[":status"])


async def test_a_websocket_that_is_not_read_stalls_none_of_its_siblings():
    async with running(untiring) as port, await connect(port) as stream:
        client = await begun(stream)
        client.connection.send_headers(
            1,
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "http"),
                (":path", "/"),
                (":authority", "x"),
                ("sec-websocket-version", "13"),
            ],
        )
        await client.flush()
        assert status(await until(client, h2.events.ResponseReceived, 1)) == 200
        websocket = wsproto.connection.Connection(wsproto.connection.ConnectionType.CLIENT)
        sent = 0
        while client.connection.local_flow_control_window(1) > 1000:
            frame = websocket.send(wsproto.events.TextMessage("x" * 900))
            client.connection.send_data(1, frame)
            await client.flush()
            sent += 1
            if sent % 10 == 0:
                await asked(client, 1 + 2 * sent)
                await until(client, h2.events.StreamEnded, 1 + 2 * sent)
        assert sent > 20


async def test_a_reply_that_is_not_taken_stalls_none_of_its_siblings_and_is_cut():
    async with running(untiring, Limits(send_seconds=0.5)) as port, await connect(port) as stream:
        client = await begun(stream)
        client.acknowledge = False
        await asked(client, 1, "/flood")
        await asked(client, 3)
        assert status(await until(client, h2.events.ResponseReceived, 3)) == 200
        reset = await until(client, h2.events.StreamReset, 1)
        assert reset.error_code == ErrorCodes.CANCEL
        await asked(client, 5)
        assert status(await until(client, h2.events.ResponseReceived, 5)) == 200


async def test_a_reply_that_breaks_off_is_reset():
    async with running(untiring) as port, await connect(port) as stream:
        client = await begun(stream)
        await asked(client, 1, "/broken")
        assert (await until(client, h2.events.StreamReset, 1)).error_code == ErrorCodes.INTERNAL_ERROR
        await asked(client, 3)
        assert status(await until(client, h2.events.ResponseReceived, 3)) == 200


async def test_a_body_that_comes_after_its_reply_ends_its_stream_alone():
    async with running(untiring, Limits(drain_seconds=0.1)) as port, await connect(port) as stream:
        client = await begun(stream)
        await asked(client, 1, method="POST", end=False)
        assert status(await until(client, h2.events.ResponseReceived, 1)) == 200
        await until(client, h2.events.StreamEnded, 1)
        client.connection.send_data(1, b"late")
        await client.flush()
        assert (await until(client, h2.events.StreamReset, 1)).error_code == ErrorCodes.NO_ERROR
        await asked(client, 3)
        assert status(await until(client, h2.events.ResponseReceived, 3)) == 200


@pytest.mark.parametrize(("path", "expected"), [("/\xe4", 400), ("/", 200)])
async def test_a_path_that_is_no_ascii(path, expected):
    async with running(untiring) as port, await connect(port) as stream:
        client = await begun(stream)
        await asked(client, 1, path)
        assert status(await until(client, h2.events.ResponseReceived, 1)) == expected
        await asked(client, 3)
        assert status(await until(client, h2.events.ResponseReceived, 3)) == 200


async def test_a_tunnel_is_refused():
    async with running(untiring) as port, await connect(port) as stream:
        client = await begun(stream)
        client.connection.send_headers(1, [(":method", "CONNECT"), (":authority", "example.com:443")])
        await client.flush()
        assert status(await until(client, h2.events.ResponseReceived, 1)) == 501


async def test_an_upgrade_from_http1():
    async with running(untiring) as port, await connect(port) as stream:
        client = Client(stream)
        settings = client.connection.initiate_upgrade_connection()
        head = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        await stream.send_all(head + b"HTTP2-Settings: %s\r\n\r\n" % settings)
        received = b""
        while b"\r\n\r\n" not in received:
            received += await stream.receive_some(65536)
        assert received.startswith(b"HTTP/1.1 101")
        client.before = received.partition(b"\r\n\r\n")[2]
        await client.flush()
        assert status(await until(client, h2.events.ResponseReceived, 1)) == 200


async def test_a_large_upload_is_taken_at_the_pace_of_its_reader(server, client):
    async with server.client(http2=True, http1=False) as h2_client:
        body = b"x" * (3 << 20)
        reply = await h2_client.put("/session/my-session/files/big", content=body)
        assert reply.status_code in (200, 201, 204), reply.text
        assert reply.http_version == "HTTP/2"
