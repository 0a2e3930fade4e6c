"""ZeroMQ sockets for Trio: a `Dealer` that dials one peer, a `Router` that many peers dial.

A ZeroMQ socket's file descriptor tells of *changes*, and any call on the socket may swallow one: a task that
waits on the descriptor while another sends would sleep through its message. So one pump task per socket owns
the descriptor, everybody else waits in a `trio.lowlevel.ParkingLot`, and after every operation that could
have swallowed a change the socket's state is read again on behalf of those who wait.

The sockets belong to a `Context`, the context to whoever opened it; both are async context managers.
Errors of a socket's body leave as from any nursery, in an exception group.
"""

import errno
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import trio
import zmq

from .curve import (
    HANDSHAKE_FAILED,
    ZAP_ENDPOINT,
    CurveClient,
    CurveServer,
    SocketEvent,
    zap_client,
    zap_reply,
)

#: The largest single frame that is taken; libzmq hangs up on a peer that announces more.
MAX_FRAME = 12 * 1024 * 1024
#: A dealer, and a router, is watched by two more.
SOCKETS_OF_DEALER = 3
#: Messages that may wait in each direction and per peer.
HIGH_WATER = 4096
#: A socket that always has work lets the other tasks run after this many operations.
_BREATH = 32

_RECONNECT_MS = 50
_RECONNECT_MAX_MS = 1000
_HEARTBEAT_MS = 5000
_HEARTBEAT_TIMEOUT_MS = 15000

_OPTIONS: Mapping[int, int] = {
    zmq.LINGER: 0,
    zmq.SNDHWM: HIGH_WATER,
    zmq.RCVHWM: HIGH_WATER,
    zmq.MAXMSGSIZE: MAX_FRAME,
    # A peer whose machine is gone is noticed by ZMTP's own heartbeat, on both ends.
    zmq.HEARTBEAT_IVL: _HEARTBEAT_MS,
    zmq.HEARTBEAT_TIMEOUT: _HEARTBEAT_TIMEOUT_MS,
    zmq.HEARTBEAT_TTL: _HEARTBEAT_TIMEOUT_MS,
}
_DEALER_OPTIONS: Mapping[int, int] = {
    # Without a connection nothing is queued: what was meant for a dead peer does not reach its successor.
    zmq.IMMEDIATE: 1,
    zmq.RECONNECT_IVL: _RECONNECT_MS,
    zmq.RECONNECT_IVL_MAX: _RECONNECT_MAX_MS,
}
_ROUTER_OPTIONS: Mapping[int, int] = {zmq.ROUTER_MANDATORY: 1}


class PeerGone(Exception):
    """The router knows no such peer (any more), or its queue is full because it has not read for so long."""


class HandshakeFailed(Exception):
    """Somebody answers at the address, but is not who is wanted there, or does not want us."""


class _Socket:
    """What both kinds share: receiving, and the care for lost wake-ups."""

    def __init__(self, raw: zmq.Socket[bytes]) -> None:
        self._raw = raw
        self._receivers = trio.lowlevel.ParkingLot()
        self._senders = trio.lowlevel.ParkingLot()
        self._operations = 0

    async def recv(self) -> list[bytes]:
        """The next message, as its frames. Several tasks may wait; each message goes to one of them.

        Cancellation never loses a message. `trio.ClosedResourceError` when the socket is closed.
        """
        await self._breathe()
        while True:
            try:
                frames = self._raw_open().recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                if not self._look() & zmq.POLLIN:
                    await self._receivers.park()
            else:
                self._look_for_others()
                return frames

    async def _breathe(self) -> None:
        """A checkpoint before an operation; after it nothing may wait, lest a message be lost."""
        self._operations += 1
        if self._operations % _BREATH:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()

    def _raw_open(self) -> zmq.Socket[bytes]:
        if self._raw.closed:
            raise trio.ClosedResourceError("this ZeroMQ socket is closed")
        return self._raw

    def _look(self) -> int:
        """Read the socket's state and wake who can go on: one receiver (it wakes the next), all senders."""
        events = int(self._raw.get(zmq.EVENTS))
        if events & zmq.POLLIN:
            self._receivers.unpark()
        if events & zmq.POLLOUT:
            self._senders.unpark_all()
        return events

    def _look_for_others(self) -> None:
        if self._receivers or self._senders:
            self._look()

    async def _pump(self) -> None:
        """The only task that waits on the descriptor."""
        descriptor = int(self._raw.get(zmq.FD))
        while True:
            await trio.lowlevel.wait_readable(descriptor)
            self._look()

    def _close(self) -> None:
        self._raw.close(linger=0)
        self._receivers.unpark_all()
        self._senders.unpark_all()


class Dealer(_Socket):
    """One connection to one peer, re-dialled by libzmq while the peer is away or after it broke."""

    def __init__(self, raw: zmq.Socket[bytes], events: _Socket) -> None:
        super().__init__(raw)
        self._events = events
        self._connected = False

    async def broken(self) -> None:
        """Wait for the next break of a connection that was there; each is told once, to one task.

        What was sent before and has not been answered will not be: the peer answers to connections.
        `HandshakeFailed` when a peer was there but no connection came about. libzmq mostly does not dial
        again then; a new socket has to.
        """
        failure = "it hung up during the handshake"
        while True:
            event = SocketEvent.parse(await self._events.recv())
            if event.event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = True
            elif event.event & HANDSHAKE_FAILED:
                failure = event.failure(dialled=True)
            elif self._connected:
                self._connected = False
                return
            else:
                raise HandshakeFailed(failure)

    async def send(self, frames: Sequence[bytes]) -> None:
        """Queue a message; waits while there is no connection or its queue is full.

        Cancelled means not sent. What was queued is lost when the connection breaks.
        """
        await self._breathe()
        while True:
            try:
                self._raw_open().send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                if not self._look() & zmq.POLLOUT:
                    await self._senders.park()
            else:
                self._look_for_others()
                return

    def send_nowait(self, frames: Sequence[bytes]) -> None:
        """As `send`, but `trio.WouldBlock` where that would wait."""
        while True:
            try:
                self._raw_open().send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                if not self._look() & zmq.POLLOUT:
                    raise trio.WouldBlock from None
            else:
                self._look_for_others()
                return


class Router(_Socket):
    """A bound socket. `recv` puts the peer's identity in front; ``endpoint`` is what it is bound to."""

    def __init__(self, raw: zmq.Socket[bytes], events: _Socket) -> None:
        super().__init__(raw)
        self._events = events
        self.endpoint = raw.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")

    async def refused(self) -> str:
        """Wait for the next peer that was refused, and say why; each is told once, to one task."""
        return SocketEvent.parse(await self._events.recv()).failure(dialled=False)

    def send(self, peer: bytes, frames: Sequence[bytes]) -> None:
        """Queue a message for the peer. Never waits, so no peer holds up another.

        `PeerGone` when it cannot be delivered; nothing of it was sent then.
        """
        try:
            self._raw_open().send_multipart([peer, *frames], zmq.NOBLOCK)
        except zmq.Again:
            raise PeerGone("the peer does not read") from None
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            raise PeerGone("the peer is not connected") from None
        finally:
            self._look_for_others()


class Context:
    """Owner of the input-output threads that the sockets opened from it share."""

    def __init__(self, raw: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._raw = raw

    @asynccontextmanager
    async def dealer(self, endpoint: str, *, curve: CurveClient | None = None) -> AsyncIterator[Dealer]:
        """A socket that dials *endpoint* (``tcp://host:port``); OSError when that is not an address.

        With *curve* it speaks to the owner of that key only, encrypted; else it speaks in plain.
        """
        raw = self._socket(zmq.DEALER, {**_DEALER_OPTIONS, **(curve.options if curve else {})})
        events = _events_of(raw, zmq.EVENT_HANDSHAKE_SUCCEEDED | HANDSHAKE_FAILED | zmq.EVENT_DISCONNECTED)
        try:
            raw.connect(endpoint)
        except zmq.ZMQError as error:
            raw.close(linger=0)
            events.close(linger=0)
            raise OSError(error.errno, f"cannot dial {endpoint!r}: {error.strerror}") from error
        async with _pumped(_Socket(events)) as watch, _pumped(Dealer(raw, watch)) as dealer:
            yield dealer

    @asynccontextmanager
    async def router(self, endpoint: str, *, curve: CurveServer | None = None) -> AsyncIterator[Router]:
        """A socket bound to *endpoint* (``tcp://127.0.0.1:*``: any free port); OSError when it cannot be.

        With *curve* all is encrypted, and only those that it admits come in; a context has one such router.
        libzmq frees the port some time after the socket was closed, at the latest with the context's end.
        """
        # Bound before any nursery is there, so that the error comes out as it is.
        questions = None if curve is None else self._questions()
        try:
            raw = self._socket(zmq.ROUTER, {**_ROUTER_OPTIONS, **(curve.options if curve else {})})
            events = _events_of(raw, HANDSHAKE_FAILED)
            try:
                raw.bind(endpoint)
            except zmq.ZMQError as error:
                raw.close(linger=0)
                events.close(linger=0)
                raise OSError(error.errno, f"cannot bind {endpoint!r}: {error.strerror}") from error
        except OSError:
            if questions is not None:
                questions.close(linger=0)
            raise
        async with AsyncExitStack() as beneath:
            if curve is not None and questions is not None:
                await beneath.enter_async_context(_admission(questions, curve))
            async with _pumped(_Socket(events)) as watch, _pumped(Router(raw, watch)) as router:
                yield router

    def _questions(self) -> zmq.Socket[bytes]:
        """Where libzmq asks whom to admit."""
        raw = self._socket(zmq.REP, {})
        try:
            raw.bind(ZAP_ENDPOINT)
        except zmq.ZMQError as error:
            raw.close(linger=0)
            raise OSError(error.errno, "this context has a CURVE router already") from error
        return raw

    def _socket(self, kind: int, options: Mapping[int, int | bytes]) -> zmq.Socket[bytes]:
        try:
            raw = self._raw.socket(kind)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"no more ZeroMQ sockets: {error.strerror}") from error
        try:
            for option, value in {**_OPTIONS, **options}.items():
                raw.set(option, value)
        except zmq.ZMQError as error:
            raw.close(linger=0)
            raise OSError(error.errno, f"an option or a key is not valid: {error.strerror}") from error
        return raw


def _events_of(raw: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """A socket that has a message for each of these *events* of *raw*; *raw* is closed if there is none."""
    try:
        return raw.get_monitor_socket(events)
    except zmq.ZMQError as error:
        raw.close(linger=0)
        raise OSError(error.errno, f"no more ZeroMQ sockets: {error.strerror}") from error


@asynccontextmanager
async def _admission(raw: zmq.Socket[bytes], curve: CurveServer) -> AsyncIterator[None]:
    """Answer libzmq's questions whom to admit, while inside."""
    async with _pumped(_Socket(raw)) as questions, trio.open_nursery() as nursery:

        async def answer() -> None:
            while True:
                request = await questions.recv()
                key = zap_client(request)
                admitted = key is not None and await curve.admits(key)
                raw.send_multipart(zap_reply(request, admitted), zmq.NOBLOCK)

        nursery.start_soon(answer)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_context(*, max_sockets: int = 4096) -> AsyncIterator[Context]:
    """A context for at most *max_sockets* sockets, of which a dealer takes `SOCKETS_OF_DEALER`.

    All of them must be closed before it is left.
    """
    raw: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    raw.set(zmq.MAX_SOCKETS, max_sockets)
    try:
        yield Context(raw)
    finally:
        # With every socket closed and nothing lingering this only joins libzmq's threads; were a socket
        # still open it would wait for it, so it waits aside and not for ever.
        with trio.move_on_after(5, shield=True):
            await trio.to_thread.run_sync(raw.term, abandon_on_cancel=True)


_S = TypeVar("_S", bound=_Socket)


@asynccontextmanager
async def _pumped(socket: _S) -> AsyncIterator[_S]:
    """The socket with its pump running; closed once the pump has let go of the descriptor."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(socket._pump)
            try:
                yield socket
            finally:
                nursery.cancel_scope.cancel()
    finally:
        socket._close()
