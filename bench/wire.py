"""HTTP/1.1 and websockets as bytes on a Trio stream: a load generator that costs far less than any server.

It knows what the measured servers send, no more: bodies have a length, messages come in one frame.
"""

import base64
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import attrs
import trio

from backendai_mgr.domain.signing import SignedParts, sign

VERSION = "v6.20220315"
CONTENT_TYPE = "application/json"
_PIECE = 1 << 18

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class WireError(Exception):
    """The server answered something else than what is measured."""


@attrs.frozen
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@attrs.frozen(kw_only=True)
class Requests:
    """Makes the bytes of requests to one server, with further header lines; signed when there is a key pair.

    A signature is good for minutes, so one request may be sent many times.
    """

    address: Address
    access_key: str | None = None
    secret_key: str = ""
    headers: tuple[str, ...] = ()

    def make(
        self, method: str, target: str, body: Any = None, *, upgrade: bool = False, raw: bytes | None = None
    ) -> bytes:
        """*raw* is a body of these very bytes."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.address}", *self.headers]
        if self.access_key is not None:
            lines += self._signature(method, target)
        if upgrade:
            key = base64.b64encode(os.urandom(16)).decode()
            lines += ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"]
            lines.append(f"Sec-WebSocket-Key: {key}")
        content = raw or (b"" if body is None else json.dumps(body).encode())
        if content:
            lines.append(f"Content-Length: {len(content)}")
        return "\r\n".join([*lines, "", ""]).encode() + content

    def _signature(self, method: str, target: str) -> list[str]:
        now = datetime.now(UTC)
        parts = SignedParts(
            method=method,
            target=target,
            date=now.isoformat(),
            host=str(self.address),
            content_type=CONTENT_TYPE,
            version=VERSION,
        )
        signature = sign(parts, self.secret_key, now)
        return [
            f"Date: {parts.date}",
            f"Content-Type: {CONTENT_TYPE}",
            f"X-BackendAI-Version: {VERSION}",
            f"Authorization: BackendAI signMethod=HMAC-SHA256, credential={self.access_key}:{signature}",
        ]


class Connection:
    """One kept-alive connection. With *quick_ack* each segment is acknowledged at once."""

    def __init__(self, stream: trio.SocketStream, *, quick_ack: bool = False) -> None:
        self.stream = stream
        self._quick_ack = quick_ack
        self.buffer = bytearray()

    async def exchange(self, request: bytes, *expected: int) -> bytes:
        """Send a request and return the body of its answer, whose status is one of *expected* (else 200)."""
        await self.stream.send_all(request)
        status, head = await self._head()
        length = _content_length(head) if status not in (101, 204) else 0
        while len(self.buffer) < length:
            await self.more()
        body = bytes(self.buffer[:length])
        del self.buffer[:length]
        if status not in (expected or (200,)):
            raise WireError(f"{status} as the answer to {request[:60]!r}: {body[:500]!r}")
        return body

    async def _head(self) -> tuple[int, bytes]:
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            await self.more()
        head = bytes(self.buffer[:end])
        del self.buffer[: end + 4]
        return int(head[9:12]), head

    async def more(self) -> None:
        """Take what comes next."""
        if self._quick_ack:  # Linux forgets it again
            self.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        piece = await self.stream.receive_some(_PIECE)
        if not piece:
            raise WireError("the server closed the connection")
        self.buffer += piece


def _content_length(head: bytes) -> int:
    lowered = head.lower()
    at = lowered.find(b"\r\ncontent-length:")
    if at < 0:
        raise WireError(f"an answer without a length: {head!r}")
    return int(lowered[at + 17 :].split(b"\r\n", 1)[0])


class WebSocket:
    """The client's end of a websocket."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def send(self, value: Any) -> None:
        """Send a value as JSON text. The mask is zero: masks are for the sake of proxies; there is none."""
        payload = json.dumps(value).encode()
        await self._connection.stream.send_all(_frame_head(TEXT, len(payload)) + payload)

    async def receive(self) -> tuple[int, bytes]:
        """(opcode, payload) of the next frame; pings are answered."""
        while True:
            opcode, payload = await self._frame()
            if opcode != PING:
                return opcode, payload
            await self._connection.stream.send_all(_frame_head(PONG, len(payload)) + payload)

    async def _frame(self) -> tuple[int, bytes]:
        buffer, more = self._connection.buffer, self._connection.more
        while len(buffer) < 2:
            await more()
        opcode, length, begin = buffer[0] & 0x0F, buffer[1] & 0x7F, 2
        if length > 125:
            begin = 4 if length == 126 else 10
            while len(buffer) < begin:
                await more()
            length = int.from_bytes(buffer[2:begin], "big")
        while len(buffer) < begin + length:
            await more()
        payload = bytes(memoryview(buffer)[begin : begin + length])
        del buffer[: begin + length]
        return opcode, payload

    async def finish(self) -> None:
        """Answer the server's close."""
        while (await self.receive())[0] != CLOSE:
            pass
        await self._connection.stream.send_all(_frame_head(CLOSE, 0))


def _frame_head(opcode: int, length: int) -> bytes:
    if length > 125:
        return bytes([0x80 | opcode, 0x80 | 126]) + length.to_bytes(2, "big") + bytes(4)
    return bytes([0x80 | opcode, 0x80 | length]) + bytes(4)


@asynccontextmanager
async def connect(address: Address, *, quick_ack: bool = False) -> AsyncIterator[Connection]:
    stream = await trio.open_tcp_stream(address.host, address.port)
    try:
        yield Connection(stream, quick_ack=quick_ack)
    finally:
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def open_websocket(
    requests: Requests, target: str, *, quick_ack: bool = False
) -> AsyncIterator[WebSocket]:
    async with connect(requests.address, quick_ack=quick_ack) as connection:
        await connection.exchange(requests.make("GET", target, upgrade=True), 101)
        yield WebSocket(connection)
