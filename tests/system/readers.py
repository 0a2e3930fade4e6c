"""Readers of a run's output by each transport, which may drop their connection after any byte of a reply.

Made of protocol parsers and our own reading of the documented replies, not of the client under test.
"""

import base64
import hashlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import attrs
import h11
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Ping, RejectConnection, Request, TextMessage

from .http import Http

TRANSPORTS = ("json", "events", "websocket")
#: Until a reader has all, in seconds, whatever happens to the server meanwhile.
PATIENCE = 120
#: What may not answer now is asked again so much later, in seconds.
AGAIN = 0.05
_PIECE = 1 << 16

Pause = Callable[[], Awaitable[None]]


class _Dropped(Exception):
    """This side has had as many bytes as it is to have."""


class _Cut(Exception):
    """The other side ended the connection, or will not serve now."""


@attrs.frozen
class Drop:
    """Leave after so many bytes were received: by a reset, or in good order."""

    after: int
    abrupt: bool


@attrs.define
class Reader:
    """Reads one run from its beginning to its end, and checks that each record follows the one before.

    ``data`` has the bytes, ``gaps`` the ranges [begin, end) that the server says are missing, ``end`` the
    last word about the run. ``drops`` and ``cuts`` count the connections that this side and the other ended.
    """

    http: Http
    url: str
    transport: str
    data: bytearray = attrs.field(factory=bytearray)
    gaps: list[tuple[int, int]] = attrs.field(factory=list)
    next: int = 0
    end: dict[str, Any] | None = None
    drops: int = 0
    cuts: int = 0
    max_bytes: int = 1 << 20
    wait: float = 5.0
    #: With so many bytes it stops to read, until `go_on`.
    stop_at: int | None = None
    go_on: trio.Event = attrs.field(factory=trio.Event)
    last_event: str | None = None

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    async def read(self, drops: Iterable[Drop] = ()) -> None:
        """Read all; first on connections that are dropped like this."""
        with trio.fail_after(PATIENCE):
            for drop in drops:
                before = self.drops
                while self.drops == before:
                    await self.connect(drop)
                    assert self.end is None, "it had all before it could drop its connection so often"
            while self.end is None:
                await self.connect()

    async def connect(self, drop: Drop | None = None) -> None:
        """Read on one connection, until the run's end or that of the connection."""
        follow = {"json": self._poll, "events": self._events, "websocket": self._websocket}[self.transport]
        try:
            async with _opened(self.http, drop, self._pause) as link:
                await follow(link)
        except _Dropped:
            self.drops += 1
        except (_Cut, OSError, trio.BrokenResourceError, h11.RemoteProtocolError):
            self.cuts += 1
            await trio.sleep(AGAIN)

    async def _pause(self) -> None:
        if self.stop_at is not None and self.next >= self.stop_at:
            await self.go_on.wait()

    def take(self, piece: dict[str, Any]) -> None:
        """A whole reply, event or frame."""
        for record in piece.get("records", ()):
            assert record["offset"] == self.next, (record, self.next)
            if record["stream"] == "gap":
                self.gaps.append((self.next, self.next + record["gap"]))
                self.next += record["gap"]
            else:
                data = base64.b64decode(record["base64"]) if "base64" in record else record["data"].encode()
                self.data += data
                self.next += len(data)
        assert piece.get("next_offset", self.next) == self.next
        if piece.get("finished"):
            self.end = piece

    # -- transports

    async def _poll(self, link: "_Link") -> None:
        while self.end is None:
            target = f"{self.url}/output?offset={self.next}&wait={self.wait}&max_bytes={self.max_bytes}"
            reply = await link.request(target)
            self.take(json.loads(b"".join([piece async for piece in reply])))

    async def _events(self, link: "_Link") -> None:
        headers = {"Accept": "text/event-stream"}
        if self.last_event is not None:
            headers["Last-Event-ID"] = self.last_event
        text = b""
        async for piece in await link.request(f"{self.url}/output", headers):
            *events, text = (text + piece).split(b"\n\n")
            for event in events:
                fields = dict(line.split(": ", 1) for line in event.decode().split("\n") if ": " in line)
                if fields.get("event") == "error":
                    raise _Cut
                if "data" in fields:
                    self.take(json.loads(fields["data"]))
                    self.last_event = fields["id"]

    async def _websocket(self, link: "_Link") -> None:
        target = f"/stream{self.url}?offset={self.next}"
        text = ""
        async for event in link.websocket(target):
            text += event.data
            if event.message_finished:
                self.take(json.loads(text))
                text = ""


class _Link:
    """A connection whose received bytes are counted."""

    def __init__(self, stream: trio.SocketStream, http: Http, drop: Drop | None, pause: Pause) -> None:
        self._pause = pause
        self._stream = stream
        self._http = http
        self._left = None if drop is None else drop.after
        self._h11 = h11.Connection(h11.CLIENT)

    async def _receive(self) -> bytes:
        if self._left == 0:
            raise _Dropped
        await self._pause()
        data = await self._stream.receive_some(_PIECE if self._left is None else min(self._left, _PIECE))
        if self._left is not None:
            self._left -= len(data)
        return bytes(data)

    async def request(self, target: str, headers: Mapping[str, str] = {}) -> AsyncIterator[bytes]:
        """The body of the reply to a GET; `_Cut` when it is for later."""
        if self._h11.our_state is h11.DONE:
            self._h11.start_next_cycle()
        signed = {"Host": self._http.host, **self._http.headers("GET", target), **headers}
        request = h11.Request(method="GET", target=target, headers=list(signed.items()))
        await self._stream.send_all(
            (self._h11.send(request) or b"") + (self._h11.send(h11.EndOfMessage()) or b"")
        )
        reply = await self._event()
        assert isinstance(reply, h11.Response)
        if reply.status_code == 503:
            raise _Cut
        assert reply.status_code == 200, [
            bytes(e.data) for e in [await self._event()] if isinstance(e, h11.Data)
        ]
        return self._body()

    async def _body(self) -> AsyncIterator[bytes]:
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)

    async def _event(self) -> Any:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._receive())
        if isinstance(event, h11.ConnectionClosed):
            raise _Cut
        return event

    async def websocket(self, target: str) -> AsyncIterator[TextMessage]:
        """The messages of a websocket until it is closed."""
        signed = self._http.headers("GET", target, content_type="application/octet-stream")
        del signed["Content-Type"]
        connection = WSConnection(ConnectionType.CLIENT)
        extra = [(name.encode(), value.encode()) for name, value in signed.items()]
        await self._stream.send_all(
            connection.send(Request(host=self._http.host, target=target, extra_headers=extra))
        )
        self.websocket_connection = connection
        while True:
            data = await self._receive()
            connection.receive_data(data or None)
            for event in connection.events():
                match event:
                    case TextMessage():
                        yield event
                    case Ping():
                        await self._stream.send_all(connection.send(event.response()))
                    case CloseConnection(code=code):
                        with_reply = connection.send(event.response()) if data else b""
                        await self._stream.send_all(with_reply)
                        if code != 1000:
                            raise _Cut
                        return
                    case RejectConnection(status_code=status):
                        assert status == 503, status
                        raise _Cut
                    case AcceptConnection():
                        pass

    websocket_connection: WSConnection | None = None

    async def leave(self) -> None:
        """Say goodbye, as far as the protocol has a word for it, and wait until the other side has left."""
        websocket = self.websocket_connection
        with suppress(trio.BrokenResourceError):
            if websocket is not None and websocket.state is ConnectionState.OPEN:
                await self._stream.send_all(websocket.send(CloseConnection(code=1000)))
            await self._stream.send_eof()
            while await self._stream.receive_some(_PIECE):
                pass

    def reset(self) -> None:
        """The kernel tells the other side so, and drops what was on its way."""
        self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.socket.close()


@asynccontextmanager
async def _opened(http: Http, drop: Drop | None, pause: Pause) -> AsyncIterator[_Link]:
    host, _, port = http.host.rpartition(":")
    stream = await trio.open_tcp_stream(host, int(port))
    link = _Link(stream, http, drop, pause)
    try:
        yield link
    except _Dropped:
        assert drop is not None
        if drop.abrupt:
            link.reset()
        else:
            with trio.fail_after(PATIENCE):
                await link.leave()
        raise
    finally:
        await trio.aclose_forcefully(stream)


async def together(*readers: Reader, drops: Iterable[Iterable[Drop]] = ()) -> None:
    """All of them read at once."""
    async with trio.open_nursery() as nursery:
        plans = list(drops) or [()] * len(readers)
        for reader, plan in zip(readers, plans, strict=True):
            nursery.start_soon(partial(reader.read, plan))


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Look at what no event tells of, until *condition* holds."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(AGAIN)
