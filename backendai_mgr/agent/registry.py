"""All kernels of an agent, as the link server asks for them."""

import logging
import platform
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from uuid import UUID

import attrs
import trio

from ..domain.ids import is_run_id
from ..domain.slots import Slots
from ..runtime.supervise import supervise
from ..shim.failpoint import failpoint
from ..wire.calls import ServiceStarted
from ..wire.reports import KernelReport, Report
from ..wire.rpc import (
    BESIDE,
    MAX_RUNS,
    AgentRefusal,
    KernelSpec,
    RunOrder,
    RunPlace,
    RunStatus,
    Started,
    page_of,
)
from . import capacity
from .apps import Apps
from .backends.interface import Backend, Shim
from .files import UPLOAD_SIZE, FileAccess, KernelFiles
from .handler import Chunk
from .kernel import Kernel
from .pastkernels import PastKernels
from .pastruns import PastRuns
from .retention import Limits, Retention
from .runs import KernelRuns
from .scratch import KernelStore

log = logging.getLogger(__name__)


#: Public numbers of kernels' ports, unless told otherwise.
PORTS = range(30000, 31001)


class KernelRegistry:
    """The kernels that exist here, and those that ended and are not yet acknowledged: a `Handler`.

    Make it with `open_registry`. Each kernel is a task in the registry's nursery, so that what a caller
    began goes on when the caller is cancelled.
    """

    def __init__(
        self,
        store: KernelStore,
        backend: Backend,
        offered: Slots,
        nursery: trio.Nursery,
        *,
        boot: str,
        clock: Callable[[], float],
        upload_size: int = UPLOAD_SIZE,
        session_lifetime: float = 0.0,
        run_timeout: float = 0.0,
        retention: Limits,
        ports: range = PORTS,
    ) -> None:
        self._store = store
        self._backend = backend
        self._offered = offered
        self._nursery = nursery
        self._boot = boot
        self._clock = clock
        self._lifetime = session_lifetime
        self._run_timeout = run_timeout
        self._version = _own_version()
        self._files = FileAccess(upload_size)
        self._past = PastKernels(store)
        self._retention = Retention(store.folders_of_runs, retention, clock=clock)
        self._apps = Apps(backend, ports)
        self._kernels: dict[UUID, Kernel] = {}
        self._seq = 0
        self._changes = 0
        self._changed = trio.Event()

    # -- reports

    def make_report(self) -> Report:
        self._seq += 1
        kernels = [kernel for kernel in self._kernels.values() if kernel.reported]
        return Report(
            boot=self._boot,
            seq=self._seq,
            version=self._version,
            architecture=platform.machine(),
            capacity=self._offered.to_text(),
            occupied=capacity.occupied(kernel.spec.slots for kernel in kernels if kernel.living).to_text(),
            images=list(self._backend.images()),
            kernels=[kernel.report() for kernel in kernels],
            missing=dict(self._backend.missing()),
            stats={**self._backend.stats(), "runs": self._retention.stats()},
        )

    async def wait_changed(self, seen: int) -> int:
        while self._changes == seen:
            await self._changed.wait()
        return self._changes

    def acknowledge(self, ended: Collection[tuple[UUID, int]]) -> None:
        for kernel_id, incarnation in ended:
            kernel = self._kernels.get(kernel_id)
            if kernel is not None and kernel.spec.incarnation == incarnation and not kernel.living:
                self._retire(kernel)
        self._store.forget_retired(self._clock())

    def _retire(self, kernel: Kernel) -> None:
        try:
            self._store.retire(kernel.spec.kernel_id, kernel.spec.incarnation)
        except OSError as error:  # it is reported, and acknowledged, again
            log.error("the end of kernel %s cannot be recorded: %s", kernel, error)
        else:
            failpoint("destroy.after_retire")
            kernel.acknowledge()

    # -- kernels

    async def create_kernel(self, spec: KernelSpec) -> KernelReport:
        """Start the kernel, or attach to the one with this id and incarnation; returns when it runs.

        Refuses stale-incarnation, create-failed.
        """
        kernel = self._admit(spec)
        await kernel.settled.wait()
        if kernel.failure is not None:
            raise AgentRefusal("create-failed", kernel.failure)
        return kernel.report()

    async def destroy_kernel(self, kernel_id: UUID, incarnation: int, reason: str) -> None:
        """End this incarnation and earlier ones; returns when killing has begun. Nothing for an unknown one.

        A creation that arrives later than this is refused.
        """
        kernel = self._kernels.get(kernel_id)
        if kernel is None or kernel.spec.incarnation < incarnation:
            self._store.retire(kernel_id, incarnation)
        if kernel is not None and kernel.spec.incarnation <= incarnation:
            log.info("kernel %s is destroyed: %s", kernel, reason, extra={"kernel": str(kernel_id)})
            kernel.ask_end(reason)
            await kernel.ending.wait()

    async def end_all(self, reason: str) -> None:
        """End all kernels; returns when neither they nor their shims live, and nothing is left of those whose
        end was acknowledged. The ends of others stay to be reported."""
        kernels = list(self._kernels.values())
        for kernel in kernels:
            kernel.ask_end(reason)
            kernel.dismiss()
        for kernel in kernels:
            await kernel.over.wait()
        for kernel in kernels:
            if not kernel.reported:
                await kernel.gone.wait()

    def _admit(self, spec: KernelSpec) -> Kernel:
        old = self._kernels.get(spec.kernel_id)
        latest = self._store.retired(spec.kernel_id)
        if spec.incarnation <= latest:
            raise AgentRefusal("stale-incarnation", f"incarnation {latest} of this kernel is over")
        if old is not None and spec.incarnation < old.spec.incarnation:
            raise AgentRefusal("stale-incarnation", f"this kernel is in incarnation {old.spec.incarnation}")
        if old is not None and spec.incarnation == old.spec.incarnation and old.failure is None:
            return old
        return self._begin(spec, old)

    def _begin(self, spec: KernelSpec, predecessor: Kernel | None) -> Kernel:
        kernel = self._kernel(spec := self._apps.assign(spec))

        async def make_shim() -> Shim:
            if predecessor is not None:
                predecessor.supersede()
                await predecessor.gone.wait()
                failpoint("restart.after_gone")
            return await self._backend.start(spec)

        # No change to be told at once: nobody waits for a kernel that starts, and the report that it runs
        # would have to wait for the gap after that one.
        self._nursery.start_soon(self._keep, kernel, partial(kernel.live, make_shim))
        return kernel

    async def adopt_all(self) -> None:
        """Take over what an earlier agent left; returns when the state of each kernel is known."""
        for spec, scratch in self._store.scan():
            self._apps.keep(spec)
            kernel = self._kernel(spec)
            if spec.incarnation <= self._store.retired(spec.kernel_id):
                kernel.acknowledge()  # the earlier agent was, and began to clean up
                kernel.ask_end("retired")
            adopt = partial(self._backend.adopt, spec, scratch)
            self._nursery.start_soon(self._keep, kernel, partial(kernel.live, adopt, adopted=True))
        for kernel in list(self._kernels.values()):
            await kernel.settled.wait()

    def _kernel(self, spec: KernelSpec) -> Kernel:
        scratch = self._store.scratch(spec.kernel_id)
        kernel = Kernel(
            spec,
            scratch,
            self._backend,
            changed=self._note_change,
            clock=self._clock,
            lifetime=self._lifetime,
            service_ports=self._apps.ports(spec),
        )
        self._kernels[spec.kernel_id] = kernel
        return kernel

    async def _keep(self, kernel: Kernel, live: Callable[[], Awaitable[None]]) -> None:
        """A kernel's task: its life, and then its removal."""
        await live()
        if not kernel.superseded:
            self._put_away(kernel)
            failpoint("destroy.before_remove")
            try:
                await trio.to_thread.run_sync(self._store.remove, kernel.scratch, abandon_on_cancel=True)
            except OSError as error:
                log.error("what kernel %s left cannot be removed: %s", kernel, error)
            failpoint("destroy.after_remove")
            if not kernel.superseded:  # meanwhile
                self._backend.release(kernel.spec.kernel_id)
                self._apps.release(kernel.spec.kernel_id)
        if self._kernels.get(kernel.spec.kernel_id) is kernel:
            del self._kernels[kernel.spec.kernel_id]
        kernel.gone.set()
        self._note_change()

    def _put_away(self, kernel: Kernel) -> None:
        """Keep the runs. At once, so that nobody reads where they are not any more."""
        assert kernel.exit is not None
        now = self._clock()
        try:
            past = self._store.archive(kernel.scratch, kernel.exit, now)
        except OSError as error:
            log.error("the runs of kernel %s cannot be kept: %s", kernel, error)
            return
        failpoint("destroy.after_archive")
        if past is not None:
            kernel.runs.relocate(PastRuns(past, kernel.exit.reason, now))

    def _note_change(self) -> None:
        self._changes += 1
        self._changed.set()
        self._changed = trio.Event()

    def files(self, kernel_id: UUID) -> KernelFiles:
        """The files of the kernel's work folder, whatever it does."""
        return self._files.of(self._kernel_here(kernel_id))

    # -- runs

    async def start_run(self, kernel_id: UUID, run_id: str, order: RunOrder) -> Started:
        if not is_run_id(run_id):
            raise AgentRefusal("bad-request", "a run id is 1 to 64 letters, digits and . _ -")
        kernel = self._kernel_here(kernel_id)
        spec = order.spec
        if not spec.timeout and self._run_timeout and spec.mode not in BESIDE:
            spec = attrs.evolve(spec, timeout=self._run_timeout)
        if spec.mode == "batch":
            spec = self._backend.lines(kernel.spec, spec)
        return await kernel.runs.start(run_id, attrs.evolve(order, spec=spec))

    async def get_run(self, kernel_id: UUID, run_id: str) -> RunStatus:
        return await self._runs(kernel_id).get(run_id)

    async def list_runs(
        self, kernel_id: UUID, *, limit: int = MAX_RUNS, after: RunPlace | None = None
    ) -> Sequence[RunStatus]:
        return page_of(await self._runs(kernel_id).list(), limit=limit, after=after)

    async def delete_run(self, kernel_id: UUID, run_id: str) -> None:
        await self._runs(kernel_id).delete(run_id)

    async def interrupt_run(self, kernel_id: UUID, run_id: str | None) -> RunStatus | None:
        return await self._runs(kernel_id).interrupt(run_id)

    async def abandon_run(self, kernel_id: UUID, run_id: str, after: float) -> None:
        self._nursery.start_soon(self._kernel_here(kernel_id).runs.interrupt_unless_read, run_id, after)

    async def answer_run(
        self, kernel_id: UUID, run_id: str, offset: int | None, text: str | None
    ) -> RunStatus:
        return await self._runs(kernel_id).answer(run_id, offset, text)

    async def start_service(
        self,
        kernel_id: UUID,
        service: str,
        port: int | None,
        arguments: Mapping[str, Sequence[str]],
        envs: Mapping[str, str],
    ) -> ServiceStarted:
        return await self._apps.start(self._kernel_here(kernel_id), service, port, arguments, envs)

    async def shut_down_service(self, kernel_id: UUID, service: str) -> None:
        await self._apps.shut_down(self._kernel_here(kernel_id), service)

    async def connect(self, kernel_id: UUID, port: int) -> trio.SocketStream:
        return await self._apps.connect(self._kernel_here(kernel_id), port)

    async def type_input(
        self, kernel_id: UUID, run_id: str, writer: str, offset: int | None, data: bytes
    ) -> int:
        return await self._runs(kernel_id).type(run_id, writer, offset, data)

    async def resize_terminal(self, kernel_id: UUID, run_id: str, rows: int, columns: int) -> None:
        await self._runs(kernel_id).resize(run_id, rows, columns)

    async def complete(self, kernel_id: UUID, code: str, cursor: int) -> Sequence[str]:
        return await self._runs(kernel_id).complete(code, cursor)

    async def read_output(
        self, kernel_id: UUID, run_id: str, *, offset: int, max_bytes: int, wait: float
    ) -> Chunk:
        return await self._runs(kernel_id).read(run_id, offset, max_bytes, wait)

    async def poll_run(self, kernel_id: UUID, run_id: str, *, wait: float, max_bytes: int) -> Chunk:
        return await self._runs(kernel_id).poll(run_id, wait, max_bytes)

    async def retain(self) -> None:
        """Let go of runs whose time is over, until cancelled."""
        await self._retention.run()

    def _runs(self, kernel_id: UUID) -> KernelRuns:
        """Of a kernel that is here, or was."""
        kernel = self._kernels.get(kernel_id)
        return self._past.runs(kernel_id) if kernel is None else kernel.runs

    def _kernel_here(self, kernel_id: UUID) -> Kernel:
        kernel = self._kernels.get(kernel_id)
        if kernel is None:
            raise AgentRefusal("no-such-kernel", f"this agent has no kernel {kernel_id}")
        return kernel


@asynccontextmanager
async def open_registry(
    store: KernelStore,
    backend: Backend,
    offered: Slots,
    *,
    session_lifetime: float = 0.0,
    run_timeout: float = 0.0,
    clock: Callable[[], float] = time.time,
    upload_size: int = UPLOAD_SIZE,
    retention: Limits | None = None,
    ports: range = PORTS,
) -> AsyncIterator[KernelRegistry]:
    """The registry of the kernels in *store*, those of earlier agents adopted; the back end runs meanwhile.

    Kernels end *session_lifetime* seconds after their start, and runs that name no limit of their own are
    interrupted after *run_timeout* seconds (0: never). *ports* are the numbers of their services outside. On
    leaving kernels go on: the next registry adopts them. Raises `scratch.DataDirInUse`.
    """
    with store.locked():
        store.forget_retired(clock())
        async with trio.open_nursery() as nursery:
            boot = secrets.token_hex(8)
            registry = KernelRegistry(
                store,
                backend,
                offered,
                nursery,
                boot=boot,
                run_timeout=run_timeout,
                clock=clock,
                session_lifetime=session_lifetime,
                upload_size=upload_size,
                retention=retention or Limits(),
                ports=ports,
            )
            await registry.adopt_all()
            nursery.start_soon(partial(supervise, backend.run, name="the back end"))
            nursery.start_soon(partial(supervise, registry.retain, name="retention"))
            yield registry
            nursery.cancel_scope.cancel()


def _own_version() -> str:
    try:
        return version("backendai-mgr")
    except PackageNotFoundError:  # run from a source tree
        return "0"
