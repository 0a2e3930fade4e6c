"""Serving an ASGI application over HTTP/1.1, HTTP/2 and websockets; bounds on all that clients may do."""

import logging
import resource
import socket
import ssl
from functools import partial
from typing import cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework

from ..front import Application
from ..limits import Limits
from ..problems import protocol_problem
from .connection import Connection, Stream
from .http1 import whole_reply

log = logging.getLogger(__name__)

BACKLOG = 1024
#: What is left of a stop after the drain: connections are cut, and what served them ends.
_CUT_SECONDS = 1.0
#: A host that is no more is noticed within two minutes.
_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
]
#: File descriptors that are for something else than clients.
_OTHER_DESCRIPTORS = 256


def open_listener(host: str, port: int) -> socket.socket:
    """A bound socket that listens; port 0 takes any free one. `OSError` when that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


async def serve_http(
    app: Application,
    listener: socket.socket,
    *,
    limits: Limits,
    stop: trio.Event,
    tls: ssl.SSLContext | None = None,
    drain_timeout: float = 5.0,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stop``; then nothing new is accepted, requests under way get ``drain_timeout`` seconds,
    and what is left is cut. Within a second more it returns, whatever clients do."""
    server = _Server(app, limits, tls)
    async with trio.open_nursery() as lifespan_nursery:
        lifespan = Lifespan(server.app, server.config, {})
        await lifespan_nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as accepting:
                accept = partial(trio.serve_listeners, server.serve, handler_nursery=nursery)
                accepting.start_soon(accept, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            await server.drain(drain_timeout)
            nursery.cancel_scope.deadline = trio.current_time() + _CUT_SECONDS
        await lifespan.wait_for_shutdown()
        lifespan_nursery.cancel_scope.cancel()


class _Server:
    """The connections of a server."""

    def __init__(self, app: Application, limits: Limits, tls: ssl.SSLContext | None) -> None:
        self.app = ASGIWrapper(cast(ASGIFramework, app))
        self.config = protocol_config(limits)
        self._limits = limits
        self._tls = tls
        self._context = WorkerContext(None)
        self._open: set[Connection] = set()
        self._changed = trio.Event()
        self._most = min(
            limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_DESCRIPTORS
        )

    async def serve(self, transport: trio.SocketStream) -> None:
        """Serve one connection to its end; its failure is its own."""
        for level, option, value in _KEEP_ALIVE:
            transport.setsockopt(level, option, value)
        stream: Stream = transport
        if self._tls is not None:
            stream = trio.SSLStream(transport, self._tls, server_side=True, https_compatible=True)
        connection = Connection(stream, self.app, self.config, self._context, self._limits)
        if len(self._open) >= self._most and not self._make_room():
            log.warning("a connection is refused: %d are open", len(self._open))
            await connection.refuse(whole_reply(protocol_problem(503)))
            return
        self._open.add(connection)
        try:
            await connection.run()
        except Exception as error:
            log.warning("a connection failed: %r", error)
        finally:
            self._open.discard(connection)
            self._changed.set()

    def _make_room(self) -> bool:
        """Close the connection that has been idle for the longest, if any is."""
        idle = [connection for connection in self._open if connection.idle_since is not None]
        if not idle:
            return False
        longest = min(idle, key=lambda connection: connection.idle_since or 0.0)
        longest.cut()
        self._open.discard(longest)
        return True

    async def drain(self, timeout: float) -> None:
        """Let requests under way finish for so long, then cut every connection."""
        await self._context.terminated.set()
        for connection in list(self._open):
            connection.leave_soon()
        with trio.move_on_after(timeout):
            while self._open:
                self._changed = trio.Event()
                await self._changed.wait()
        if self._open:
            log.warning("cut %d connections that did not end in time", len(self._open))
        for connection in list(self._open):
            connection.cut()


def protocol_config(limits: Limits) -> Config:
    """What Hypercorn's protocols are told."""
    config = Config()
    config.include_server_header = False
    config.keep_alive_max_requests = 1_000_000
    config.h11_max_incomplete_size = limits.head_bytes
    config.h2_max_header_list_size = limits.head_bytes
    config.h2_max_concurrent_streams = limits.streams
    config.websocket_max_message_size = limits.message_bytes
    # Its pinging tasks outlive their websockets by up to one interval and would hold up every stop, nor do
    # they act on a missing pong; `sockets` pings.
    config.websocket_ping_interval = None
    config.accesslog = None
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


def raise_descriptor_limit() -> None:
    """Let this process have as many files open as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
