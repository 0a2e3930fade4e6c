"""Websockets that cannot hang: sends have a deadline, a peer that left is told from one that took leave,
and the closing handshake is completed.

A handler accepts its `Socket` and then lives in `serve`, as several tasks of which the first to end ends it.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import trio
from quart import websocket
from quart_trio.asgi import TrioASGIWebsocketConnection
from quart_trio.wrappers import TrioWebsocket
from werkzeug.datastructures import Headers

from .body import to_json
from .context import installed, limits, services
from .front import PEER, ROUTE
from .metrics import UNMATCHED
from .peer import Peer

CONNECTION = "backendai.connection"
LONGEST_REASON = 120  # bytes; a close frame holds 123

#: A client that was silent for so many pings is gone.
SILENT_INTERVALS = 3

NORMAL = 1000
GOING_AWAY = 1001
INVALID_DATA = 1007
POLICY = 1008
INTERNAL_ERROR = 1011
TRY_AGAIN = 1013


class PeerLeft(Exception):
    """The client is gone; ``clean`` when it said so with a close frame of its own."""

    def __init__(self, *, clean: bool) -> None:
        super().__init__("clean" if clean else "dropped")
        self.clean = clean


class SocketConnection(TrioASGIWebsocketConnection):
    """As Quart's, but a peer that leaves ends `Socket.receive_message` instead of cancelling the handler, so
    that the handler can act on how it left."""

    left_cleanly = False

    def _create_websocket_from_scope(self, send: Any) -> Any:
        self.scope["state"][CONNECTION] = self
        return super()._create_websocket_from_scope(send)

    @property
    def accepted(self) -> bool:
        return self._accepted

    @property
    def closed(self) -> bool:
        """Whether we closed it, or began to."""
        return self._closed

    async def handle_messages(self, nursery: trio.Nursery, receive: Any) -> None:  # type: ignore[override]
        async with self.send_channel:
            while True:
                event = await receive()
                if event["type"] == "websocket.receive":
                    text = event.get("text")
                    await self.send_channel.send(event.get("bytes") or b"" if text is None else text)
                elif event["type"] == "websocket.disconnect":
                    peer = cast(Peer, self.scope["state"][PEER])
                    self.left_cleanly = peer.said_goodbye(event.get("code"))
                    return

    async def send_data(self, send: Any, data: Any) -> None:
        if self._closed:  # by another task of the handler, which was about to end this one
            raise PeerLeft(clean=False)
        await super().send_data(send, data)

    async def close_connection(self, send: Any, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            await send({"type": "websocket.close", "code": code, "reason": reason})


class Socket(TrioWebsocket):
    """One websocket as handlers use it. Any of their tasks may send; each message goes out whole."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._turn = trio.Lock()

    @property
    def connection(self) -> SocketConnection:
        return cast(SocketConnection, self.scope["state"][CONNECTION])

    @property
    def peer(self) -> Peer:
        return cast(Peer, self.scope["state"][PEER])

    async def open(self) -> None:
        """Complete the opening handshake."""
        await self._accept(Headers(), None)

    async def send_value(self, value: Any) -> None:
        """Send *value* as JSON. `PeerLeft` when the client took nothing for too long."""
        await self.send_text(to_json(value))

    async def send_text(self, text: str) -> None:
        """Send *text* as one message. `PeerLeft` as above."""
        await self._bounded(self._send, text)

    async def send_bytes(self, data: bytes) -> None:
        """Send a binary message. `PeerLeft` as above."""
        await self._bounded(self._send, data)

    async def receive_message(self) -> str | bytes:
        """The next message; `PeerLeft` when there will be none."""
        try:
            return cast("str | bytes", await self._receive())
        except trio.EndOfChannel:
            raise PeerLeft(clean=self.connection.left_cleanly) from None

    async def finish(self, code: int = NORMAL, reason: str = "") -> None:
        """Close after everything that was sent; a slow client gets its time."""
        reason = reason.encode()[:LONGEST_REASON].decode(errors="ignore")
        await self._bounded(self._close, code, reason)

    async def close_now(self, code: int, reason: str, *, last: Any = None) -> None:
        """Close without patience, after one *last* value; what the client does not take soon is lost."""
        with trio.move_on_after(limits().close_seconds) as scope:
            if last is not None:
                await self.send_value(last)
            await self.finish(code, reason)
            await self._wait_left()
        if scope.cancelled_caught:
            await self.peer.cut()

    async def wait_closed(self) -> None:
        """Wait for the client's part of the closing handshake, after `finish`."""
        with trio.move_on_after(limits().send_seconds) as scope:
            await self._wait_left()
        if scope.cancelled_caught:
            await self.peer.cut()

    async def keep_alive(self) -> None:
        """Ping; `PeerLeft` when the client has given no sign of life for too long."""
        interval = limits().ping_seconds
        while True:
            await trio.sleep(interval)
            if self.peer.silent_for() > SILENT_INTERVALS * interval:
                await self.peer.cut()
                raise PeerLeft(clean=False)
            await self._bounded(self.peer.ping)

    async def _wait_left(self) -> None:
        """Drop what the client still sends, until it has gone."""
        try:
            while True:
                await self.receive_message()
        except PeerLeft:
            return

    async def _bounded(self, send: Callable[..., Awaitable[None]], *args: Any) -> None:
        async with self._turn:
            # The server drops what is sent to a client that left, and never yields while doing so.
            await trio.lowlevel.checkpoint()
            with trio.move_on_after(limits().send_seconds) as scope:
                await send(*args)
        if self.peer.gone or scope.cancelled_caught:
            raise PeerLeft(clean=False)


def current_socket() -> Socket:
    """The websocket at hand."""
    return cast(Socket, websocket._get_current_object())  # type: ignore[attr-defined]


async def serve(socket: Socket, *tasks: Callable[[], Awaitable[None]]) -> PeerLeft | None:
    """Run the tasks until the first ends, then complete the closing handshake.

    A task ends by closing the socket, or with the error that ended it. Returns how the client left if it left
    of its own accord, None if we closed.
    """
    with installed().metrics.open_socket(socket.scope["state"].get(ROUTE, UNMATCHED)):
        try:
            await race(socket.keep_alive, *tasks)
        except PeerLeft as left:
            return None if socket.connection.closed else left
        await socket.wait_closed()
        return None


async def stop_with_server(socket: Socket, *, last: Any = None) -> None:
    """Wait until the server stops, then close so that the client comes back later; *last* is sent before."""
    await services().health.stopping.wait()
    await socket.close_now(GOING_AWAY, "The server is stopping.", last=last)


async def race(*tasks: Callable[[], Awaitable[None]]) -> None:
    """Run the tasks until the first ends, then cancel the others.

    An error comes as itself, not in a group; `PeerLeft` only when there is no other.
    """

    async def run(task: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        await task()
        scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(run, task, nursery.cancel_scope)
    except BaseExceptionGroup as group:
        raise _gravest(group) from None


def _gravest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a group of errors comes down to: errors before a client that left, that before a cancellation."""
    leaves = list(_leaves(group))
    errors = [leaf for leaf in leaves if not isinstance(leaf, PeerLeft | trio.Cancelled)]
    if len(errors) > 1:
        return BaseExceptionGroup("several tasks of a websocket failed", errors)
    return next(iter(errors), None) or next(
        (leaf for leaf in leaves if isinstance(leaf, PeerLeft)), leaves[0]
    )


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for member in group.exceptions:
        if isinstance(member, BaseExceptionGroup):
            yield from _leaves(member)
        else:
            yield member
