"""Carries SCHEDULED and RESTARTING kernels to their agents.

RUNNING is written by whoever holds the agent's lease.
"""

import logging
from collections.abc import Callable, Collection
from datetime import datetime

import trio

from ..domain.ids import KernelId
from ..domain.lifecycle import RULES
from ..domain.reconcile import FAILED_TO_START
from ..domain.sessions import KernelToStart
from ..domain.status import Status
from ..runtime.failpoint import failpoint
from ..wire.callosum import AgentError
from ..wire.rpc import AgentRefusal, AgentUnreachable, KernelSpec
from .agentports import Agents
from .hub import Wake
from .ports import KernelMove, Scheduling, Sessions

log = logging.getLogger(__name__)

TICK = 5.0
BATCH = 64
#: How many kernels are being created at a time by this worker.
CONCURRENCY = 32
RETRY = 0.5
#: Most characters of an agent's words that are kept.
LONGEST_SENTENCE = 2000


class Starter:
    """Claims SCHEDULED kernels and asks their agents to create them.

    RESTARTING ones are not claimed: their agent is asked by every starter until one has stored its answer.
    """

    def __init__(
        self,
        scheduling: Scheduling,
        sessions: Sessions,
        agents: Agents,
        *,
        cluster_id: str,
        now: Callable[[], datetime],
        scheduled: Wake,
    ) -> None:
        self._scheduling = scheduling
        self._sessions = sessions
        self._agents = agents
        self._cluster_id = cluster_id
        self._now = now
        self._scheduled = scheduled
        #: Lives that this worker is asking agents for.
        self._asking: set[tuple[KernelId, int]] = set()
        self._slots = trio.CapacityLimiter(CONCURRENCY)

    async def run(self) -> None:
        """Start what is scheduled, for ever. One kernel's trouble does not hold up another's."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_over, nursery)
            while True:
                for kernel in await self._scheduling.to_start(BATCH):
                    if await self._scheduling.claim_start(kernel, now=self._now()):
                        failpoint("start.after_claim")
                        nursery.start_soon(self._start, kernel)
                for kernel in await self._scheduling.to_restart(BATCH):
                    nursery.start_soon(self._start, kernel)
                await self._scheduled.wait(TICK)

    async def _take_over(self, nursery: trio.Nursery) -> None:
        """Start what other starters claimed and may not live to carry out: create can be repeated.

        At first that is whatever is unanswered, later what has been so for a while.
        """
        before: Collection[tuple[KernelId, int]] | None = None
        while True:
            found = {_life(kernel): kernel for kernel in await self._scheduling.unanswered(BATCH)}
            for life, kernel in found.items():
                if before is None or life in before:
                    nursery.start_soon(self._start, kernel)
            before = found.keys()
            await trio.sleep(TICK)

    async def _start(self, kernel: KernelToStart) -> None:
        if (life := _life(kernel)) not in self._asking:
            self._asking.add(life)
            try:
                await self._ask(kernel)
            finally:
                self._asking.discard(life)

    async def _ask(self, kernel: KernelToStart) -> None:
        ids = {"session": str(kernel.session_id), "kernel": str(kernel.kernel_id), "agent": kernel.agent_id}
        async with self._slots:
            problem = await self._create(kernel)
            if problem is not None:
                log.warning("kernel did not start: %s", problem, extra=ids)
                await self._give_up(kernel, problem)

    async def _create(self, kernel: KernelToStart) -> str | None:
        """Ask the agent until it answers or the status's own deadline is near; what went wrong, or None.

        RESTARTING may be stayed in as long as PREPARING.
        """
        link = self._agents.link(kernel.agent_id, kernel.agent_addr)
        stay = RULES[Status.PREPARING].stay
        assert stay is not None
        problem = "the agent did not answer in time"
        with trio.move_on_after(stay.total_seconds() / 2):
            while True:
                try:
                    boot, seq, _ = await link.create_kernel(_spec(kernel, self._cluster_id))
                    await self._scheduling.created(kernel.kernel_id, kernel.incarnation, boot=boot, seq=seq)
                    return None
                except AgentUnreachable as error:
                    problem = str(error) or problem
                    await trio.sleep(RETRY)
                except (AgentRefusal, AgentError) as error:
                    return _words(error)
        return problem

    async def _give_up(self, kernel: KernelToStart, problem: str) -> None:
        """PREPARING -> CANCELLED, RESTARTING -> TERMINATING, with the agent's own words.

        The reconciler ends a kernel that the agent may have after all.
        """
        again = kernel.status is Status.RESTARTING
        move = KernelMove(
            kernel_id=kernel.kernel_id,
            session_id=kernel.session_id,
            incarnation=kernel.incarnation,
            seen=Status.RESTARTING if again else Status.PREPARING,
            to=Status.TERMINATING if again else Status.CANCELLED,
            info=FAILED_TO_START,
            sentence=problem[:LONGEST_SENTENCE],
        )
        await self._sessions.move([move], now=self._now())


def _life(kernel: KernelToStart) -> tuple[KernelId, int]:
    return kernel.kernel_id, kernel.incarnation


def _words(error: AgentRefusal | AgentError) -> str:
    """What the agent said, without the code that programs go by."""
    return (error.message if isinstance(error, AgentRefusal) else "") or str(error)


def _spec(kernel: KernelToStart, cluster_id: str) -> KernelSpec:
    return KernelSpec(
        kernel_id=kernel.kernel_id,
        session_id=kernel.session_id,
        incarnation=kernel.incarnation,
        cluster_id=cluster_id,
        session_name=kernel.session_name,
        image=kernel.image,
        architecture=kernel.architecture,
        slots=dict(kernel.slots),
        environ=dict(kernel.environ),
        bootstrap_script=kernel.bootstrap_script,
        preopen_ports=list(kernel.preopen_ports),
    )
