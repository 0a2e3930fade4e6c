"""The agent's end of the link: one ROUTER for all managers, with RPC, reports and output streams."""

import logging
from collections.abc import Sequence

import trio

from ..runtime.curve import CurveServer
from ..runtime.loglimit import LogLimit
from ..runtime.zmqsocket import PeerGone, Router, open_context
from ..wire import callosum, link
from ..wire.callosum import FrameError
from .handler import Handler
from .linkcalls import Calls
from .linkreports import Fence, Reports
from .linkstreams import Streams
from .linktunnels import Tunnels

log = logging.getLogger(__name__)

#: The longest PING that is echoed, bytes.
_MAX_PING = 1024


async def serve_link(
    handler: Handler,
    *,
    bind: str,
    report_interval: float,
    peer_timeout: float = 60.0,
    curve: CurveServer | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *handler* on *bind* (``tcp://host:port``, port ``*`` for any) until cancelled.

    ``started()`` tells the endpoint that is bound. Nothing that a peer sends, and no failing call, ends it;
    OSError when the address cannot be bound. Intervals in seconds: a report goes out at least every
    *report_interval*; a peer that is silent for *peer_timeout* loses its open streams and tunnels.
    """
    async with (
        open_context() as context,
        context.router(bind, curve=curve) as router,
        trio.open_nursery() as nursery,
    ):
        fence = Fence()
        reports = Reports(handler, fence, router.send, interval=report_interval)
        calls = Calls(handler, fence, router.send, nursery)
        streams = Streams(handler, router.send, nursery, peer_timeout=peer_timeout)
        tunnels = Tunnels(handler, router.send, nursery, peer_timeout=peer_timeout)
        nursery.start_soon(reports.run)
        nursery.start_soon(_log_refusals, router)
        task_status.started(router.endpoint)
        log.info("the agent listens on %s", router.endpoint)
        await _Dispatcher(router, calls, reports, streams, tunnels).run()


async def _log_refusals(router: Router) -> None:
    """Tell of peers that do not come in, each cause once in a while."""
    complaints = LogLimit()
    while True:
        reason = await router.refused()
        held = complaints.admit(reason, trio.current_time())
        if held is not None:
            log.warning("refused somebody who is no manager of ours: %s (%d more before)", reason, held)


class _Dispatcher:
    """Hands each message to the part that it is for. Never waits for any of them."""

    def __init__(
        self, router: Router, calls: Calls, reports: Reports, streams: Streams, tunnels: Tunnels
    ) -> None:
        self._router = router
        self._calls = calls
        self._reports = reports
        self._streams = streams
        self._tunnels = tunnels
        self._complaints = LogLimit()

    async def run(self) -> None:
        while True:
            peer, *frames = await self._router.recv()
            self._streams.heard(peer)
            try:
                self._dispatch(peer, frames)
            except FrameError as error:
                self._complain(peer, error)

    def _dispatch(self, peer: bytes, frames: Sequence[bytes]) -> None:
        match frames:
            case [callosum.UPPER, *_]:
                self._call(peer, frames)
            case [link.EVENTS | link.STREAM | link.TUNNEL, *_]:
                self._link_message(peer, link.decode(frames))
            case [callosum.PING, header, body] if len(header) + len(body) <= _MAX_PING:
                self._pong(peer, header, body)
            case _:
                raise FrameError(f"{len(frames)} frames of no known type")

    def _call(self, peer: bytes, frames: Sequence[bytes]) -> None:
        try:
            self._calls.on_message(peer, callosum.decode(frames))
        except callosum.CompressedBody as error:
            self._calls.refuse(peer, error.request, "CompressedBody", str(error))

    def _link_message(self, peer: bytes, message: link.LinkMessage) -> None:
        match message:
            case link.Subscribe():
                self._reports.subscribe(peer, message)
            case link.Ack():
                self._reports.acknowledge(peer, message)
            case link.Open() | link.Credit() | link.Close():
                self._streams.on_message(peer, message)
            case link.Dial() | link.Piece() | link.Taken() | link.Hangup():
                self._tunnels.on_message(peer, message)
            case _:
                raise FrameError(f"{message.op} is not for an agent")

    def _pong(self, peer: bytes, header: bytes, body: bytes) -> None:
        try:
            self._router.send(peer, [callosum.PONG, header, body])
        except PeerGone as error:
            log.debug("a pinging peer is gone: %s", error)

    def _complain(self, peer: bytes, error: FrameError) -> None:
        held = self._complaints.admit(peer, trio.current_time())
        if held is not None:
            log.warning("dropped a message of peer %s: %s (%d more before)", peer.hex(), error, held)
