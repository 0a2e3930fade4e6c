"""One incarnation of a kernel on this agent, from its start or adoption until its end was acknowledged."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import trio

from ..domain.status import KernelState
from ..shim.failpoint import failpoint
from ..wire.reports import KernelExit, KernelReport, ServicePort
from ..wire.rpc import KernelSpec, RunStatus
from .backends.interface import Backend, Shim, StartFailed
from .pastruns import PastRuns
from .processes import Process, held
from .runs import KernelRuns
from .scratch import Scratch, tail
from .shimlink import Hello, ShimGone, ShimLink, ShimRefusal, ShimSilent, open_link

log = logging.getLogger(__name__)

#: Seconds from the shim's first answer until the kernel must be ready for runs.
READY_TIMEOUT = 30.0
#: Between two questions to the shim whether it is well.
HEARTBEAT = 10.0
#: For each step of a kernel's end, before the shim is killed instead.
END_TIMEOUT = 5.0
#: From the end of a connection until its shim counts as living on.
DEATH_TIMEOUT = 1.0

LOST = "lost"
LIFETIME_EXCEEDED = "lifetime-exceeded"
FAILED_TO_START = "failed-to-start"


class Kernel:
    """A kernel and the connection to its shim. `live` is its life; the other methods are called meanwhile."""

    def __init__(
        self,
        spec: KernelSpec,
        scratch: Scratch,
        backend: Backend,
        *,
        changed: Callable[[], None],
        clock: Callable[[], float],
        lifetime: float = 0.0,
        service_ports: Sequence[ServicePort] = (),
    ) -> None:
        """*lifetime*: seconds from its start until it is ended; 0 for no limit."""
        self.spec = spec
        self.scratch = scratch
        self.runs = KernelRuns(scratch.runs)
        self.service_ports = service_ports
        #: Its shim's socket and process, while we are connected to it.
        self.shim: tuple[Path, int] | None = None
        self.state = KernelState.STARTING
        self.exit: KernelExit | None = None
        #: Why it never came to run; None while it starts, and when it ran.
        self.failure: str | None = None
        #: It runs, or it never will.
        self.settled = trio.Event()
        #: An end that was asked for has begun, or nothing of it runs any more.
        self.ending = trio.Event()
        #: It has ended, and its shim has gone too.
        self.over = trio.Event()
        #: Its life is over; set by the registry when nothing of it is left.
        self.gone = trio.Event()
        #: A later incarnation takes over the scratch folder.
        self.superseded = False
        self._backend = backend
        self._changed = changed
        self._clock = clock
        self._lifetime = lifetime
        self._last_active = clock()
        #: It ran, or an earlier agent may have told of it: its end has to be reported and acknowledged.
        self._reportable = False
        self.ended = trio.Event()
        self._end_asked = trio.Event()
        self._end_reason = ""
        self._acknowledged = trio.Event()
        self._dismissed = trio.Event()

    def __str__(self) -> str:
        return f"{self.spec.kernel_id} ({self.spec.incarnation})"

    @property
    def living(self) -> bool:
        """Whether it holds its slots."""
        return self.state is not KernelState.ENDED

    @property
    def reported(self) -> bool:
        """Whether reports must tell of it."""
        return self.living or (self._reportable and not self._acknowledged.is_set())

    def report(self) -> KernelReport:
        return KernelReport(
            id=self.spec.kernel_id,
            session_id=self.spec.session_id,
            incarnation=self.spec.incarnation,
            cluster_id=self.spec.cluster_id,
            state=self.state,
            exit=self.exit,
            last_active=self._last_active,
            service_ports=list(self.service_ports),
        )

    def ask_end(self, reason: str) -> None:
        """End it as soon as its shim can be told; the first reason counts."""
        if not self._end_asked.is_set():
            self._end_reason = reason
            self._end_asked.set()

    def acknowledge(self) -> None:
        """Its end is known where it must be: it may go with all that it left."""
        self._acknowledged.set()
        self._dismissed.set()

    def dismiss(self) -> None:
        """Once it has ended its shim may go, acknowledged or not. A later agent will report its end again."""
        self._dismissed.set()

    def supersede(self) -> None:
        """End it for a later incarnation, which keeps the scratch folder. `gone` is set when that is free."""
        self.superseded = True
        self.ask_end("restarted")
        self.acknowledge()

    # -- its life

    async def live(self, make_shim: Callable[[], Awaitable[Shim | None]], *, adopted: bool = False) -> None:
        """Have the shim made or found, attend to it, and return when it is gone and its end acknowledged.

        A kernel that never ran returns at once, with `failure` set, unless earlier ones have left something.
        """
        had_shim = adopted and self.scratch.shim_file.exists()
        try:
            shim = await make_shim()
        except (StartFailed, OSError) as error:
            shim, self.failure = None, str(error)
        self._reportable = adopted and (had_shim or shim is not None)
        if shim is not None:
            with held(shim.process):
                while await self._attend(shim.process, shim.socket):
                    log.warning("the shim of kernel %s dropped our connection; connecting again", self)
                shim.process.kill()
                with trio.move_on_after(END_TIMEOUT):
                    await shim.process.wait()
        await self._backend.clear(self.spec)
        self._conclude()
        if self.scratch.has_runs() or self.scratch.has_work():
            # Of earlier incarnations: it stays until somebody knows, or the next incarnation takes it over.
            self._reportable = True
            self._changed()
        if self._reportable:
            await self._acknowledged.wait()

    def _conclude(self) -> None:
        """Nothing of it runs any more."""
        if not self._reportable and self.failure is None:
            self.failure = self._end_reason or "the agent or the shim died while it was starting"
        if self.exit is None:
            reason = self._end_reason or (LOST if self._reportable else FAILED_TO_START)
            self.exit = self.scratch.load_exit() or KernelExit(reason=reason)
        if self.failure is not None and not self._end_reason:  # it never ran, however it ended
            self.exit = KernelExit(reason=FAILED_TO_START, exit_code=self.exit.exit_code)
        self.scratch.save_exit(self.exit)
        self.runs.end(PastRuns(self.scratch.runs, self.exit.reason, self._clock()))
        self._set_state(KernelState.ENDED)
        self.ending.set()
        self.over.set()

    async def _attend(self, process: Process, socket: Path) -> bool:
        """Be connected to the shim until that ends; True when it lives and should be connected to again."""
        try:
            async with open_link(socket, process.pid, self) as link, trio.open_nursery() as nursery:
                self.shim = socket, process.pid
                nursery.start_soon(self._greet, link, process)
                nursery.start_soon(self._watch_health, link, process)
                nursery.start_soon(self._end_when_asked, link, process)
                nursery.start_soon(self._dismiss_when_over, link, process)
                await link.run()
                self.runs.detach(link)
                nursery.cancel_scope.cancel()
        except ShimGone as error:
            log.warning("no connection to the shim of kernel %s: %s", self, error)
            return False
        finally:
            self.shim = None
        with trio.move_on_after(DEATH_TIMEOUT):  # a dying process closes its files a little before it is dead
            await process.wait()
            return False
        return True

    async def _greet(self, link: ShimLink, process: Process) -> None:
        try:
            hello = await link.hello()
            if hello.unassigned:  # it was ready before anybody asked; now spec.json tells who it is
                await link.request("assign")
                hello = await link.hello()
        except (ShimGone, ShimSilent, ShimRefusal) as error:
            log.warning("the shim of kernel %s does not answer: %s", self, error)
            process.kill()
            return
        if (hello.kernel_id, hello.incarnation) != (str(self.spec.kernel_id), self.spec.incarnation):
            log.error("the shim of kernel %s serves %s (%d)", self, hello.kernel_id, hello.incarnation)
            process.kill()
            return
        self._take(hello)
        try:
            await self.runs.refresh(link)
        except (ShimGone, ShimSilent, ShimRefusal):
            return  # the connection has ended, or the health watch will see to it
        self.runs.attach(link)
        with trio.move_on_after(READY_TIMEOUT):
            await self.settled.wait()
        if self.settled.is_set():
            await self._limit_lifetime(hello.started_at)
            return
        self.failure = f"the kernel was not ready within {READY_TIMEOUT:g} s"
        process.kill()

    async def _limit_lifetime(self, started_at: float) -> None:
        """End it when its time is up, which its shim's clock began: whichever agent looks after it then."""
        if self._lifetime > 0:
            with trio.move_on_after(max(0.0, started_at + self._lifetime - self._clock())):
                await self.ended.wait()
            self.ask_end(LIFETIME_EXCEEDED)  # of no effect on what has ended

    def _take(self, hello: Hello) -> None:
        self._last_active = hello.last_active
        self.on_kernel(hello.state, hello.exit)

    async def _watch_health(self, link: ShimLink, process: Process) -> None:
        """Kill a shim that does not answer twice in a row: once may be because we were stopped ourselves."""
        strikes = 0
        while strikes < 2:
            await trio.sleep(HEARTBEAT)
            try:
                self._take(await link.hello())
                strikes = 0
            except ShimSilent:
                strikes += 1
            except (ShimGone, ShimRefusal):
                return
        log.error("the shim of kernel %s is stuck; it is killed", self)
        process.kill()

    async def _end_when_asked(self, link: ShimLink, process: Process) -> None:
        await self._end_asked.wait()
        try:
            await link.request("end", timeout=END_TIMEOUT, reason=self._end_reason)
            failpoint("destroy.after_end")
            self.ending.set()
            with trio.move_on_after(END_TIMEOUT):
                await self.ended.wait()
                return
        except (ShimSilent, ShimRefusal) as error:
            log.warning("the shim of kernel %s does not end it: %s", self, error)
        except ShimGone:
            return
        process.kill()

    async def _dismiss_when_over(self, link: ShimLink, process: Process) -> None:
        await self.ended.wait()
        if self._reportable:
            await self._dismissed.wait()
        try:
            await link.request("forget", timeout=END_TIMEOUT)
            with trio.move_on_after(END_TIMEOUT):
                await link.closed.wait()
                return
        except (ShimSilent, ShimRefusal) as error:
            log.warning("the shim of kernel %s does not go: %s", self, error)
        except ShimGone:
            return
        process.kill()

    # -- what the shim tells (shimlink.Listener)

    def on_kernel(self, state: str, end: dict[str, Any] | None) -> None:
        if state == KernelState.RUNNING:
            self._reportable = True
            self._set_state(KernelState.RUNNING)
        elif state == KernelState.ENDED:
            end = end or {}
            self.exit = KernelExit(reason=str(end.get("reason", LOST)), exit_code=end.get("exit_code"))
            if not self._reportable:
                self.failure = self.failure or self._why_it_did_not_start(self.exit)
            self._set_state(KernelState.ENDED)

    def _why_it_did_not_start(self, end: KernelExit) -> str:
        code = "" if end.exit_code is None else f", exit code {end.exit_code}"
        said = tail(self.scratch.log_file)
        return f"the kernel ended while it was starting ({end.reason}{code})" + (f": {said}" if said else "")

    def on_run(self, run: RunStatus) -> None:
        self._last_active = max(self._last_active, run.queued_at, run.started_at or 0.0, run.ended_at or 0.0)
        self.runs.on_run(run)

    def on_more(self, run_id: str, end: int, ended: bool) -> None:
        self.runs.on_more(run_id, end, ended)

    def _set_state(self, state: KernelState) -> None:
        if self.state is not KernelState.ENDED and self.state is not state:
            self.state = state
            self._changed()
        if state is not KernelState.STARTING:
            self.settled.set()
        if state is KernelState.ENDED:
            self.ended.set()
