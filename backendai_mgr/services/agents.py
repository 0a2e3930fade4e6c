"""Keeping agents: leases, a supervising nursery for each agent held, its reports, its silence.

The lease fences writers against each other; the epoch it carries is checked by the database in the
transaction that stores a report, and by the agent.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import partial
from math import inf
from uuid import UUID

import attrs
import trio

from ..domain.ids import AgentId, KernelId
from ..domain.reconcile import Change, Reconciliation, Seen, reconcile
from ..runtime.supervise import supervise
from ..wire.callosum import AgentError
from ..wire.reports import KernelReport, Report
from ..wire.rpc import AgentRefusal, AgentUnreachable
from .files import read_log
from .hub import Wake
from .ports import (
    AgentLink,
    Agents,
    AgentStore,
    EventRow,
    KernelMove,
    Lease,
    ReportFeed,
    StaleEpoch,
    StoreUnavailable,
)

log = logging.getLogger(__name__)

#: A kernel of ours without a row is ended after this long (a database that was set back may still want it).
UNKNOWN_GRACE = timedelta(minutes=10)
#: Rows are compared with an unchanged report this often all the same, in seconds.
FULL_RECONCILE = 15.0
WATCH_TICK = 1.0
#: Reports wait at most so long for an agent to take orders.
DESTROY_WAIT = 5.0
RETRY = 1.0
#: Of an ended kernel's log so much is stored, and reports wait at most so long for that.
STORED_LOG_BYTES = 1 << 20
LOG_WAIT = 5.0
#: An agent that claims to have seen this or a later epoch talks nonsense.
LAST_EPOCH = 1 << 62


@attrs.frozen(kw_only=True)
class KeeperConfig:
    """``owner`` names the worker, ``heartbeat_timeout`` and ``lease_ttl`` are in seconds."""

    owner: str
    cluster_id: str
    heartbeat_timeout: float
    lease_ttl: float


class AgentKeeper:
    """Holds leases on agents and runs a nursery for each one held."""

    def __init__(
        self, store: AgentStore, agents: Agents, config: KeeperConfig, *, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._agents = agents
        self._config = config
        self._now = now
        self._held: dict[AgentId, _Held] = {}
        #: Epochs that agents obey and that our leases, of a database that was set back, must grow past.
        self._obeyed: dict[AgentId, int] = {}
        self._renew = Wake()
        #: The newest stored report of each agent that this worker keeps or has kept.
        self.reports: dict[AgentId, Report] = {}
        self._reported = trio.Event()
        self._on_report: list[Callable[[AgentId, int, Report], None]] = []

    @property
    def owner(self) -> str:
        """The name that this worker's leases have."""
        return self._config.owner

    def on_report(self, listener: Callable[[AgentId, int, Report], None]) -> None:
        """Call *listener* with each report that was stored, and the epoch under which it was."""
        self._on_report.append(listener)

    async def first_report(self, agent_id: AgentId) -> None:
        """Wait until a report of this agent was stored by this worker."""
        while agent_id not in self.reports:
            await self._reported.wait()

    async def all_acknowledged(self) -> None:
        """Wait until no agent that this worker keeps has an ended kernel to tell of."""
        while any(kernel.exit for agent_id in self._held for kernel in self._kernels(agent_id)):
            await self._reported.wait()

    def _kernels(self, agent_id: AgentId) -> Sequence[KernelReport]:
        report = self.reports.get(agent_id)
        return () if report is None else report.kernels

    def on_event(self, event: EventRow) -> None:
        """Look at an agent at once when one of its kernels is to end, and for one that has joined."""
        if event.type == "agent_joined":
            self._renew.set()
        if event.agent_id is not None and event.type == "kernel_terminating":
            held = self._held.get(event.agent_id)
            if held is not None:
                held.look.set()

    async def run(self) -> None:
        """Renew leases for ever. While the database is away each lease runs out on its own clock."""
        ttl = self._config.lease_ttl
        async with trio.open_nursery() as nursery:
            while True:
                asked_at = trio.current_time()
                try:
                    leases = await self._store.lease(self._config.owner, ttl=ttl, above=self._obeyed)
                except StoreUnavailable as error:
                    log.warning("leases were not renewed: %s", error)
                else:
                    self._adopt(leases, asked_at + ttl * 2 / 3, nursery)
                await self._renew.wait(ttl / 4)

    async def release(self) -> None:
        """Give the leases back, so that another worker need not wait for their end."""
        await self._store.release(self._config.owner)

    def _adopt(self, leases: Sequence[Lease], deadline: float, nursery: trio.Nursery) -> None:
        mine = {lease.agent_id: lease for lease in leases}
        for agent_id, held in list(self._held.items()):
            lease = mine.get(agent_id)
            if lease is None or (lease.epoch, lease.addr) != (held.lease.epoch, held.lease.addr):
                held.scope.cancel()
                del self._held[agent_id]
        for agent_id, lease in mine.items():
            if lease.epoch > self._obeyed.get(agent_id, lease.epoch):
                del self._obeyed[agent_id]
            known = self._held.get(agent_id)
            if known is None:
                known = self._held[agent_id] = _Held(lease, trio.CancelScope())
                nursery.start_soon(self._keep, known)
            known.scope.deadline = deadline

    async def _keep(self, held: "_Held") -> None:
        """Everything that is done for one agent while its lease lasts. Its trouble is no other agent's."""
        lease = held.lease
        ids: dict[str, str] = {"agent": lease.agent_id}
        log.info("keeping agent under epoch %d", lease.epoch, extra=ids)
        watch = AgentWatch(
            self._store, self._agents, self._config, lease, held.look, self._note, now=self._now
        )
        try:
            with held.scope:
                await supervise(
                    partial(self._watch_on, watch, ids), name=f"the watch of agent {lease.agent_id}"
                )
        finally:
            if self._held.get(lease.agent_id) is held:
                del self._held[lease.agent_id]

    def _note(self, agent_id: AgentId, epoch: int, report: Report) -> None:
        self.reports[agent_id] = report
        for listener in self._on_report:
            listener(agent_id, epoch, report)
        self._reported.set()
        self._reported = trio.Event()

    async def _watch_on(self, watch: "AgentWatch", ids: dict[str, str]) -> None:
        again = True
        while again:
            again = await self._watch(watch, ids)
            if again:
                await trio.sleep(RETRY)

    async def _watch(self, watch: "AgentWatch", ids: dict[str, str]) -> bool:
        """Watch until something gives; whether to try again under this lease."""
        again = True
        try:
            await watch.run()
        except* StaleEpoch as group:
            log.warning("another worker keeps this agent now: %s", group.exceptions[0], extra=ids)
            self._outgrow(AgentId(ids["agent"]), _highest(group))
            again = False
        except* StoreUnavailable as group:
            log.warning("reports cannot be stored: %s", group.exceptions[0], extra=ids)
        return again

    def _outgrow(self, agent_id: AgentId, obeyed: int) -> None:
        """If the lease is still ours, its next epoch is above the one that the agent obeys."""
        if 0 < obeyed < LAST_EPOCH:
            self._obeyed[agent_id] = max(obeyed, self._obeyed.get(agent_id, 0))
            self._renew.set()


def _highest(stale: BaseExceptionGroup[StaleEpoch]) -> int:
    return max(_highest(e) if isinstance(e, BaseExceptionGroup) else e.highest for e in stale.exceptions)


class _Held:
    def __init__(self, lease: Lease, scope: trio.CancelScope) -> None:
        self.lease = lease
        self.scope = scope
        self.look = Wake()


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
        noted: str | None = None
        while True:
            expected = trio.current_time() + WATCH_TICK
            await trio.sleep_until(expected)
            now = trio.current_time()
            if now - expected > WATCH_TICK:
                counted_from = now
            if self._link.trouble != noted:
                noted = self._link.trouble
                await self._note_trouble(noted)
            silent = now - max(counted_from, self._link.last_heard)
            if silent < timeout:
                lost = False
            elif not lost:
                lost = True
                self._last = None  # its next report must bring it back to ALIVE
                if await self._store.mark_lost(self._lease.agent_id, self._lease.epoch, now=self._now()):
                    log.warning("agent is LOST after %.1f s of silence", silent, extra=self._ids)

    async def _note_trouble(self, trouble: str | None) -> None:
        """Let `why` tell it; the next report takes it back."""
        if trouble is not None:
            self._last = None
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
    )


def _move(change: Change) -> KernelMove:
    return KernelMove(
        kernel_id=change.row.kernel_id,
        session_id=change.row.session_id,
        incarnation=change.row.incarnation,
        seen=change.row.status,
        to=change.to,
        info=change.reason,
        exit_code=change.exit_code,
    )
