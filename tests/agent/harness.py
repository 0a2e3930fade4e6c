"""An agent's registry over real shims and interpreters, in a data directory of its own."""

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import attrs
import trio

from backendai_mgr.agent.accounts import separate_accounts
from backendai_mgr.agent.backends.process import ProcessBackend
from backendai_mgr.agent.images import load_manifests, packaged_manifests
from backendai_mgr.agent.processes import command_lines, environment_of
from backendai_mgr.agent.registry import KernelRegistry, open_registry
from backendai_mgr.agent.scratch import KernelStore
from backendai_mgr.domain.slots import Slots
from backendai_mgr.runtime.paths import PathRefused, socket_dir
from backendai_mgr.wire.records import Record
from backendai_mgr.wire.reports import KernelReport
from backendai_mgr.wire.rpc import KernelSpec, RunOrder, RunSpec, RunStatus

#: Seconds; a bound for what should take milliseconds.
PATIENCE = 30.0


@attrs.define
class Site:
    """A data directory, and what is needed to open registries on it one after the other."""

    data_dir: Path
    failpoints: str | None = None
    pool_size: int = 0
    sandboxed: bool = True
    backend: ProcessBackend | None = None
    session_lifetime: float = 0.0

    @asynccontextmanager
    async def agent(self, **options: Any) -> AsyncIterator[KernelRegistry]:
        """A registry, as a freshly started agent has it; its kernels live on when it closes."""
        store = KernelStore(self.data_dir, shared_with_kernels=separate_accounts())
        self.backend = await ProcessBackend.open(
            store=store,
            sockets=socket_dir(self.data_dir),
            manifests=load_manifests(packaged_manifests()),
            pool_size=self.pool_size,
            sandboxed=self.sandboxed,
            failpoints=self.failpoints,
        )
        offered = Slots({"cpu": Decimal(4), "mem": Decimal(1 << 30)})
        async with open_registry(
            store, self.backend, offered, session_lifetime=self.session_lifetime, **options
        ) as registry:
            yield registry

    def scratch(self, spec: KernelSpec) -> Path:
        return self.data_dir / "kernels" / str(spec.kernel_id)

    def spec(self, **changes: object) -> KernelSpec:
        """A specification for a new kernel that this site's back end can start."""
        assert self.backend is not None
        values = {
            "kernel_id": uuid4(),
            "session_id": uuid4(),
            "incarnation": 1,
            "cluster_id": "test",
            "session_name": "mysession",
            "image": next(image.name for image in self.backend.images() if "python" in image.aliases),
            "architecture": os.uname().machine,
            "slots": {"cpu": "1", "mem": "67108864"},
        }
        return KernelSpec(**{**values, **changes})


@contextmanager
def new_site(below: str = "data") -> Iterator[Site]:
    """A site whose folder any account can pass, as kernels' must; no process and no file of it stays."""
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    folder.chmod(0o711)
    data_dir = folder / below
    data_dir.mkdir(parents=True)
    try:
        yield Site(data_dir)
    finally:
        for pid in shims_of(data_dir):
            os.kill(pid, signal.SIGKILL)
        with suppress(PathRefused):  # another account's: it is beside the data then
            shutil.rmtree(socket_dir(data_dir))
        shutil.rmtree(folder)


def shims_of(data_dir: Path) -> list[int]:
    """The shims that work below this data directory."""
    return [pid for pid, argv in command_lines() if argv and argv[-1].startswith(f"{data_dir}/")]


def processes_of(kernel_id: UUID) -> list[int]:
    """The processes that were started by this kernel."""
    mark = f"BACKENDAI_KERNEL_ID={kernel_id}"
    return [pid for pid, _ in command_lines() if mark in environment_of(pid)]


def run_spec(code: str, timeout: float | None = None) -> RunSpec:
    return RunSpec(code=code, timeout=timeout)


async def start(registry: KernelRegistry, spec: KernelSpec, run_id: str, code: str) -> RunStatus:
    """Start a run and return its status at that moment."""
    run = run_spec(code)
    started = await registry.start_run(spec.kernel_id, run_id, RunOrder.of(spec.incarnation, run))
    return started.run


async def read_all(
    registry: KernelRegistry, kernel_id: UUID, run_id: str, *, offset: int = 0, max_bytes: int = 65536
) -> tuple[list[Record], RunStatus]:
    """All output from *offset* until the run has ended, and how it ended."""
    records: list[Record] = []
    while True:
        chunk = await registry.read_output(
            kernel_id, run_id, offset=offset, max_bytes=max_bytes, wait=PATIENCE
        )
        records += chunk.records
        offset = chunk.next_offset
        if chunk.run.ended and offset >= chunk.run.end_offset:
            return records, chunk.run


def text(records: list[Record], stream: str = "stdout") -> str:
    return b"".join(record.data for record in records if record.stream == stream).decode()


async def run(registry: KernelRegistry, spec: KernelSpec, run_id: str, code: str) -> tuple[str, RunStatus]:
    """Run to its end; what it wrote to standard output, and how it ended."""
    await start(registry, spec, run_id, code)
    records, status = await read_all(registry, spec.kernel_id, run_id)
    return text(records), status


async def ended(registry: KernelRegistry, kernel_id: UUID) -> KernelReport:
    """The report on this kernel, once it has ended."""
    seen = -1
    while True:
        for report in registry.make_report().kernels:
            if report.id == kernel_id and report.exit is not None:
                return report
        seen = await registry.wait_changed(seen)


async def removed(registry: KernelRegistry, site: Site, spec: KernelSpec) -> None:
    """Until nothing of this kernel is left on disk."""
    seen = -1
    while site.scratch(spec).exists():
        seen = await registry.wait_changed(seen)


async def destroy(registry: KernelRegistry, site: Site, spec: KernelSpec) -> KernelReport:
    """End the kernel, acknowledge its end, and wait until it is cleaned away; the last report on it."""
    await registry.destroy_kernel(spec.kernel_id, spec.incarnation, "user-requested")
    report = await ended(registry, spec.kernel_id)
    registry.acknowledge([(spec.kernel_id, spec.incarnation)])
    await removed(registry, site, spec)
    return report


async def until(condition: Callable[[], bool]) -> None:
    """Look at what no event tells of, until *condition* holds."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)
