"""What ASGI does not tell about a client, read from the server's own objects.

Hypercorn reports every end of a websocket as 1006, also one that the client announced with a close frame, and
has no way to ping a client or to cut it. Under another server, or in a test client, nothing of this is there
and the questions fall back to what ASGI offers.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import trio
from hypercorn.protocol.ws_stream import WSStream
from wsproto.connection import ConnectionState
from wsproto.events import Ping

from .context import TRANSPORT

ABNORMAL = 1006


class Transport(Protocol):
    """The server's connection (`server.connection`)."""

    #: Nothing can be sent any more.
    gone: bool
    #: Trio time of the newest byte from the client.
    last_heard: float

    async def cut_stream(self, stream_id: int) -> None:
        """End one request or websocket at once, under writes that wait."""


class Peer:
    """The other end of one websocket; *send* is what the server gave the application."""

    def __init__(self, scope: Mapping[str, Any], send: Callable[..., Awaitable[None]]) -> None:
        owner = getattr(send, "__self__", None)
        self._stream: WSStream | None = owner if isinstance(owner, WSStream) else None
        self._transport: Transport | None = scope["state"].get(TRANSPORT)

    @property
    def gone(self) -> bool:
        """Whether the connection is known to be no more."""
        return self._transport is not None and self._transport.gone

    def said_goodbye(self, code: int | None) -> bool:
        """Whether the peer, gone with ASGI's *code*, sent a close frame; false for a mere drop."""
        if self._stream is None:
            return code not in (None, ABNORMAL)
        connection = getattr(self._stream, "connection", None)  # there once the handshake was accepted
        return connection is not None and connection.state in (
            ConnectionState.REMOTE_CLOSING,
            ConnectionState.CLOSED,
        )

    def silent_for(self) -> float:
        """Seconds since anything came over the connection."""
        return 0.0 if self._transport is None else trio.current_time() - self._transport.last_heard

    async def ping(self) -> None:
        """Have the client give a sign of life (RFC 6455 §5.5.2)."""
        if self._stream is not None:
            await self._stream._send_wsproto_event(Ping())

    async def cut(self) -> None:
        """End it at once, under a write that does not end."""
        if self._transport is not None and self._stream is not None:
            await self._transport.cut_stream(self._stream.stream_id)
