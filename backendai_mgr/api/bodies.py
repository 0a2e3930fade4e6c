"""Request bodies that come no faster than they are wanted."""

from collections.abc import AsyncGenerator, Generator
from typing import Any, Literal, cast

import trio
from quart_trio.asgi import TrioASGIHTTPConnection
from quart_trio.wrappers import TrioRequest
from quart_trio.wrappers.request import TrioBody
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

#: Bytes that are held of a body until somebody wants it, and while it is taken piece by piece.
_HELD = 1 << 18


class Body(TrioBody):
    """A body that is held back until it is wanted: whole, up to its limit, or piece by piece without one."""

    def __init__(self, expected_content_length: int | None, max_content_length: int | None) -> None:
        super().__init__(None, max_content_length)
        self._expected = expected_content_length
        self._wanted: Literal["later", "whole", "pieces", "never"] = "later"
        self._moved = trio.Event()

    def __await__(self) -> Generator[Any, None, Any]:
        self._want("whole")
        self._check()
        return super().__await__()

    async def pieces(self, timeout: float) -> AsyncGenerator[bytes, None]:
        """What comes, as it comes; `RequestTimeout` when nothing does for *timeout* seconds."""
        self._want("pieces")
        while True:
            with trio.move_on_after(timeout) as scope:
                try:
                    piece = await self.__anext__()
                except StopAsyncIteration:
                    return
            if scope.cancelled_caught:
                raise RequestTimeout()
            self._move()
            if piece:
                yield piece

    def refuse(self) -> None:
        """What still comes is dropped."""
        self._want("never")
        self.clear()

    async def room(self) -> None:
        """Wait until more is wanted."""
        while self._wanted in ("later", "pieces") and len(self._data) >= _HELD:
            await self._moved.wait()

    def append(self, data: bytes) -> None:
        if data and self._must_raise is None and self._wanted != "never":
            self._data.extend(data)
            self._has_data.set()
            if self._wanted == "whole":
                self._check()

    def _check(self) -> None:
        """Nobody waits for the rest of what is too large."""
        most = self._max_content_length
        if most is not None and max(len(self._data), self._expected or 0) > most:
            self._must_raise = RequestEntityTooLarge()
            self.set_complete()

    def _want(self, how: Literal["whole", "pieces", "never"]) -> None:
        self._wanted = how
        self._move()

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()


class Request(TrioRequest):
    """A request with such a body."""

    body_class = Body


class Connection(TrioASGIHTTPConnection):
    """Hands a body over as it is wanted, and lets the rest come in when the reply is made."""

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Any, receive: Any
    ) -> None:
        body: Body = request.body
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body.append(message.get("body", b""))
            if not message.get("more_body", False):
                body.set_complete()
            await body.room()
        nursery.cancel_scope.cancel()

    async def _send_response(self, send: Any, response: Any) -> None:
        cast(Body, self._request.body).refuse()
        await super()._send_response(send, response)

    def _create_request_from_scope(self, send: Any) -> Any:
        self._request = super()._create_request_from_scope(send)
        return self._request
