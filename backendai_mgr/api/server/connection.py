"""One client's connection: bytes in and out, each wait with its deadline, around Hypercorn's protocols.

It takes the place of Hypercorn's own `TCPServer`, whose writes cannot be ended by anything and which pays for
each request with an idle task and three sends. The protocols are Hypercorn's, with what `http1` and `http2`
add.
"""

import logging
from contextlib import suppress
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2CProtocolRequiredError, H2ProtocolAssumedError
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import parse_socket_addr

from ..context import TRANSPORT
from ..limits import Limits
from .http1 import Http1
from .http2 import Http2

log = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 16
#: A large write goes out in slices, each of which has the whole deadline.
_SLICE_BYTES = 1 << 18
#: What a client still sends while we close is read for so long, lest a reset destroys the last reply.
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 1 << 20

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class Connection:
    """A connection from its handshake to its end. Everything it starts ends with `run`."""

    def __init__(
        self, stream: Stream, app: AppWrapper, config: Config, context: WorkerContext, limits: Limits
    ) -> None:
        self._stream = stream
        self._app = app
        self._config = config
        self._context = context
        self._limits = limits
        self._socket = (stream if isinstance(stream, trio.SocketStream) else stream.transport_stream).socket
        self._turn = trio.Lock()
        self._reading = trio.CancelScope()
        self._ends_at = trio.current_time() + limits.head_seconds
        self._closing = False
        #: Whether the end of what we send was sent.
        self._ended = False
        #: Whether nothing can be sent any more.
        self.gone = False
        self._protocol: Http1 | Http2
        #: Trio time of the newest byte from the client: a sign of life.
        self.last_heard = trio.current_time()
        #: Since when no request is under way (Trio time); None while one is.
        self.idle_since: float | None = trio.current_time()

    async def run(self) -> None:
        """Serve until either side closes. Never raises for what a client does."""
        try:
            secure, alpn = await self._handshake()
        except (trio.BrokenResourceError, trio.TooSlowError):
            self.cut()
            return
        try:
            async with TaskGroup() as self._tasks:
                await self._speak(secure, Http2 if alpn == "h2" else Http1)
                await self._read()
        finally:
            self.cut()

    def cut(self) -> None:
        """End the connection at once, under reads and writes that are under way."""
        self.gone = self._closing = True
        self._socket.close()

    async def cut_stream(self, stream_id: int) -> None:
        """End one request or websocket at once, under writes that wait; in HTTP/1.1 the connection."""
        if isinstance(self._protocol, Http2):
            await self._protocol.cut(stream_id)
        else:
            self.cut()

    def leave_soon(self) -> None:
        """The server stops: end now if no request is under way, else with the last one."""
        if self.idle_since is not None:
            self._wait_until(trio.current_time())

    async def refuse(self, reply: bytes) -> None:
        """Send a whole reply of HTTP/1.1 to a client that is one too many, and close."""
        with trio.move_on_after(self._limits.close_seconds), suppress(trio.BrokenResourceError):
            _, alpn = await self._handshake()
            if alpn != "h2":
                await self._stream.send_all(reply)
                await self._close()
                while await self._stream.receive_some(_RECEIVE_BYTES):
                    pass
        self.cut()

    async def _handshake(self) -> tuple[bool, str | None]:
        """Whether TLS is spoken, and what was agreed on to speak through it."""
        if isinstance(self._stream, trio.SocketStream):
            return False, None
        with trio.fail_after(self._limits.head_seconds):
            await self._stream.do_handshake()
        return True, self._stream.selected_alpn_protocol()

    async def _speak(self, secure: bool, protocol: type[Http1] | type[Http2], *upgrade: Any) -> None:
        self._protocol = protocol(
            self._limits,
            self._app,
            self._config,
            self._context,
            self._tasks,
            ConnectionState({TRANSPORT: self}),
            secure,
            parse_socket_addr(self._socket.family, self._socket.getpeername()),
            parse_socket_addr(self._socket.family, self._socket.getsockname()),
            self._send_event,
        )
        await self._protocol.initiate(*upgrade)

    # ------------------------------------------------------------ in

    async def _read(self) -> None:
        lingering = _LINGER_BYTES
        while lingering > 0:
            with trio.CancelScope(deadline=self._ends_at) as self._reading:
                try:
                    data = await self._stream.receive_some(_RECEIVE_BYTES)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    break
            if self._reading.cancelled_caught:
                if not self._closing and isinstance(self._protocol, Http1):
                    await self._protocol.too_slow()
                break
            if self._closing:
                lingering = lingering - len(data) if data else 0
                continue
            self.last_heard = trio.current_time()
            await self._handle(RawData(bytes(data)))
            if not data:
                break
            if self.idle_since is not None and isinstance(self._protocol, Http1) and self._protocol.in_head:
                # A request has begun; its head has to come in time, however it dribbles.
                self.idle_since = None
                self._wait_until(trio.current_time() + self._limits.head_seconds)
        await self._handle(Closed())

    async def _handle(self, event: Event) -> None:
        try:
            await self._protocol.handle(event)
        except H2ProtocolAssumedError as assumed:
            await self._speak(self._protocol.ssl, Http2)
            if assumed.data:
                await self._protocol.handle(RawData(assumed.data))
        except H2CProtocolRequiredError as required:
            await self._speak(self._protocol.ssl, Http2, required.headers, required.settings)
            if required.data:
                await self._protocol.handle(RawData(required.data))

    def _wait_until(self, deadline: float) -> None:
        """When the client has to have sent something."""
        self._ends_at = self._reading.deadline = deadline

    # ------------------------------------------------------------ out

    async def _send_event(self, event: Event) -> None:
        """What the protocol wants done."""
        match event:
            case RawData(data=data):
                await self._send(data)
            case Closed():
                await self._close()
                await self._protocol.handle(Closed())
            case Updated(idle=idle):
                if not idle:
                    self.idle_since = None
                    self._wait_until(float("inf"))
                elif self.idle_since is None:
                    self.idle_since = trio.current_time()
                    stopping = self._context.terminated.is_set()
                    patience = 0 if stopping else self._limits.keep_alive_seconds
                    self._wait_until(trio.current_time() + patience)

    async def _send(self, data: bytes) -> None:
        """Send it all, or cut the connection. Not cancelled half-way, which would garble what follows."""
        async with self._turn:
            for at in range(0, len(data), _SLICE_BYTES):
                if self.gone or self._ended:
                    return
                piece = data if len(data) <= _SLICE_BYTES else data[at : at + _SLICE_BYTES]
                deadline = trio.current_time() + self._limits.send_seconds
                with trio.CancelScope(shield=True, deadline=deadline) as scope:
                    try:
                        await self._stream.send_all(piece)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        self.cut()
                if scope.cancelled_caught:
                    self.cut()

    async def _close(self) -> None:
        """Say that nothing more will come; `_read` goes on until the client has seen that."""
        if self._closing:
            return
        self._closing = True
        self._wait_until(trio.current_time() + _LINGER_SECONDS)
        with (
            trio.CancelScope(shield=True, deadline=trio.current_time() + _LINGER_SECONDS),
            suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError),
        ):
            async with self._turn:  # another task may be within a write
                self._ended = True
                if isinstance(self._stream, trio.SocketStream):
                    await self._stream.send_eof()
                else:
                    await self._stream.aclose()
