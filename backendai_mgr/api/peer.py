"""What ASGI does not tell about a websocket's other end, read from the server's own objects.

Hypercorn reports every end of a websocket as 1006, also one that the client announced with a close frame, and
its writes cannot be cancelled, so that a client which reads nothing would hold its handler for ever. Under
another server, or in a test client, both questions fall back to what ASGI offers.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.tcp_server import TCPServer
from wsproto.connection import ConnectionState

ABNORMAL = 1006


class Peer:
    """The other end of one websocket; *send* is what the server gave the application."""

    def __init__(self, send: Callable[..., Awaitable[None]]) -> None:
        owner = getattr(send, "__self__", None)
        self._stream: WSStream | None = owner if isinstance(owner, WSStream) else None

    def said_goodbye(self, code: int | None) -> bool:
        """Whether the peer, gone with ASGI's *code*, sent a close frame; false for a mere drop."""
        if self._stream is None:
            return code not in (None, ABNORMAL)
        connection = getattr(self._stream, "connection", None)  # there once the handshake was accepted
        return connection is not None and connection.state in (
            ConnectionState.REMOTE_CLOSING,
            ConnectionState.CLOSED,
        )

    async def cut(self) -> None:
        """Close the connection under a write that does not end. HTTP/2 needs no such thing: its writes wait
        for the stream's window and can be cancelled."""
        server = _owner(_owner(self._stream, H11Protocol), TCPServer)
        if server is not None:
            await trio.aclose_forcefully(server.stream)


def _owner(below: Any, kind: type[Any]) -> Any:
    """The object whose method *below* sends with, if it is of that kind."""
    owner = getattr(getattr(below, "send", None), "__self__", None)
    return owner if isinstance(owner, kind) else None
