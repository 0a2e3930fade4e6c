"""The manager's side of ``EVENTS``: the newest report of an agent, for one consumer."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from functools import partial

import trio

from ..services.ports import StaleEpoch
from ..wire import link
from ..wire.reports import KernelReport, Report

#: Sends frames if that is possible at once, and says whether it was.
TrySend = Callable[[Sequence[bytes]], bool]


class Feed:
    """Reports under one epoch (`services.agentports.ReportFeed`).

    Only the newest report is kept: states, not deltas, so a consumer that is slow skips what is outdated.
    """

    def __init__(self, epoch: int, owner: str, try_send: TrySend) -> None:
        self.epoch = epoch
        self._owner = owner
        self._try_send = try_send
        self._newest: Report | None = None
        self._error: Callable[[], Exception] | None = None
        self._changed = trio.Event()
        self.last_report = trio.current_time()
        #: Whether any report has come on the present connection.
        self.heard = False

    def __aiter__(self) -> AsyncIterator[Report]:
        return self

    async def __anext__(self) -> Report:
        """The newest report not yet handed out; `StaleEpoch` or `AgentUnreachable` when none will come."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._newest is None and self._error is None:
            self._changed = trio.Event()
            await self._changed.wait()
        if self._error is not None:
            raise self._error()
        report, self._newest = self._newest, None
        assert report is not None
        return report

    async def ack(self, report: Report, ended: Collection[KernelReport]) -> None:
        """Tell the agent what is stored. If that is lost, the next report lists the kernels again."""
        await trio.lowlevel.checkpoint()
        names = [(kernel.id, kernel.incarnation) for kernel in ended]
        self._try_send(link.encode(link.Ack(epoch=self.epoch, seq=report.seq, ended=names)))

    # -- told by the connection

    def subscribe(self) -> None:
        """Ask for reports; the agent answers with one at once."""
        self._try_send(link.encode(link.Subscribe(epoch=self.epoch, owner=self._owner)))

    def put(self, report: Report) -> None:
        self._newest = report
        self.heard = True
        self.last_report = trio.current_time()
        self._changed.set()

    def fail(self, error: Callable[[], Exception]) -> None:
        self._error = self._error or error
        self._changed.set()


class Feeds:
    """At most one feed per connection is fed; opening another one ends the one before."""

    def __init__(self, try_send: TrySend, *, interval: float) -> None:
        self._try_send = try_send
        self._interval = interval
        self._feed: Feed | None = None

    def open(self, epoch: int, owner: str) -> Feed:
        if self._feed is not None:
            self._feed.fail(StaleEpoch)
        self._feed = Feed(epoch, owner, self._try_send)
        self._feed.subscribe()
        return self._feed

    def close(self, feed: Feed) -> None:
        if self._feed is feed:
            self._feed = None

    def tick(self, now: float) -> None:
        """Subscribe again when reports stay away: the agent, or the connection to it, began anew."""
        if self._feed is not None and now - self._feed.last_report >= 2 * self._interval:
            self._feed.subscribe()

    def on_pong(self) -> None:
        """The connection is there: a feed that was opened before it has not been asked for yet."""
        if self._feed is not None and not self._feed.heard:
            self._feed.subscribe()

    def on_break(self) -> None:
        """Whoever answers on the next connection has not been asked for reports."""
        if self._feed is not None:
            self._feed.heard = False

    def on_report(self, report: Report) -> None:
        if self._feed is not None:
            self._feed.put(report)

    def on_refused(self, highest: int) -> None:
        if self._feed is not None and self._feed.epoch < highest:
            self._feed.fail(partial(StaleEpoch, f"the agent obeys epoch {highest}", highest=highest))

    def abort(self, error: Callable[[], Exception]) -> None:
        """No report will come any more."""
        if self._feed is not None:
            self._feed.fail(error)
