"""A connection to the shim's socket.  Nothing here waits: what cannot be sent now is kept, within bounds."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from typing import Any, Protocol

from backendai_mgr.shim.framing import BadMessage, Decoder, encode

MAX_PENDING = 1 << 20
_READ_BYTES = 256 << 10
_LAST_WORDS = 1.0  # seconds to hand out the last replies


class Host(Protocol):
    """Whom the connection is made to."""

    selector: selectors.BaseSelector

    def serve(self, client: Client, request: dict[str, Any]) -> None:
        """Answer one request.  Raises BadMessage if it cannot be answered at all."""

    def left(self, client: Client) -> None:
        """The connection has ended."""


class Client:
    def __init__(self, server: Host, connection: socket.socket) -> None:
        self.wants_notes = False
        self.watches: dict[str, int] = {}
        self._server = server
        self._connection = connection
        self._decoder = Decoder()
        self._pending = bytearray()
        self._open = True
        connection.setblocking(False)
        server.selector.register(connection, selectors.EVENT_READ, self._ready)

    def send(self, message: dict[str, Any]) -> None:
        if not self._open:
            return
        was_idle = not self._pending
        self._pending += encode(message)
        if was_idle:
            self._flush()
        if len(self._pending) > MAX_PENDING:
            self.drop()

    def hand_out(self, message: dict[str, Any], fd: int) -> None:
        """Send with a descriptor, which is closed here.  For connections on which nothing else is pending."""
        try:
            if self._open and not self._pending:
                data = encode(message)
                sent = socket.send_fds(self._connection, [data], [fd])
                self._pending += data[sent:]
                if self._pending:
                    self._flush()
            else:
                self.drop()
        except OSError:
            self.drop()
        finally:
            os.close(fd)

    def drop(self) -> None:
        if self._open:
            self._open = False
            self._server.selector.unregister(self._connection)
            self._connection.close()
            self._server.left(self)

    def last_words(self) -> None:
        """Give the peer a moment to take what is pending, then close."""
        if self._open:
            self._connection.settimeout(_LAST_WORDS)
            with contextlib.suppress(OSError):
                self._connection.sendall(self._pending)
            self.drop()

    def _ready(self, events: int) -> None:
        if not self._open:
            return
        if events & selectors.EVENT_WRITE:
            self._flush()
            if self._open and not self._pending:
                self._server.selector.modify(self._connection, selectors.EVENT_READ, self._ready)
        if self._open and events & selectors.EVENT_READ:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop()
            return
        try:
            for request in self._decoder.feed(data):
                self._server.serve(self, request)
                if not self._open:
                    return
        except BadMessage:
            self.drop()

    def _flush(self) -> None:
        try:
            while self._pending:
                del self._pending[: self._connection.send(self._pending)]
        except BlockingIOError:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._server.selector.modify(self._connection, both, self._ready)
        except OSError:
            self.drop()
