"""The frames of a stream: a signed websocket whose silence is not taken for life."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import httpx
import trio
import trio_websocket

from .errors import ApiError, Away

#: Seconds to connect, and as many for the handshake.
CONNECT = 5.0
#: Seconds for the manager to answer our close of a stream.
_CLOSE = 1.0
#: After so many seconds without a frame the manager is pinged, and has so many to answer.
_QUIET = 20.0
_PONG = 10.0
#: The largest frame of a stream that is taken.
_LARGEST_FRAME = 16 << 20

_Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


@attrs.frozen
class Frames:
    """The JSON frames of a stream."""

    _websocket: trio_websocket.WebSocketConnection

    async def receive(self) -> Mapping[str, Any] | None:
        """The next frame; None after a close, the loss of the connection, or too long a silence."""
        try:
            message = await self._message()
        except trio_websocket.ConnectionClosed:
            return None
        if message is None:
            return None
        frame: Mapping[str, Any] = json.loads(message)
        return frame

    async def send(self, frame: Mapping[str, Any]) -> None:
        """Send a frame; it is lost when the connection is, as `receive` will tell."""
        with suppress(trio_websocket.ConnectionClosed):
            await self._websocket.send_message(json.dumps(frame))

    async def _message(self) -> str | bytes | None:
        """None: a ping was not answered."""
        while True:
            with trio.move_on_after(_QUIET):
                return await self._websocket.get_message()
            answered = trio.Event()
            message = None
            async with _nursery() as nursery:
                nursery.start_soon(self._ping, answered)
                with trio.move_on_after(_PONG):
                    message = await self._websocket.get_message()
            if message is not None or not answered.is_set():
                return message

    async def _ping(self, answered: trio.Event) -> None:
        with suppress(trio_websocket.ConnectionClosed):
            await self._websocket.ping()
            answered.set()


@asynccontextmanager
async def open_frames(url: httpx.URL, headers: Mapping[str, str]) -> AsyncIterator[Frames]:
    """The frames of the stream at *url*; `ApiError` when it is refused, `Away` when nobody answers."""
    # The library leaves the stream open when the manager closes first, so it is ours. Its own task, which is
    # in the nursery, raises what it reads of a refusal.
    try:
        async with await _connect(url) as stream, _nursery() as nursery:
            websocket = await _upgrade(nursery, stream, url, headers)
            yield Frames(websocket)
            with trio.move_on_after(_CLOSE):
                await websocket.aclose()
    except trio_websocket.ConnectionRejected as rejected:
        raise ApiError.of(rejected.status_code, rejected.body or b"") from rejected
    except trio_websocket.HandshakeError as error:
        raise Away(_origin(url), sent=True) from error


async def _connect(url: httpx.URL) -> _Stream:
    try:
        with trio.fail_after(CONNECT):
            if url.scheme == "https":
                return await trio.open_ssl_over_tcp_stream(url.host, url.port or 443, https_compatible=True)
            return await trio.open_tcp_stream(url.host, url.port or 80)
    except (OSError, trio.TooSlowError) as error:
        raise Away(_origin(url)) from error


async def _upgrade(
    nursery: trio.Nursery, stream: _Stream, url: httpx.URL, headers: Mapping[str, str]
) -> trio_websocket.WebSocketConnection:
    try:
        with trio.fail_after(CONNECT):
            return await trio_websocket.wrap_client_stream(
                nursery,
                stream,
                url.netloc.decode(),
                url.raw_path.decode(),
                extra_headers=[(name.encode(), value.encode()) for name, value in headers.items()],
                max_message_size=_LARGEST_FRAME,
                receive_buffer_size=1 << 16,
            )
    except (OSError, trio.TooSlowError) as error:
        raise Away(_origin(url), sent=True) from error


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}"


@asynccontextmanager
async def _nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery that is cancelled at the end, and lets a lone error of the body out as it is."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        raise group.exceptions[0] from None
