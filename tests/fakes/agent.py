"""An agent in memory: a real `agent.handler.Handler` whose output, refusals and delays the test decides."""

from collections import defaultdict
from collections.abc import Collection
from contextlib import contextmanager
from uuid import UUID

import attrs
import trio

from backendai_mgr.agent.handler import Chunk
from backendai_mgr.agent.shimsocket import NobodyListens
from backendai_mgr.domain.status import KernelState, RunState
from backendai_mgr.wire.calls import ServiceStarted
from backendai_mgr.wire.files import FilePiece, Listing, LogPiece, LogPlace, Written
from backendai_mgr.wire.records import Record
from backendai_mgr.wire.reports import KernelExit, KernelReport, Report
from backendai_mgr.wire.rpc import (
    MAX_RUNS,
    AgentRefusal,
    KernelSpec,
    RunOrder,
    RunPlace,
    RunStatus,
    Started,
    page_of,
)


class FakeRun:
    """A run whose program is the test."""

    def __init__(self, agent: "FakeAgent", status: RunStatus) -> None:
        self._agent = agent
        self.status = status
        self.records: list[Record] = []
        self.cursor = 0
        self.answers: list[str | None] = []
        self.answered: set[tuple[int | None, str | None]] = set()
        self.typed = b""
        self.size = (24, 80)

    def write(self, data: bytes, stream: str = "stdout") -> None:
        """The program prints one record."""
        offset = self.status.end_offset
        self.records.append(Record(offset, 1_700_000_000_000_000_000 + offset, stream, data))
        self._set(end_offset=offset + len(data))

    def finish(self, exit_code: int = 0, state: RunState = RunState.FINISHED) -> None:
        """The program ends."""
        self._set(state=state, exit_code=exit_code, ended_at=3.0)

    def read(self, offset: int, max_bytes: int) -> list[Record]:
        """At most *max_bytes* from *offset* on, the first and last record cut as need be."""
        if offset > self.status.end_offset:
            raise AgentRefusal("offset-past-end", f"the run has {self.status.end_offset} bytes")
        got: list[Record] = []
        for record in self._from(offset):
            skipped = max(0, offset - record.offset)
            data = record.data[skipped : skipped + max_bytes]
            if not data:
                break
            got.append(attrs.evolve(record, offset=record.offset + skipped, data=data))
            max_bytes -= len(data)
        return got

    def _from(self, offset: int):
        low, high = 0, len(self.records)
        while low < high:
            middle = (low + high) // 2
            if self.records[middle].end <= offset:
                low = middle + 1
            else:
                high = middle
        return (self.records[index] for index in range(low, len(self.records)))

    def _set(self, **changes) -> None:
        self.status = attrs.evolve(self.status, **changes)
        self._agent.moved()


class FakeFiles:
    """The files of a kernel: what the test put into ``content``, and what was uploaded."""

    def __init__(self, agent: "FakeAgent", kernel_id: UUID) -> None:
        self._agent = agent
        self.content = agent.content.setdefault(kernel_id, {})

    async def list(self, path: str) -> Listing:
        await self._agent._called("list_files")
        return Listing(path=path, entries=[])

    async def read(self, path: str, offset: int, max_bytes: int) -> FilePiece:
        await self._agent._called("read_file")
        if path not in self.content:
            raise AgentRefusal("no-such-file", "there is no such file")
        data = self.content[path]
        return FilePiece(data=data[offset : offset + max_bytes], size=len(data), inode=1)

    async def write(self, path, upload, offset, data, *, final, condition=None) -> Written | None:
        await self._agent._called("write_file")
        self.content[path] = self.content.get(path, b"")[:offset] + data
        return Written(size=len(self.content[path]), inode=1) if final else None

    async def drop(self, path: str, upload: str) -> None:
        await self._agent._called("drop_upload")
        self.content.pop(path, None)

    async def patch(self, path, offset, data, *, condition) -> Written:
        await self._agent._called("patch_file")
        old = self.content[path]
        self.content[path] = old + data if offset is None else old[:offset] + data
        return Written(size=len(self.content[path]), inode=1)

    async def move(self, path, to, *, replace, condition) -> Written:
        await self._agent._called("move_file")
        self.content[to] = self.content.pop(path)
        return Written(size=len(self.content[to]), inode=1, created=not replace)

    async def remove(self, path, *, recursive, condition) -> bool:
        await self._agent._called("remove_file")
        if condition is not None and not condition.holds("1"):
            raise AgentRefusal("precondition", "it is another one by now")
        del self.content[path]
        return not recursive

    async def archive(self, path: str, max_bytes: int) -> bytes:
        await self._agent._called("archive_file")
        return b"tar of " + path.encode()

    async def log(self, before: LogPlace | None, max_bytes: int) -> LogPiece:
        await self._agent._called("read_log")
        return LogPiece(data=b"log", before=None if before else LogPlace(run_id="r", offset=7))


class FakeAgent:
    """The handler. ``calls`` counts what was called, ``cancelled`` what was cut short while held."""

    def __init__(self, boot: str = "boot-1") -> None:
        self.boot = boot
        self.seq = 0
        self.kernels: dict[UUID, KernelReport] = {}
        self.runs: dict[tuple[UUID, str], FakeRun] = {}
        self.calls: defaultdict[str, int] = defaultdict(int)
        self.cancelled: defaultdict[str, int] = defaultdict(int)
        self.acknowledged: list[tuple[UUID, int]] = []
        self.content: dict[UUID, dict[str, bytes]] = {}
        self.abandoned: list[tuple[str, float]] = []
        self.services: dict[str, tuple[dict, dict]] = {}
        self.read_to = 0  # end of the farthest record handed out by read_output
        self._refusals: dict[str, Exception] = {}
        self._held: dict[str, trio.Event] = {}
        self._changes = 0
        self._moved = trio.Event()

    # -- the test's hand

    def refuse_once(self, method: str, error: Exception) -> None:
        """The next call of *method* raises *error*; those after it work again."""
        self._refusals[method] = error

    @contextmanager
    def hold(self, *methods: str):
        """Within the block calls of *methods* begin but do not go on."""
        gate = trio.Event()
        self._held |= dict.fromkeys(methods, gate)
        try:
            yield
        finally:
            for method in methods:
                del self._held[method]
            gate.set()

    def add_run(self, kernel_id: UUID, run_id: str, digest: str = "d") -> FakeRun:
        """A run that has begun, without a call."""
        status = RunStatus(
            run_id=run_id,
            incarnation=1,
            digest=digest,
            mode="query",
            state=RunState.RUNNING,
            queued_at=1.0,
            started_at=2.0,
        )
        run = self.runs[kernel_id, run_id] = FakeRun(self, status)
        self.moved()
        return run

    def kill(self, kernel_id: UUID) -> None:
        """The kernel ends by itself."""
        kernel = self.kernels[kernel_id]
        ended = KernelExit(reason="self-terminated", exit_code=-9)
        self.kernels[kernel_id] = attrs.evolve(kernel, state=KernelState.ENDED, exit=ended)
        self.changed()

    def changed(self) -> None:
        """Something that belongs into a report changed."""
        self._changes += 1
        self.moved()

    def moved(self) -> None:
        """Whoever waits for anything shall look again."""
        self._moved.set()
        self._moved = trio.Event()

    async def until(self, condition) -> None:
        """Wait until *condition* holds; looked at whenever something happens here."""
        with trio.fail_after(20):
            while not condition():
                await self._moved.wait()

    # -- Handler

    def make_report(self) -> Report:
        self.seq += 1
        self.moved()
        return Report(
            boot=self.boot,
            seq=self.seq,
            version="1",
            architecture="x86_64",
            capacity={"cpu": "4", "mem": "1024"},
            occupied={"cpu": "0"},
            images=[],
            kernels=list(self.kernels.values()),
        )

    def acknowledge(self, ended: Collection[tuple[UUID, int]]) -> None:
        self.acknowledged.extend(ended)
        for kernel_id, _ in ended:
            self.kernels.pop(kernel_id, None)
        self.moved()

    async def wait_changed(self, seen: int) -> int:
        while self._changes == seen:
            await self._moved.wait()
        return self._changes

    async def create_kernel(self, spec: KernelSpec) -> KernelReport:
        await self._called("create_kernel")
        kernel = KernelReport(
            id=spec.kernel_id,
            session_id=spec.session_id,
            incarnation=spec.incarnation,
            cluster_id=spec.cluster_id,
            state=KernelState.RUNNING,
        )
        self.kernels[spec.kernel_id] = kernel
        self.changed()
        return kernel

    async def destroy_kernel(self, kernel_id: UUID, incarnation: int, reason: str) -> None:
        await self._called("destroy_kernel")
        if kernel_id in self.kernels:
            self.kill(kernel_id)

    async def start_run(self, kernel_id: UUID, run_id: str, order: RunOrder) -> Started:
        await self._called("start_run")
        present = self.runs.get((kernel_id, run_id))
        if present is not None and present.status.digest != order.digest:
            raise AgentRefusal("run-conflict", run_id)
        run = present or self.add_run(kernel_id, run_id, order.digest)
        return Started(created=present is None, run=run.status)

    async def get_run(self, kernel_id: UUID, run_id: str) -> RunStatus:
        await self._called("get_run")
        return self._run(kernel_id, run_id).status

    async def list_runs(
        self, kernel_id: UUID, *, limit: int = MAX_RUNS, after: RunPlace | None = None
    ) -> list[RunStatus]:
        await self._called("list_runs")
        runs = [run.status for (kernel, _), run in self.runs.items() if kernel == kernel_id]
        return page_of(runs, limit=limit, after=after)

    async def delete_run(self, kernel_id: UUID, run_id: str) -> None:
        await self._called("delete_run")
        if not self._run(kernel_id, run_id).status.ended:
            raise AgentRefusal("not-ended", run_id)
        del self.runs[kernel_id, run_id]

    async def interrupt_run(self, kernel_id: UUID, run_id: str | None) -> RunStatus | None:
        await self._called("interrupt_run")
        if run_id is None:
            running = [
                run for (kernel, _), run in self.runs.items() if kernel == kernel_id and not run.status.ended
            ]
            if not running:
                return None
            run = running[0]
        else:
            run = self._run(kernel_id, run_id)
        run.finish(130, RunState.CANCELLED)
        return run.status

    async def abandon_run(self, kernel_id: UUID, run_id: str, after: float) -> None:
        await self._called("abandon_run")
        self.abandoned.append((run_id, after))

    async def answer_run(
        self, kernel_id: UUID, run_id: str, offset: int | None, text: str | None
    ) -> RunStatus:
        await self._called("answer_run")
        run = self._run(kernel_id, run_id)
        if run.status.prompt is None or offset not in (None, run.status.prompt.offset):
            if (offset, text) in run.answered:
                return run.status
            raise AgentRefusal("no-prompt", run_id)
        run.answers.append(text)
        run.answered.add((run.status.prompt.offset, text))
        run._set(prompt=None, state=RunState.RUNNING)
        return run.status

    async def type_input(
        self, kernel_id: UUID, run_id: str, writer: str, offset: int | None, data: bytes
    ) -> int:
        await self._called("type_input")
        run = self._run(kernel_id, run_id)
        run.typed += data
        return len(run.typed)

    async def resize_terminal(self, kernel_id: UUID, run_id: str, rows: int, columns: int) -> None:
        await self._called("resize_terminal")
        self._run(kernel_id, run_id).size = rows, columns

    async def start_service(self, kernel_id, service, port, arguments, envs) -> ServiceStarted:
        await self._called("start_service")
        running = service in self.services
        self.services.setdefault(service, (dict(arguments), dict(envs)))
        return ServiceStarted(port=port or 8000, was_running=running)

    async def shut_down_service(self, kernel_id: UUID, service: str) -> None:
        await self._called("shut_down_service")
        self.services.pop(service, None)

    async def connect(self, kernel_id: UUID, port: int) -> trio.SocketStream:
        await self._called("connect")
        raise NobodyListens

    async def complete(self, kernel_id: UUID, code: str, cursor: int) -> list[str]:
        await self._called("complete")
        return [code[:cursor] + "()"]

    async def read_output(
        self, kernel_id: UUID, run_id: str, *, offset: int, max_bytes: int, wait: float
    ) -> Chunk:
        await self._called("read_output")
        run = self._run(kernel_id, run_id)
        with trio.move_on_after(wait):
            while not run.status.ended and run.status.end_offset == offset:
                await self._moved.wait()
        chunk = self._chunk(run, offset, max_bytes)
        self.read_to = max(self.read_to, chunk.next_offset)
        self.moved()
        return chunk

    async def poll_run(self, kernel_id: UUID, run_id: str, *, wait: float, max_bytes: int) -> Chunk:
        await self._called("poll_run")
        run = self._run(kernel_id, run_id)
        with trio.move_on_after(wait):
            while not run.status.ended:
                await self._moved.wait()
        chunk = self._chunk(run, run.cursor, max_bytes)
        run.cursor = chunk.next_offset
        return chunk

    def files(self, kernel_id: UUID) -> FakeFiles:
        return FakeFiles(self, kernel_id)

    # -- parts

    def _run(self, kernel_id: UUID, run_id: str) -> FakeRun:
        try:
            return self.runs[kernel_id, run_id]
        except KeyError:
            raise AgentRefusal("no-such-run", run_id) from None

    @staticmethod
    def _chunk(run: FakeRun, offset: int, max_bytes: int) -> Chunk:
        records = run.read(offset, max_bytes)
        after = records[-1].end if records else offset
        return Chunk(records=records, next_offset=after, run=run.status)

    async def _called(self, method: str) -> None:
        self.calls[method] += 1
        self.moved()
        gate = self._held.get(method)
        if gate is not None:
            try:
                await gate.wait()
            except trio.Cancelled:
                self.cancelled[method] += 1
                self.moved()
                raise
        await trio.lowlevel.checkpoint()
        if refusal := self._refusals.pop(method, None):
            raise refusal
