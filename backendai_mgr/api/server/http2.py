"""HTTP/2 as Hypercorn speaks it, except that no stream can hold up or end its siblings.

A stream's window opens again when its application has taken what came before, while the connection's window
opens at once; so a reader never waits for an application. What Hypercorn fails at, with the whole connection,
is refused for its stream alone.
"""

import copy
import dataclasses
import math
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import h2.events
import h2.exceptions
import hypercorn.protocol.h2
import trio
from h2.errors import ErrorCodes
from hypercorn.config import Config
from hypercorn.events import Closed, Updated
from hypercorn.events import Event as ServerEvent
from hypercorn.protocol.events import Body, Data, EndBody, EndData, Event, StreamClosed
from hypercorn.protocol.h2 import BUFFER_LOW_WATER, H2Protocol, StreamBuffer
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGIReceiveCallable, ASGIReceiveEvent, Scope

from ..limits import Limits
from ..problems import COMMON_HEADERS, protocol_problem
from .websocket import WebSocket

#: When so many messages wait for an application, its stream's window stays shut.
_MOST_WAITING = 8
_SLICE_BYTES = 1 << 16
#: What h11 takes in HTTP/1.1 and h2 does not look at (RFC 9110 §9.1, RFC 3986 §3.3).
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_PATH = re.compile(rb"[\x21-\x7e]+\Z")
#: Frames that ask for nothing, or take back what was asked: so many at once, and so many per second.
_MOST_IDLE_FRAMES = 1000
_IDLE_FRAMES_PER_SECOND = 100


class _Buffer(StreamBuffer):
    """What waits for a stream's window. Hypercorn's lets its writer go on after each piece that is taken,
    however small, so that a client could have any amount pile up here."""

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[: len(data)]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


hypercorn.protocol.h2.StreamBuffer = _Buffer  # type: ignore[misc]
hypercorn.protocol.h2.WSStream = WebSocket  # type: ignore[attr-defined]


class Http2(H2Protocol):
    """The protocol of one connection."""

    def __init__(
        self,
        limits: Limits,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        tasks: TaskGroup,
        *rest: Any,
    ) -> None:
        self._patience = limits.send_seconds
        super().__init__(app, config, context, cast(TaskGroup, _StreamTasks(tasks, self, config)), *rest)
        #: Of each stream: messages that wait for its application, and how far its window is shut for that.
        self._waiting: dict[int, int] = {}
        self._shut: dict[int, int] = {}
        #: Frames to no purpose that the client may still send, and since when.
        self._allowed: float = _MOST_IDLE_FRAMES
        self._allowed_at = trio.current_time()

    async def initiate(
        self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None
    ) -> None:
        if headers is None or settings is None:
            await super().initiate()
            return
        # As Hypercorn's, but the request of the upgrade may be refused, or be over already.
        self.connection.initiate_upgrade_connection(settings)
        await self._flush()
        self.task_group.spawn(self.send_task)
        await self._create_stream(h2.events.RequestReceived(stream_id=1, headers=headers))
        if (stream := self.streams.get(1)) is not None:
            await stream.handle(EndBody(stream_id=1))
        await self.send(Updated(idle=self.idle))

    def came(self, stream_id: int) -> None:
        """A message for the stream's application has come."""
        self._waiting[stream_id] = self._waiting.get(stream_id, 0) + 1

    async def taken(self, stream_id: int) -> None:
        """The stream's application has taken a message."""
        self._waiting[stream_id] -= 1
        await self._reopen(stream_id)

    def forget(self, stream_id: int) -> None:
        """The stream's application has ended."""
        self._waiting.pop(stream_id, None)
        self._shut.pop(stream_id, None)

    async def _reopen(self, stream_id: int) -> None:
        """Let more come for the stream unless too much waits already."""
        if self._waiting.get(stream_id, 0) < _MOST_WAITING and (size := self._shut.pop(stream_id, 0)):
            # The stream, or the connection, may have ended meanwhile.
            with suppress(KeyError, h2.exceptions.ProtocolError):
                self.connection.increment_flow_control_window(size, stream_id)
                await self._flush()

    async def handle(self, event: ServerEvent) -> None:
        await super().handle(event)
        if isinstance(event, Closed):
            # Nobody takes what is left, so nobody shall wait for that.
            for buffer in list(self.stream_buffers.values()):
                await buffer.close()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if _is_idle_talk(event) and not self._patient():
                await self._hang_up()
                return
            if isinstance(event, h2.events.DataReceived):
                await self._data(event)
                continue
            # The stream may be gone already, by a frame that came along with this one.
            with suppress(h2.exceptions.ProtocolError):
                await super()._handle_events([event])
            if isinstance(event, h2.events.RequestReceived):
                # Hypercorn takes the connection for busy now, although the request may have been refused.
                await self.send(Updated(idle=self.idle))
        await self._flush()

    def _patient(self) -> bool:
        """Whether the client may go on so."""
        now = trio.current_time()
        self._allowed += (now - self._allowed_at) * _IDLE_FRAMES_PER_SECOND
        self._allowed = min(self._allowed, _MOST_IDLE_FRAMES) - 1
        self._allowed_at = now
        return self._allowed >= 0

    async def _hang_up(self) -> None:
        with suppress(h2.exceptions.ProtocolError):
            self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
        await self._flush()
        await self.send(Closed())

    async def _priority_updated(self, event: h2.events.PriorityUpdated) -> None:
        """Streams share alike: RFC 9113 has done away with priorities, and each would be kept for good."""

    async def _data(self, event: h2.events.DataReceived) -> None:
        stream_id, size = event.stream_id, event.flow_controlled_length
        if size:
            self.connection.increment_flow_control_window(size)
        stream = self.streams.get(stream_id)
        if stream is None:
            # Its reply is complete; what the client goes on sending is of no use.
            self._reset(stream_id, ErrorCodes.NO_ERROR)
            return
        if event.data:
            await stream.handle(Body(stream_id=stream_id, data=event.data))
        if size:
            self._shut[stream_id] = self._shut.get(stream_id, 0) + size
            await self._reopen(stream_id)

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        fields = dict(request.headers)
        path, method = fields.get(b":path", b""), fields.get(b":method", b"")
        lacking = request.stream_ended is not None and fields.get(b"content-length", b"0").strip(b"0")
        if method == b"CONNECT" and fields.get(b":protocol") != b"websocket":
            await self._refuse(request.stream_id, 501)
        elif lacking or not _PATH.match(path) or not _METHOD.match(method):
            await self._refuse(request.stream_id, 400)
        else:
            await super()._create_stream(request)

    async def _refuse(self, stream_id: int, status: int) -> None:
        """Answer a request that no application can be asked."""
        problem = protocol_problem(status)
        with suppress(h2.exceptions.ProtocolError):
            head = [(b":status", b"%d" % problem.status), *problem.head(), *COMMON_HEADERS]
            self.connection.send_headers(stream_id, head)
            self.connection.send_data(stream_id, problem.body(), end_stream=True)
        await self._flush()

    async def stream_send(self, event: Event) -> None:
        match event:
            case Body() | Data():
                # In slices, each of which has to fit into the client's window in time.
                for at in range(0, len(event.data), _SLICE_BYTES):
                    piece = event.data[at : at + _SLICE_BYTES]
                    await self._send_in_time(dataclasses.replace(event, data=piece))
            case EndBody() | EndData():
                await self._send_in_time(event)
            case StreamClosed(stream_id=stream_id):
                buffer = self.stream_buffers.get(stream_id)
                if buffer is not None and not buffer._complete and not self.closed:
                    # Its application ended within its reply, which must not look as if it went on.
                    self._reset(stream_id, ErrorCodes.INTERNAL_ERROR)
                    await self._flush()
                await super().stream_send(event)
            case _:
                await super().stream_send(event)

    async def _send_in_time(self, event: Event) -> None:
        with trio.move_on_after(self._patience) as scope:
            await super().stream_send(event)
        if scope.cancelled_caught:
            await self.cut(event.stream_id)

    async def cut(self, stream_id: int) -> None:
        """End a stream at once, whatever its client takes."""
        self._reset(stream_id, ErrorCodes.CANCEL)
        if buffer := self.stream_buffers.get(stream_id):
            await buffer.close()
        await self._close_stream(stream_id)
        await self._flush()

    def _reset(self, stream_id: int, code: ErrorCodes) -> None:
        with suppress(h2.exceptions.ProtocolError):
            self.connection.reset_stream(stream_id, code)


def _is_idle_talk(event: h2.events.Event) -> bool:
    """Whether a client could send such frames by the million and have us do nothing else."""
    match event:
        case h2.events.DataReceived():
            return not event.data and event.stream_ended is None
        case h2.events.StreamReset():
            return event.remote_reset
    return isinstance(
        event,
        h2.events.PingReceived
        | h2.events.PriorityUpdated
        | h2.events.RemoteSettingsChanged
        | h2.events.UnknownFrameReceived,
    )


class _StreamTasks:
    """Starts the applications of a connection's streams, and counts what waits for each."""

    def __init__(self, tasks: TaskGroup, protocol: Http2, config: Config) -> None:
        self._tasks = tasks
        self._protocol = protocol
        self._config = copy.copy(config)
        self._config.max_app_queue_size = cast(int, math.inf)  # windows bound what can wait

    def spawn(self, function: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._tasks.spawn(function, *args)

    async def spawn_app(
        self, app: AppWrapper, _: Config, scope: Scope, send: Callable[..., Awaitable[None]]
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        protocol, stream_id = self._protocol, send.__self__.stream_id  # type: ignore[attr-defined]

        async def watched(scope: Scope, receive: ASGIReceiveCallable, *rest: Any) -> None:
            async def taking() -> ASGIReceiveEvent:
                message = await receive()
                await protocol.taken(stream_id)
                return message

            try:
                await app(scope, taking, *rest)
            finally:
                protocol.forget(stream_id)

        put = await self._tasks.spawn_app(cast(AppWrapper, watched), self._config, scope, send)

        async def putting(message: ASGIReceiveEvent) -> None:
            protocol.came(stream_id)
            await put(message)

        return putting
