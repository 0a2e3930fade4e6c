"""Signed websockets to the running program, independent of our own client."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import trio
import trio_websocket

from .harness import COMMAND
from .http import Http


@asynccontextmanager
async def connected(http: Http, target: str) -> AsyncIterator[trio_websocket.WebSocketConnection]:
    """A websocket, closed at the end; the whole is bounded in time."""
    headers = [*http.headers("GET", target).items()]
    endpoint = urlsplit(http.endpoint)
    assert endpoint.hostname is not None
    assert endpoint.port is not None
    with trio.fail_after(COMMAND):
        stream = await trio.open_tcp_stream(endpoint.hostname, endpoint.port)
        async with stream, trio.open_nursery() as nursery:
            socket = await trio_websocket.wrap_client_stream(
                nursery, stream, endpoint.netloc, target, extra_headers=headers
            )
            yield socket
            with trio.move_on_after(1):  # it may have been cut off
                await socket.aclose()
            nursery.cancel_scope.cancel()
