"""HTTP/1.1 as Hypercorn speaks it, with one send where it has three, and refusals that say what is wrong."""

from base64 import urlsafe_b64decode
from typing import Any

import h2.config
import h2.connection
import h2.exceptions
import h11
import hypercorn.protocol.h11
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h11 import H11Protocol

from ..limits import Limits
from ..problems import COMMON_HEADERS, Problem, protocol_problem
from .websocket import WebSocket

hypercorn.protocol.h11.WSStream = WebSocket  # type: ignore[attr-defined]


class Http1(H11Protocol):
    """The protocol of one connection."""

    def __init__(self, _: Limits, *rest: Any) -> None:
        super().__init__(*rest)

    #: A reply's head, until there is something to send along with it.
    _head = b""

    @property
    def in_head(self) -> bool:
        """Whether a part of a request's head has come."""
        return bool(self.connection.trailing_data[0])

    async def _create_stream(self, request: h11.Request) -> None:
        if (status := _refusal(request)) is None:
            await super()._create_stream(request)
        else:
            await self._send_error_response(status)
            await self.send(Closed())

    async def _check_protocol(self, event: h11.Request) -> None:
        if _can_switch(event):
            await super()._check_protocol(event)

    async def too_slow(self) -> None:
        """Refuse a request whose head has not come in time."""
        if self.in_head and self.connection.our_state is h11.IDLE:
            await self._send_error_response(408)

    async def _send_h11_event(self, event: Any) -> None:
        try:
            data = self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response):
            self._head = data
            return
        data, self._head = self._head + data, b""
        if data:
            await self.send(RawData(data))

    async def _send_error_response(self, status_code: int) -> None:
        problem = protocol_problem(status_code)
        await self._send_h11_event(h11.Response(status_code=problem.status, headers=_head(problem)))
        await self._send_h11_event(h11.Data(data=problem.body()))
        await self._send_h11_event(h11.EndOfMessage())


def _refusal(request: h11.Request) -> int | None:
    """Why h11's view of a request is not ours: the status to refuse it with."""
    if not b"1.0" <= request.http_version < b"2":
        return 505
    # Where the body ends is read in two ways, and another server before this one may have chosen the other
    # (RFC 9112 §6.1, §6.3).
    fields = dict(request.headers)
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if coding is not None and (length is not None or request.http_version < b"1.1"):
        return 400
    # What follows would be taken for frames.
    if fields.get(b"upgrade", b"").lower() == b"websocket" and (coding or length not in (None, b"0")):
        return 400
    return None


def _can_switch(request: h11.Request) -> bool:
    """Whether HTTP/2 could take over, if that is asked for: its settings have to make sense."""
    fields = dict(request.headers)
    if fields.get(b"upgrade", b"").lower() == b"h2c":
        wanted = fields.get(b"http2-settings", b"")
        trial = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        try:
            if len(urlsafe_b64decode(wanted)) % 6:  # bytes of a setting
                return False
            trial.initiate_upgrade_connection(wanted)
        except (ValueError, h2.exceptions.ProtocolError):
            return False
    return True


def whole_reply(problem: Problem) -> bytes:
    """A reply to any request, after which the connection closes."""
    lines = [b"HTTP/1.1 %d " % problem.status, *(b"%s: %s" % field for field in _head(problem)), b"", b""]
    return b"\r\n".join(lines) + problem.body()


def _head(problem: Problem) -> list[tuple[bytes, bytes]]:
    return [*problem.head(), *COMMON_HEADERS, (b"connection", b"close")]
