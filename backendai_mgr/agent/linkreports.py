"""The agent's side of ``EVENTS``: who may command (epochs), and reports to the one subscriber."""

import logging
from collections.abc import Callable, Sequence

import attrs
import trio

from ..runtime.zmqsocket import PeerGone
from ..wire import link
from ..wire.rpc import AgentRefusal
from .handler import Handler

log = logging.getLogger(__name__)

#: Sends frames to a peer, or raises `PeerGone`.
Send = Callable[[bytes, Sequence[bytes]], None]

#: Changes that come sooner than this after a report, in seconds, share the next one.
_GAP = 0.02


class Fence:
    """Remembers the highest epoch of any lease holder; whoever comes with a lower one has lost the lease."""

    def __init__(self) -> None:
        self.highest = 0

    def check(self, epoch: int) -> None:
        """Let this and higher epochs pass from now on; `AgentRefusal` stale-epoch for a lower one."""
        if epoch < self.highest:
            raise AgentRefusal("stale-epoch", f"epoch {epoch} is over, {self.highest} has begun")
        self.highest = epoch


@attrs.frozen
class _Subscriber:
    peer: bytes
    epoch: int


class Reports:
    """Sends the state to the subscriber: every ``interval`` seconds, at each change, at each subscription."""

    def __init__(self, handler: Handler, fence: Fence, send: Send, *, interval: float) -> None:
        self._handler = handler
        self._fence = fence
        self._send = send
        self._interval = interval
        self._subscriber: _Subscriber | None = None
        self._due = trio.Event()

    def subscribe(self, peer: bytes, message: link.Subscribe) -> None:
        """The peer takes the place of whoever subscribed before, or is refused."""
        if not self._admit(peer, message.epoch):
            return
        former, self._subscriber = self._subscriber, _Subscriber(peer, message.epoch)
        if former is not None and former.epoch < message.epoch and former.peer != peer:
            self._refuse(former.peer)
        if former is None or former.peer != peer:
            log.info("reports go to %s, epoch %d", message.owner, message.epoch)
        self._due.set()

    def acknowledge(self, peer: bytes, message: link.Ack) -> None:
        """The ended kernels named are stored by a rightful holder of the lease."""
        if self._admit(peer, message.epoch):
            self._handler.acknowledge(message.ended)

    async def run(self) -> None:
        """Report until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_changes)
            while True:
                with trio.move_on_after(self._interval):
                    await self._due.wait()
                self._due = trio.Event()
                self._report()
                await trio.sleep(min(_GAP, self._interval / 2))

    async def _watch_changes(self) -> None:
        seen = -1
        while True:
            seen = await self._handler.wait_changed(seen)
            self._due.set()
            await trio.lowlevel.checkpoint()

    def _report(self) -> None:
        subscriber = self._subscriber
        if subscriber is None:
            return
        if subscriber.epoch < self._fence.highest:  # a call brought a higher epoch
            self._subscriber = None
            self._refuse(subscriber.peer)
            return
        try:
            self._send(subscriber.peer, link.encode(link.Reported(report=self._handler.make_report())))
        except PeerGone as error:
            log.info("nobody takes the reports any more: %s", error)
            self._subscriber = None

    def _admit(self, peer: bytes, epoch: int) -> bool:
        try:
            self._fence.check(epoch)
        except AgentRefusal:
            self._refuse(peer)
            return False
        return True

    def _refuse(self, peer: bytes) -> None:
        try:
            self._send(peer, link.encode(link.Refused(epoch=self._fence.highest)))
        except PeerGone as error:
            log.debug("a former subscriber is gone: %s", error)
