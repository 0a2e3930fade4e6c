"""A run's output as server-sent events: what `GET …/output` answers to ``Accept: text/event-stream``.

Each event is a batch ``{"records", "next_offset"}`` whose id is its ``next_offset``, so that a browser's
``EventSource`` comes back with ``Last-Event-ID`` and misses nothing (WHATWG HTML §9.2). The last one is named
``end`` and has an id of its own: who comes back after it is told by 204 that there is no more, who comes back
before it gets it again.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any

import trio
from quart import Response
from quart.wrappers.response import ResponseBody

from ..domain.accounts import Caller
from ..domain.errors import Refusal
from .body import to_json
from .context import current_message, services
from .decoding import QUERY, decode
from .models.runs import FollowOutput, ResumeOutput, check_within, end_reply, records_reply
from .output import BATCH_SECONDS, Batch, Intake, Joiner
from .problems import problem_of

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
    _, run = await services().runs.get(caller, name, run_id)
    check_within(run, offset)
    if last is not None and last.endswith(_END) and run.ended and offset == run.end_offset:
        return Response(b"", status=204)
    api = services()
    body = _Body(
        lambda: api.runs.stream(caller, name, run_id, offset=offset),
        api.health.stopping,
        offset,
        Joiner(query.streams),
    )
    return Response(body, content_type=MEDIA_TYPE, headers={"Cache-Control": "no-store"})


class _Body(ResponseBody):
    """Events for as long as the server takes them."""

    def __init__(self, stream: Any, stopping: trio.Event, offset: int, joiner: Joiner) -> None:
        self._stream = stream
        self._stopping = stopping
        self._end = offset
        self._joiner = joiner
        self._stack = AsyncExitStack()
        self._intake = Intake()
        self._failure: Refusal | None = None
        self._waiting = trio.CancelScope()

    async def __aenter__(self) -> AsyncIterator[str]:
        nursery = await self._stack.enter_async_context(trio.open_nursery())
        self._stack.callback(nursery.cancel_scope.cancel)
        nursery.start_soon(self._feed)
        nursery.start_soon(self._stop)
        return self._events()

    async def __aexit__(
        self, kind: type[BaseException], error: BaseException, traceback: TracebackType
    ) -> None:
        await self._stack.__aexit__(kind, error, traceback)

    async def _feed(self) -> None:
        try:
            async with self._stream() as items:
                await self._intake.feed(items)
        except Refusal as error:
            self._failure = error
            self._waiting.cancel()

    async def _stop(self) -> None:
        await self._stopping.wait()
        self._waiting.cancel()

    async def _events(self) -> AsyncIterator[str]:
        yield f"retry: {RETRY_MILLISECONDS}\n\n"
        joiner = self._joiner
        sent_at = trio.current_time() - BATCH_SECONDS
        while not self._stopping.is_set():
            try:
                batch = await self._batch(until=sent_at + BATCH_SECONDS)
            except Refusal as error:
                yield _event(problem_of(error).value(), name="error")
                return
            if batch is None:
                yield ":\n\n"
                continue
            self._end = batch.records[-1].end if batch.records else self._end
            records = joiner.join(batch.records, final=batch.ended is not None)
            if records:
                offset = joiner.next_offset(self._end)
                yield _event(records_reply(records, offset), id=offset)
                sent_at = trio.current_time()
            if batch.ended is not None:
                yield _event(end_reply(batch.ended), name="end", id=f"{self._end}{_END}")
                return

    async def _batch(self, *, until: float) -> Batch | None:
        """The next batch; None when there is none for a while, or the server stops."""
        with trio.move_on_after(QUIET_SECONDS) as self._waiting:
            if self._failure is None and not self._stopping.is_set():
                return await self._intake.batch(until=until)
        if self._failure is not None:
            raise self._failure
        return None


def _event(value: Any, *, name: str | None = None, id: int | str | None = None) -> str:
    lines = [f"event: {name}"] if name is not None else []
    lines += [f"id: {id}"] if id is not None else []
    return "\n".join([*lines, f"data: {to_json(value)}", "", ""])
