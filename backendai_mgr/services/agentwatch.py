"""One agent under one lease: its reports are stored and reconciled with the rows, its silence is noticed."""

import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from math import inf
from typing import Any
from uuid import UUID

import attrs
import trio

from ..domain.ids import AgentId, KernelId
from ..domain.reconcile import Change, Reconciliation, Seen, reconcile
from ..wire.callosum import AgentError
from ..wire.reports import KernelReport, Report, ServicePort
from ..wire.rpc import AgentRefusal, AgentUnreachable
from .agentports import AgentLink, Agents, ReportFeed
from .files import read_log
from .hub import Wake
from .ports import AgentStore, KernelMove, Lease, StaleEpoch

log = logging.getLogger(__name__)

#: A kernel of ours without a row is ended after this long (a database that was set back may still want it).
UNKNOWN_GRACE = timedelta(minutes=10)
#: Rows are compared with an unchanged report this often all the same, in seconds.
FULL_RECONCILE = 15.0
WATCH_TICK = 1.0
#: Reports wait at most so long for an agent to take orders.
DESTROY_WAIT = 5.0
#: Of an ended kernel's log so much is stored, and reports wait at most so long for that.
STORED_LOG_BYTES = 1 << 20
LOG_WAIT = 5.0


@attrs.frozen(kw_only=True)
class KeeperConfig:
    """``owner`` names the worker, ``heartbeat_timeout`` and ``lease_ttl`` are in seconds."""

    owner: str
    cluster_id: str
    heartbeat_timeout: float
    lease_ttl: float


class AgentWatch:
    """One agent under one epoch: consumes its reports, reconciles, and notices its silence."""

    def __init__(
        self,
        store: AgentStore,
        agents: Agents,
        config: KeeperConfig,
        lease: Lease,
        look: Wake,
        stored: Callable[[AgentId, int, Report], None],
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._stored = stored
        self._config = config
        self._lease = lease
        self._link: AgentLink = agents.link(lease.agent_id, lease.addr)
        self._look = look
        self._now = now
        self._unknown_since: dict[UUID, datetime] = {}
        self._last: Report | None = None
        #: The trouble that the agent's row tells of.
        self._noted: str | None = None
        self._compared_at = -inf
        self._ids = {"agent": lease.agent_id}

    async def run(self) -> None:
        """Until cancelled. Raises groups of `StaleEpoch` or `StoreUnavailable`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_silence)
            async with self._link.reports(self._lease.epoch, self._config.owner) as feed:
                lock = trio.Lock()
                nursery.start_soon(self._look_on_demand, feed, lock)
                async for report in feed:
                    async with lock:
                        await self.take(report, feed)

    async def take(self, report: Report, feed: ReportFeed) -> None:
        """Store what is new in a report, then make "should" and "does" meet."""
        changed = self._last is None or _substance(report) != _substance(self._last)
        if changed:
            await self._store.store_report(self._lease.agent_id, self._lease.epoch, report, now=self._now())
            self._noted = None
        self._stored(self._lease.agent_id, self._lease.epoch, report)
        due = trio.current_time() - self._compared_at >= FULL_RECONCILE
        if due or changed or self._last is None or report.kernels != self._last.kernels:
            await self._reconcile(report, feed)
        self._last = report

    async def _reconcile(self, report: Report, feed: ReportFeed) -> None:
        rows, known = await self._store.kernels_of(
            self._lease.agent_id, [kernel.id for kernel in report.kernels]
        )
        outcome = reconcile(
            rows,
            known,
            [_seen(kernel) for kernel in report.kernels],
            boot=report.boot,
            seq=report.seq,
            now=self._now(),
            cluster_id=self._config.cluster_id,
        )
        if outcome.changes:
            await self._store.apply_moves(
                self._lease.agent_id,
                self._lease.epoch,
                [_move(change) for change in outcome.changes],
                now=self._now(),
            )
        if outcome.ended:
            ended = {(kernel.id, kernel.incarnation) for kernel in outcome.ended}
            await self._keep_logs(KernelId(kernel.id) for kernel in outcome.ended)
            await feed.ack(report, [k for k in report.kernels if (k.id, k.incarnation) in ended])
        self._compared_at = trio.current_time()
        await self._destroy(outcome)

    async def _keep_logs(self, kernel_ids: Iterable[KernelId]) -> None:
        """Store the newest of the ended kernels' logs before the agent is told that it may clean up."""
        with trio.move_on_after(LOG_WAIT):
            for kernel_id in kernel_ids:
                try:
                    log_bytes = await read_log(self._link, kernel_id, STORED_LOG_BYTES)
                except (AgentRefusal, AgentUnreachable, AgentError) as error:
                    log.info("the log of kernel %s is not kept: %s", kernel_id, error, extra=self._ids)
                    continue
                await self._store.store_log(self._lease.agent_id, self._lease.epoch, kernel_id, log_bytes)

    async def _destroy(self, outcome: Reconciliation) -> None:
        now = self._now()
        present = {kernel.id for kernel in outcome.unknown}
        self._unknown_since = {k: t for k, t in self._unknown_since.items() if k in present}
        for kernel in outcome.unknown:
            self._unknown_since.setdefault(kernel.id, now)
        doomed = [
            *outcome.destroy,
            *(k for k in outcome.unknown if now - self._unknown_since[k.id] >= UNKNOWN_GRACE),
        ]
        with trio.move_on_after(DESTROY_WAIT) as scope:
            async with trio.open_nursery() as nursery:
                for kernel in doomed:
                    nursery.start_soon(self._destroy_one, kernel)
        if scope.cancelled_caught:
            self._compared_at = -inf

    async def _destroy_one(self, kernel: Seen) -> None:
        """Told again after the next report if it fails."""
        try:
            await self._link.destroy_kernel(
                KernelId(kernel.id), kernel.incarnation, "session-terminated", self._lease.epoch
            )
        except AgentRefusal as refusal:
            if refusal.code == "stale-epoch":
                raise StaleEpoch(str(refusal)) from refusal
            log.warning("kernel was not destroyed: %s", refusal, extra=self._ids)
        except (AgentUnreachable, AgentError) as error:
            log.warning("kernel was not destroyed: %s", error, extra=self._ids)
            self._compared_at = -inf

    async def _look_on_demand(self, feed: ReportFeed, lock: trio.Lock) -> None:
        """Compare at once when told to, from a report made for it."""
        while True:
            if not await self._look.wait(FULL_RECONCILE):
                continue
            try:
                report = await self._link.report(self._lease.epoch)
            except AgentRefusal as refusal:
                raise StaleEpoch(str(refusal)) from refusal
            except (AgentUnreachable, AgentError) as error:
                log.info("no report on demand: %s", error, extra=self._ids)
                continue
            async with lock:
                self._compared_at = -inf
                await self.take(report, feed)

    async def _watch_silence(self) -> None:
        """ALIVE -> LOST after `heartbeat_timeout` without any frame, counted from our taking over.

        After a tick that came late this process had been stopped, not the agent: count anew.
        """
        timeout = self._config.heartbeat_timeout
        counted_from = trio.current_time()
        lost = False
        while True:
            expected = trio.current_time() + WATCH_TICK
            await trio.sleep_until(expected)
            now = trio.current_time()
            if now - expected > WATCH_TICK:
                counted_from = now
            await self._note_trouble()
            silent = now - max(counted_from, self._link.last_heard)
            if silent < timeout:
                lost = False
            elif not lost:
                lost = True
                self._last = None  # its next report must bring it back to ALIVE
                if await self._store.mark_lost(self._lease.agent_id, self._lease.epoch, now=self._now()):
                    log.warning("agent is LOST after %.1f s of silence", silent, extra=self._ids)

    async def _note_trouble(self) -> None:
        """Let `why` tell it; the next report takes it back, also for trouble that comes again right after."""
        trouble = self._link.trouble
        if trouble is not None and trouble != self._noted:
            self._last, self._noted = None, trouble
            await self._store.note_trouble(self._lease.agent_id, self._lease.epoch, trouble)


def _substance(report: Report) -> Report:
    """What of a report the agent's row keeps."""
    return attrs.evolve(report, seq=0, kernels=[], stats={}, occupied={})


def _seen(kernel: KernelReport) -> Seen:
    return Seen(
        id=kernel.id,
        incarnation=kernel.incarnation,
        cluster_id=kernel.cluster_id,
        state=kernel.state,
        reason=kernel.exit.reason if kernel.exit else "",
        exit_code=kernel.exit.exit_code if kernel.exit else None,
        service_ports=[_stored_port(port) for port in kernel.service_ports],
    )


def _stored_port(port: ServicePort) -> dict[str, Any]:
    """A service as its kernel's row keeps it."""
    told = attrs.asdict(port)
    return {name: told[name] for name in told if told[name] or not name.startswith("allowed_")}


def _move(change: Change) -> KernelMove:
    return KernelMove(
        kernel_id=change.row.kernel_id,
        session_id=change.row.session_id,
        incarnation=change.row.incarnation,
        seen=change.row.status,
        to=change.to,
        info=change.reason,
        exit_code=change.exit_code,
        service_ports=change.service_ports,
    )
