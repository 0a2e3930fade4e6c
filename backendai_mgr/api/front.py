"""The ASGI layer before Quart: what Quart cannot do, for every request and websocket.

It gives each an id, applies ``X-Method-Override`` before routing, refuses targets that are no text, adds the
common headers, lets a client that is still sending see an early reply, and counts.
"""

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

import trio

from ..domain.errors import BadRequest, Unavailable
from .context import request_id
from .limits import Limits
from .metrics import UNMATCHED, Metrics
from .peer import Peer
from .problems import COMMON_HEADERS, Problem, problem_of, protocol_problem

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Members of a scope's ``state`` that are ours.
ROUTE = "backendai.route"
PEER = "backendai.peer"

_AUTHORITY = re.compile(rb"\Ahttps?://[^/?#]*", re.IGNORECASE)
_STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})
#: What is around a header field's name and value: a colon, a space and the end of the line.
_FIELD_BYTES = 4
_PREFLIGHT_SECONDS = b"600"


class Front:
    """An ASGI application around another one."""

    def __init__(self, app: Application, metrics: Metrics, limits: Limits) -> None:
        self._app = app
        self._metrics = metrics
        self._limits = limits
        self._most = {"http": limits.requests, "websocket": limits.websockets}
        self._under_way = dict.fromkeys(self._most, 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in self._most:
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        token = request_id.set(exchange.id)
        started = trio.current_time()
        self._under_way[kind] += 1
        try:
            if refusal := self._refusal(scope):
                await exchange.refuse(refusal)
            else:
                try:
                    exchange.scope["path"] = _path(scope)
                except BadRequest as error:
                    await exchange.refuse(problem_of(error))
                else:
                    await self._app(exchange.scope, exchange.receive, exchange.send)
        finally:
            self._under_way[kind] -= 1
            request_id.reset(token)
            route = exchange.scope["state"].get(ROUTE, UNMATCHED)
            # How long a websocket was open is no latency.
            elapsed = trio.current_time() - started if scope["type"] == "http" else None
            self._metrics.request(route, exchange.method, exchange.status, elapsed)

    def _refusal(self, scope: Scope) -> Problem | None:
        """The limit that the request is beyond, if any."""
        head = len(scope["raw_path"]) + len(scope["query_string"])
        head += sum(len(name) + len(value) + _FIELD_BYTES for name, value in scope["headers"])
        if head > self._limits.head_bytes:
            return protocol_problem(431)
        if self._under_way[scope["type"]] > self._most[scope["type"]]:
            return problem_of(Unavailable("Too many requests are under way.", retry_after=1))
        return None


class _Exchange:
    """One request and its reply on their way through."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self._receive = receive
        self._send = send
        self._limits = limits
        self.id = secrets.token_hex(8)
        self.status: int | None = None
        self.scope: Scope = {**scope, "state": {**scope.get("state", {})}}
        wanted = {name: value for name, value in scope["headers"] if name in _READ}
        self._preflight: tuple[bytes, bytes] | None = None
        self._received = 0
        self._all_received = trio.Event()
        self._unfinished = scope["type"] == "http" and _may_have_body(scope, wanted)
        if scope["type"] == "websocket":
            self.scope["state"][PEER] = Peer(self.scope, send)
        else:
            if b"x-method-override" in wanted:
                self.scope["method"] = wanted[b"x-method-override"].decode("latin-1").strip().upper()
            if self.method == "OPTIONS" and b"access-control-request-method" in wanted:
                names = wanted.get(b"access-control-request-headers", b"*")
                self._preflight = (b"access-control-allow-headers", names)

    @property
    def method(self) -> str:
        return str(self.scope.get("method", "GET"))

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request" and self._unfinished:
            self._received += len(message.get("body", b""))
            self._unfinished = message.get("more_body", False)
            if not self._unfinished or self._received > self._limits.drain_bytes:
                self._all_received.set()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] in _STARTS:
            if self._unfinished:
                # Before an early reply, let Quart's own task read on to the end. Else a client that is still
                # sending would be reset before it sees the reply, or its next request would hang.
                with trio.move_on_after(self._limits.drain_seconds):
                    await self._all_received.wait()
            self.status = message.get("status", 101)
            message = {**message, "headers": [*message.get("headers", ()), *self._headers(message)]}
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            # Finishing a request tells Quart of a disconnect, upon which it cancels this very task; without
            # a shield that stops the server half-way, with a connection neither closed nor ready again.
            with trio.move_on_after(self._limits.send_seconds, shield=True):
                await self._send(message)
        else:
            # What is sent to a client that left is dropped without ever yielding.
            await trio.lowlevel.checkpoint()
            await self._send(message)

    def _headers(self, message: Message) -> list[tuple[bytes, bytes]]:
        headers = [*COMMON_HEADERS, (b"x-request-id", self.id.encode())]
        refused_upgrade = message["type"] == "websocket.http.response.start"  # no request can follow it
        if (self._unfinished or refused_upgrade) and self.scope["http_version"].startswith("1"):
            headers.append((b"connection", b"close"))
        if self._preflight is not None and self.status == 200:
            allow = next((value for name, value in message["headers"] if name.lower() == b"allow"), b"*")
            headers += [
                (b"access-control-allow-methods", allow),
                (b"access-control-max-age", _PREFLIGHT_SECONDS),
                self._preflight,
            ]
        return headers

    async def refuse(self, problem: Problem) -> None:
        """Answer without the application."""
        kind = "websocket.http.response" if self.scope["type"] == "websocket" else "http.response"
        body = problem.body()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._discard)
            await self.send({"type": f"{kind}.start", "status": problem.status, "headers": problem.head()})
            await self.send({"type": f"{kind}.body", "body": body, "more_body": False})
            nursery.cancel_scope.cancel()

    async def _discard(self) -> None:
        """Take what the client sends, as Quart does."""
        while not (await self.receive())["type"].endswith(".disconnect"):
            pass


_READ = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"x-method-override",
        b"access-control-request-method",
        b"access-control-request-headers",
    }
)


def _may_have_body(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    """Whether a body may come: over HTTP/1 it is announced."""
    return (
        b"content-length" in headers
        or b"transfer-encoding" in headers
        or not scope["http_version"].startswith("1")
    )


def _path(scope: Scope) -> str:
    """The path to route by; `BadRequest` when the target is not an absolute path of UTF-8 text."""
    raw: bytes = scope["raw_path"]
    if not raw.startswith(b"/"):
        raw, absolute = _AUTHORITY.subn(b"", raw, count=1)
        raw = raw or b"/" * absolute
    try:
        path = unquote_to_bytes(raw).decode()
        scope["query_string"].decode("ascii")
    except UnicodeDecodeError:
        raise BadRequest("The request target is not UTF-8.") from None
    if not path.startswith("/"):
        raise BadRequest("The request target is not an absolute path.")
    return path
