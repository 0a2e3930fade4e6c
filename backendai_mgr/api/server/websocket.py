"""A websocket as Hypercorn serves it, with ends in words: what breaks the rules is told so, then let go of.

Hypercorn answers a wrong handshake with an empty reply and keeps its connection for good, and hangs up
without a close frame on what it cannot parse. It also agrees to compression, by which a client's few bytes
become a thousand times as many before their length is looked at; here none is agreed to.
"""

from typing import Any

from hypercorn.protocol.events import Body, Data, EndBody, EndData, Event, Response, StreamClosed
from hypercorn.protocol.ws_stream import ASGIWebsocketState, FrameTooLargeError, WSStream
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, Message, Ping
from wsproto.frame_protocol import CloseReason

from ..problems import COMMON_HEADERS, handshake_problem


class WebSocket(WSStream):
    """One websocket, from its handshake to its end."""

    #: Whether the conversation has ended; what still comes is dropped.
    _over = False

    async def handle(self, event: Event) -> None:
        if self._over and isinstance(event, Body | Data):
            return
        await super().handle(event)

    async def _accept(self, message: Any) -> None:
        self.handshake.extensions = None
        await super()._accept(message)

    async def _handle_events(self) -> None:
        for event in self.connection.events():
            talking = self.connection.state is ConnectionState.OPEN
            match event:
                case Message() if talking:
                    await self._message(event)
                case Ping() if talking:
                    await self._send_wsproto_event(event.response())
                case CloseConnection():
                    # Of the client, or made by the parser for what it cannot read.
                    await self._end(event.response() if not talking else event)
            if self._over:
                return

    async def _message(self, event: "Message[Any]") -> None:
        try:
            self.buffer.extend(event)
        except FrameTooLargeError:
            await self._end(
                CloseConnection(code=CloseReason.MESSAGE_TOO_BIG, reason="The message is too long.")
            )
            return
        if event.message_finished and self.app_put is not None:
            await self.app_put(self.buffer.to_message())
            self.buffer.clear()

    async def _end(self, farewell: CloseConnection) -> None:
        """Say so, if that was not done before, and let go."""
        self._over = True
        self.buffer.clear()
        self.task_group.spawn(self._leave, farewell)

    async def _leave(self, farewell: CloseConnection) -> None:
        await self._send_wsproto_event(farewell)
        await self.send(EndData(stream_id=self.stream_id))
        await self.send(StreamClosed(stream_id=self.stream_id))

    async def _send_error_response(self, status_code: int) -> None:
        problem = handshake_problem(status_code)
        head = [*problem.head(), *COMMON_HEADERS]
        if self.handshake.http_version.startswith("1"):
            head.append((b"connection", b"close"))
        self.state = ASGIWebsocketState.HTTPCLOSED
        await self.send(Response(stream_id=self.stream_id, status_code=problem.status, headers=head))
        await self.send(Body(stream_id=self.stream_id, data=problem.body()))
        await self.send(EndBody(stream_id=self.stream_id))
        if status_code != 500:  # else that follows
            await self.send(StreamClosed(stream_id=self.stream_id))
