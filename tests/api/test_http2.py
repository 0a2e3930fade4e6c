"""HTTP/2: the authority is the host, and a websocket by extended CONNECT is signed as GET."""

import json
import ssl
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import trio
import trustme
import wsproto.connection
import wsproto.events

from backendai_mgr.api.server.tls import server_context

from .harness import serving, signed_headers

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
    """One HTTP/2 connection by prior knowledge, with one stream."""

    def __init__(self, stream):
        self._stream = stream
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))

    async def flush(self):
        await self._stream.send_all(self.connection.data_to_send())

    async def events(self):
        """The next events, acknowledged."""
        events = self.connection.receive_data(await self._stream.receive_some(65536))
        for event in events:
            if isinstance(event, h2.events.DataReceived):
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
