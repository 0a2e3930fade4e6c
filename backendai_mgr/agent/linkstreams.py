"""The agent's side of ``STREAM``: a task per open stream reads the log as far as its credit reaches."""

import logging
from functools import partial

import trio

from ..runtime.zmqsocket import PeerGone
from ..wire import link
from ..wire.records import Record
from ..wire.rpc import AgentRefusal, RunStatus
from .handler import Handler
from .linkreports import Send

log = logging.getLogger(__name__)

MAX_STREAMS = 1024

_Key = tuple[bytes, int]


class Streams:
    """The open streams of all peers. A peer that says nothing for ``peer_timeout`` seconds loses its own."""

    def __init__(self, handler: Handler, send: Send, nursery: trio.Nursery, *, peer_timeout: float) -> None:
        self.handler = handler
        self.peer_timeout = peer_timeout
        self._send = send
        self._nursery = nursery
        self._streams: dict[_Key, _Stream] = {}
        self._heard: dict[bytes, float] = {}  # only of peers that have streams

    def heard(self, peer: bytes) -> None:
        """The peer said something."""
        if peer in self._heard:
            self._heard[peer] = trio.current_time()

    def silence(self, peer: bytes) -> float:
        """Seconds since the peer said something."""
        return trio.current_time() - self._heard[peer]

    def on_message(self, peer: bytes, message: link.Open | link.Credit | link.Close) -> None:
        """Open, feed or close a stream."""
        stream = self._streams.get((peer, message.sid))
        match message:
            case link.Open():
                self._open(peer, message, stream)
            case link.Credit() if stream is not None:
                stream.add_credit(message.bytes)
            case link.Credit():
                self._fail(peer, message.sid, link.NO_SUCH_STREAM)
            case link.Close() if stream is not None:
                stream.scope.cancel()

    def _open(self, peer: bytes, message: link.Open, present: "_Stream | None") -> None:
        if present is not None:
            log.warning("a stream was opened twice")
        elif len(self._streams) >= MAX_STREAMS:
            self._fail(peer, message.sid, link.INTERNAL, "too many open streams")
        else:
            stream = _Stream(self, peer, message)
            self._streams[peer, message.sid] = stream
            self._heard[peer] = trio.current_time()
            self._nursery.start_soon(self._serve, stream)

    async def _serve(self, stream: "_Stream") -> None:
        peer, sid = stream.peer, stream.sid
        try:
            with stream.scope:
                self.send(peer, link.End(sid=sid, run=await stream.read_to_end()))
        except AgentRefusal as refusal:
            self._fail(peer, sid, refusal.code, refusal.message)
        except PeerGone as error:
            log.debug("a stream's reader is gone: %s", error)
        except Exception as error:  # a bug in one stream must not end the kernels' only connection
            log.exception("a stream broke", extra={"kernel": str(stream.spec.kernel_id)})
            self._fail(peer, sid, link.INTERNAL, f"{type(error).__name__}: {error}")
        finally:
            del self._streams[peer, sid]
            if not any(key[0] == peer for key in self._streams):
                del self._heard[peer]

    def send(self, peer: bytes, message: link.LinkMessage) -> None:
        """Send, or raise `PeerGone`."""
        self._send(peer, link.encode(message))

    def _fail(self, peer: bytes, sid: int, code: str, message: str = "") -> None:
        try:
            self.send(peer, link.Failed(sid=sid, code=code, message=message))
        except PeerGone as error:
            log.debug("a stream's reader is gone: %s", error)


class _Stream:
    """One open stream; its task runs `read_to_end` within ``scope``."""

    def __init__(self, streams: Streams, peer: bytes, spec: link.Open) -> None:
        self.peer = peer
        self.sid = spec.sid
        self.spec = spec
        self.scope = trio.CancelScope()
        self._streams = streams
        self._credit = spec.credit
        self._more = trio.Event()
        #: How long to wait for anything before looking whether the peer lives.
        self._patience = streams.peer_timeout / 4

    def add_credit(self, more: int) -> None:
        """The peer is ready to take so much more."""
        self._credit += more
        self._more.set()

    async def read_to_end(self) -> RunStatus:
        """Send all output; the status of the run when it has ended and everything was sent."""
        handler, spec = self._streams.handler, self.spec
        if spec.order is not None:
            await handler.start_run(spec.kernel_id, spec.run_id, spec.order)
        read = partial(handler.read_output, spec.kernel_id, spec.run_id)
        offset = spec.offset
        while True:
            budget = await self._budget()
            chunk = await read(offset=offset, max_bytes=budget - link.RECORD_COST, wait=self._patience)
            await self._send(list(chunk.records))
            offset = chunk.next_offset
            if chunk.run.ended and (not chunk.records or offset >= chunk.run.end_offset):
                return chunk.run

    async def _send(self, records: list[Record]) -> None:
        while records:
            part, records = link.take(records, await self._budget())
            self._credit -= sum(map(link.cost, part))
            self._streams.send(self.peer, link.Data(sid=self.sid, records=part, next=part[-1].end))
            await trio.lowlevel.checkpoint()

    async def _budget(self) -> int:
        """The cost that may be sent now, enough for one record at least; waits for that much credit."""
        while True:
            if self._streams.silence(self.peer) > self._streams.peer_timeout:
                raise PeerGone("the peer has been silent for too long")
            if self._credit > link.RECORD_COST:
                return min(self._credit, link.MAX_DATA)
            self._more = trio.Event()
            with trio.move_on_after(self._patience):
                await self._more.wait()
