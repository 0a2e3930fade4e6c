"""A run's output as server-sent events: what `GET …/output` answers to ``Accept: text/event-stream``.

Each event is a batch ``{"records", "next_offset"}`` whose id is its ``next_offset``, so that a browser's
``EventSource`` comes back with ``Last-Event-ID`` and misses nothing (WHATWG HTML §9.2). The last one is named
``end`` and has an id of its own: who comes back after it is told by 204 that there is no more, who comes back
before it gets it again.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import TracebackType

import trio
from quart import Response
from quart.wrappers.response import ResponseBody

from ..domain.accounts import Caller
from ..domain.errors import Refusal
from .body import to_json
from .context import current_message, services
from .decoding import QUERY, decode
from .models.runs import FollowOutput, ResumeOutput, check_within, end_reply
from .problems import problem_of
from .sharing import Follower, Frame, follow

MEDIA_TYPE = "text/event-stream"
#: A comment goes out after so long without an event, lest something on the way takes the stream for dead.
QUIET_SECONDS = 15.0
RETRY_MILLISECONDS = 1000
#: What the id of the last event has behind its offset.
_END = "-end"


def wanted() -> bool:
    """Whether the request at hand asks for events rather than for JSON."""
    accept = current_message().accept_mimetypes
    return bool(accept[MEDIA_TYPE] > accept["application/json"])


async def events(caller: Caller, name: str, run_id: str, query: FollowOutput) -> Response:
    """The reply that tells of output from an offset on, or from where the client says that it stopped."""
    offset = query.offset
    last = current_message().headers.get("Last-Event-ID")
    if last is not None:
        offset = decode(ResumeOutput, {"Last-Event-ID": last.removesuffix(_END)}, QUERY).offset
    session, run = await services().runs.get(caller, name, run_id)
    check_within(run, offset)
    if last is not None and last.endswith(_END) and run.ended and offset == run.end_offset:
        return Response(b"", status=204)
    follower = follow(caller, session, run_id, offset, query.streams)
    body = _Body(follower, services().health.stopping)
    return Response(body, content_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})


class _Body(ResponseBody):
    """Events for as long as the server takes them."""

    def __init__(self, follower: Follower, stopping: trio.Event) -> None:
        self._follower = follower
        self._stopping = stopping
        self._stack = AsyncExitStack()
        self._waiting = trio.CancelScope()

    async def __aenter__(self) -> AsyncIterator[str]:
        follower = self._stack.enter_context(self._follower)
        nursery = await self._stack.enter_async_context(trio.open_nursery())
        self._stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(follower.lead)
        nursery.start_soon(self._stop)
        return self._events(follower)

    async def __aexit__(
        self, kind: type[BaseException], error: BaseException, traceback: TracebackType
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    async def _stop(self) -> None:
        await self._stopping.wait()
        self._waiting.cancel()

    async def _events(self, follower: Follower) -> AsyncIterator[str]:
        yield f"retry: {RETRY_MILLISECONDS}\n\n"
        while not self._stopping.is_set():
            try:
                frame = await self._next(follower)
            except Refusal as error:
                yield _event(to_json(problem_of(error).value()), name="error")
                return
            if frame is None:
                yield ":\n\n"
                continue
            if frame.records:
                yield _event(frame.text, id=frame.end)
            if frame.ended is not None:
                yield _event(to_json(end_reply(frame.ended)), name="end", id=f"{frame.end}{_END}")
                return

    async def _next(self, follower: Follower) -> Frame | None:
        """The next frame; None when there is none for a while, or the server stops."""
        with trio.move_on_after(QUIET_SECONDS) as self._waiting:
            if not self._stopping.is_set():
                return await follower.next()
        return None


def _event(data: str, *, name: str | None = None, id: int | str | None = None) -> str:
    lines = [f"event: {name}"] if name is not None else []
    lines += [f"id: {id}"] if id is not None else []
    return "\n".join([*lines, f"data: {data}", "", ""])
