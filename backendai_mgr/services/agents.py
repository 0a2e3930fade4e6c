"""Keeping agents: leases, and a supervising nursery for each agent held (`agentwatch`).

The lease fences writers against each other; the epoch it carries is checked by the database in the
transaction that stores a report, and by the agent.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

import trio

from ..domain.ids import AgentId
from ..runtime.supervise import supervise
from ..wire.reports import KernelReport, Report
from .agentports import Agents
from .agentwatch import AgentWatch, KeeperConfig
from .hub import Wake
from .ports import (
    AgentStore,
    EventRow,
    Lease,
    StaleEpoch,
    StoreUnavailable,
)

log = logging.getLogger(__name__)

RETRY = 1.0
#: An agent that claims to have seen this or a later epoch talks nonsense.
LAST_EPOCH = 1 << 62


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
