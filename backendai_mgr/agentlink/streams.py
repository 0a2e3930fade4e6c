"""The manager's side of ``STREAM``: readers that pull, each with its own cursor and credit.

Credit bounds what is on its way and what is held here for slow readers: `link.STREAM_CREDIT` for one stream,
`link.LINK_CREDIT` for all streams of a connection, in fair shares. A reader that holds more than its share
while another one lacks credit loses what is held for it and reads that again when it comes back.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable
from uuid import UUID

import trio

from ..wire import link
from ..wire.callosum import AgentError
from ..wire.records import Record
from ..wire.rpc import AgentRefusal, AgentUnreachable, RunOrder, RunStatus
from .feed import TrySend

#: A reader that always finds something lets the other tasks run after this many records.
_BREATH = 32

Lost = Callable[[], AgentUnreachable]


class Stream:
    """Iterates over `Record` from an offset on, then one `RunStatus` of the ended run.

    Survives a restart of the agent and a broken connection: the rest is asked for again, from the cursor.
    Raises `AgentRefusal`, `AgentError` (the agent broke), `AgentUnreachable` (no sign of life for too long).
    """

    def __init__(
        self, streams: "Streams", kernel_id: UUID, run_id: str, offset: int, order: RunOrder | None
    ) -> None:
        self._streams = streams
        self._kernel_id = kernel_id
        self._run_id = run_id
        #: Until the agent has answered, the run may not have been started.
        self._order = order
        self._records: deque[Record] = deque()
        self._last: RunStatus | Exception | None = None  # what comes after the records
        self._finished = False
        self._wake = trio.Event()
        self._taken = offset  # what the reader has had
        self._arrived = offset  # what has arrived here
        self.sid: int | None = None  # while it is open at the agent
        #: Credit given to the agent, less what the reader has taken.
        self.held = 0
        self.buffered = 0  # cost of the records that wait here
        self.waiting_since: float | None = None

    def __aiter__(self) -> AsyncIterator[Record | RunStatus]:
        return self

    async def __anext__(self) -> Record | RunStatus:
        if len(self._records) % _BREATH:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        while not self._records:
            if self._finished:
                raise StopAsyncIteration
            if self._last is not None:
                self._finished = True
                if isinstance(self._last, Exception):
                    raise self._last
                return self._last
            self.ensure_open()
            await self._wait()
        return self._next_record()

    async def _wait(self) -> None:
        self.waiting_since = trio.current_time()
        self._wake = trio.Event()
        try:
            await self._wake.wait()
        finally:
            self.waiting_since = None

    def _next_record(self) -> Record:
        record = self._records.popleft()
        spent = link.cost(record)
        self._taken = record.end
        self.buffered -= spent
        self.held -= spent
        if self.sid is not None:
            self._streams.top_up(self)
        return record

    # -- told by `Streams`

    def ensure_open(self) -> None:
        """Ask the agent for what comes after the cursor, if that is not under way and can be sent."""
        if self.sid is None and self._last is None:
            self.held += self._streams.reserve(self)
            self.sid = self._streams.open(self, self._kernel_id, self._run_id, self._arrived, self._order)
            if self.sid is None:
                self.held = self.buffered

    def put(self, message: link.Data) -> None:
        """Records from the agent."""
        total = sum(map(link.cost, message.records))
        if self.buffered + total > self.held:
            self.fail(AgentError("the agent sent more output than it had credit for"))
            return
        self._records.extend(message.records)
        self.buffered += total
        self._arrived = message.next
        self._order = None
        self._wake.set()

    def finish(self, run: RunStatus) -> None:
        """The run has ended and its output is here."""
        self._last = run
        self.closed()

    def fail(self, error: Exception) -> None:
        """After the records that are here, *error*."""
        if self._last is None:
            self._last = error
        self.closed()

    def closed(self) -> None:
        """The agent has no such stream any more; what has arrived stays, the unused credit is free again."""
        self._streams.forget(self)
        self.held = self.buffered
        self._wake.set()

    def evict(self) -> None:
        """Make room: drop what waits here, to be read again from the cursor."""
        self._records.clear()
        self.buffered = 0
        self._arrived = self._taken
        if not isinstance(self._last, Exception):
            self._last = None
        self.closed()


class Streams:
    """The open streams of one connection."""

    def __init__(self, try_send: TrySend) -> None:
        self._try_send = try_send
        self._all: set[Stream] = set()
        self._by_sid: dict[int, Stream] = {}
        self._last_sid = 0

    @property
    def any_open(self) -> bool:
        return bool(self._all)

    @property
    def held(self) -> int:
        """Credit in the agent's hands and output not yet taken, of all streams together: bytes of cost."""
        return sum(stream.held for stream in self._all)

    def start(self, kernel_id: UUID, run_id: str, offset: int, order: RunOrder | None = None) -> Stream:
        """A new stream; `stop` must be called when its reader has left."""
        stream = Stream(self, kernel_id, run_id, offset, order)
        self._all.add(stream)
        stream.ensure_open()
        return stream

    def stop(self, stream: Stream) -> None:
        """The reader has left."""
        self._all.discard(stream)
        self.forget(stream)

    # -- for Stream

    def open(
        self, stream: Stream, kernel_id: UUID, run_id: str, offset: int, order: RunOrder | None
    ) -> int | None:
        """Open at the agent with the credit that the stream holds; its id, None if that cannot be sent."""
        sid = self._last_sid + 1
        message = link.Open(
            sid=sid, kernel_id=kernel_id, run_id=run_id, offset=offset, credit=stream.held, order=order
        )
        if not self._try_send(link.encode(message)):
            return None
        self._last_sid = sid
        self._by_sid[sid] = stream
        return sid

    def forget(self, stream: Stream) -> None:
        """Close the stream at the agent, if it is open there."""
        sid, stream.sid = stream.sid, None
        if sid is not None and self._by_sid.pop(sid, None) is not None:
            self._try_send(link.encode(link.Close(sid=sid)))

    @property
    def share(self) -> int:
        """The credit that each stream may hold."""
        return min(link.STREAM_CREDIT, link.LINK_CREDIT // max(1, len(self._all)))

    def reserve(self, stream: Stream) -> int:
        """How much the stream lacks to its share. Whoever holds more than its share makes room for that."""
        share = self.share
        lacking = max(0, share - stream.held)
        while self.held + lacking > link.LINK_CREDIT:
            others = (other for other in self._all if other is not stream and other.held > share)
            # Rather one whose reader lets output lie than one that reads what comes.
            greatest = max(others, key=lambda other: (other.buffered > 0, other.held), default=None)
            if greatest is None:
                return max(0, link.LINK_CREDIT - self.held)
            greatest.evict()
        return lacking

    def top_up(self, stream: Stream) -> None:
        """Give back credit that the reader has used, when it is worth a message."""
        if stream.sid is not None and stream.held <= self.share * 3 // 4:
            grant = self.reserve(stream)
            if self._try_send(link.encode(link.Credit(sid=stream.sid, bytes=grant))):
                stream.held += grant
            else:  # no connection: the agent has lost the stream with it, or will say so
                stream.closed()

    # -- told by the connection

    def on_message(self, message: link.Data | link.End | link.Failed) -> None:
        """Hand the message to its stream; what is sent for a closed one is told to stop."""
        stream = self._by_sid.get(message.sid)
        match message:
            case link.Data() if stream is not None:
                stream.put(message)
            case link.Data():
                self._try_send(link.encode(link.Close(sid=message.sid)))
            case link.End() | link.Failed() if stream is not None:
                del self._by_sid[message.sid]  # the agent has closed it
                _conclude(stream, message)

    def tick(self, now: float, *, heard: float, silence: float, lost: Lost) -> None:
        """Open again what could not be opened, ask whether the others still are, give up on a dead agent."""
        for stream in list(self._all):
            if stream.waiting_since is not None:
                if now - max(heard, stream.waiting_since) > silence:
                    stream.fail(lost())
                    continue
                stream.ensure_open()
            if stream.sid is not None:
                self._try_send(link.encode(link.Credit(sid=stream.sid, bytes=0)))

    def abort(self, lost: Lost) -> None:
        """The connection has ended."""
        for stream in self._all:
            stream.fail(lost())


def _conclude(stream: Stream, message: link.End | link.Failed) -> None:
    match message:
        case link.End(run=run):
            stream.finish(run)
        case link.Failed(code=link.NO_SUCH_STREAM):
            stream.closed()
        case link.Failed(code=link.INTERNAL, message=text):
            stream.fail(AgentError(text))
        case link.Failed(code=code, message=text):
            stream.fail(AgentRefusal(code, text))
