"""Agents in memory behind `services.agentports.Agents`. What goes wrong is data: `refuse`, `silent`."""

from contextlib import asynccontextmanager
from math import inf

import attrs
import trio

from backendai_mgr.domain.status import KernelState, RunState
from backendai_mgr.services.ports import StaleEpoch
from backendai_mgr.shim.keyboard import Keyboard
from backendai_mgr.wire.calls import ServiceStarted
from backendai_mgr.wire.files import FilePiece, Listing, LogPiece, Written
from backendai_mgr.wire.reports import KernelExit, KernelReport, Report, ServicePort
from backendai_mgr.wire.rpc import AgentRefusal, AgentUnreachable, Output, RunStatus, Started, page_of

REPORT_INTERVAL = 3.0


class FakeAgent:
    """One agent: kernels by id, a report every 3 s and after each change."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.boot = "boot-1"
        self.seq = 0
        self.kernels: dict = {}
        self.created: list = []
        self.destroyed: list = []
        self.acked: list = []
        self.runs: dict = {}
        self.refuse: dict[str, AgentRefusal] = {}  # method -> what it answers, once
        self.silent = False
        self.epoch = 0
        self.last_heard = -inf
        self.trouble: str | None = None
        #: What `read_file` and `read_log` hand out; `write_file` collects pieces there.
        self.dropped = []
        #: How many calls the next removal takes.
        self.removals = 1
        self.inode = 1
        self.writes: list = []
        self.files: dict[str, bytes] = {}
        self.logs: list[LogPiece] = [LogPiece(data=b"log\n", before=None)]
        #: What `poll_run` and `read_output` hand out next: (records, next_offset, ended).
        self.pieces: list = []
        self.answers: list = []
        self.abandoned: list = []
        #: What terminals got, and the sizes that they were given.
        self.typed: dict = {}
        self.keyboards: dict = {}
        self.sizes: list = []
        self.services: dict = {}
        self._changed = trio.Event()

    # what tests do to it

    def change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def end_kernel(self, kernel_id, reason="self-terminated", exit_code=None) -> None:
        self.kernels[kernel_id] = attrs.evolve(
            self.kernels[kernel_id],
            state=KernelState.ENDED,
            exit=KernelExit(reason=reason, exit_code=exit_code),
        )
        self.change()

    def restart(self, *, keep: bool) -> None:
        self.boot += "'"
        self.seq = 0
        if not keep:
            self.kernels.clear()
        self.change()

    # the port

    async def _called(self, method: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.silent:
            raise AgentUnreachable(f"{self.name} is silent")
        self.last_heard = trio.current_time()
        if method in self.refuse:
            raise self.refuse.pop(method)

    def make_report(self) -> Report:
        self.seq += 1
        return Report(
            boot=self.boot,
            seq=self.seq,
            version="0",
            architecture="x86_64",
            capacity={"cpu": "4", "mem": "8589934592"},
            occupied={},
            images=[],
            kernels=list(self.kernels.values()),
        )

    async def create_kernel(self, spec):
        await self._called("create_kernel")
        known = self.kernels.get(spec.kernel_id)
        if known is None or known.incarnation < spec.incarnation:
            self.created.append((spec.kernel_id, spec.incarnation))
            self.kernels[spec.kernel_id] = KernelReport(
                id=spec.kernel_id,
                session_id=spec.session_id,
                incarnation=spec.incarnation,
                cluster_id=spec.cluster_id,
                state=KernelState.RUNNING,
                service_ports=[
                    ServicePort(
                        name=str(port), protocol="preopen", container_ports=[port], host_ports=[port + 1]
                    )
                    for port in spec.preopen_ports
                ],
            )
        self.seq += 1
        self.change()
        return self.boot, self.seq, self.kernels[spec.kernel_id]

    async def destroy_kernel(self, kernel_id, incarnation, reason, epoch):
        await self._called("destroy_kernel")
        if epoch < self.epoch:
            raise AgentRefusal("stale-epoch")
        self.destroyed.append((kernel_id, incarnation))
        if kernel_id in self.kernels and self.kernels[kernel_id].state is not KernelState.ENDED:
            self.end_kernel(kernel_id, reason)

    async def start_run(self, kernel_id, run_id, order):
        await self._called("start_run")
        if kernel_id not in self.kernels:
            raise AgentRefusal("no-such-kernel")
        known = self.runs.get((kernel_id, run_id))
        if known is not None and known.digest != order.digest:
            raise AgentRefusal("run-conflict")
        if known is None:
            self.runs[kernel_id, run_id] = RunStatus(
                run_id=run_id,
                incarnation=order.incarnation,
                digest=order.digest,
                mode=order.spec.mode,
                state=RunState.RUNNING,
                queued_at=0.0,
            )
        return Started(created=known is None, run=self.runs[kernel_id, run_id])

    async def get_run(self, kernel_id, run_id):
        await self._called("get_run")
        if (kernel_id, run_id) not in self.runs:
            raise AgentRefusal("no-such-run")
        return self.runs[kernel_id, run_id]

    async def list_runs(self, kernel_id, *, limit=1000, after=None):
        await self._called("list_runs")
        runs = [run for (kernel, _), run in self.runs.items() if kernel == kernel_id]
        return page_of(runs, limit=limit, after=after)

    async def delete_run(self, kernel_id, run_id):
        await self._called("delete_run")
        if not (await self.get_run(kernel_id, run_id)).ended:
            raise AgentRefusal("not-ended")
        del self.runs[kernel_id, run_id]

    async def interrupt_run(self, kernel_id, run_id):
        await self._called("interrupt_run")
        return None if run_id is None else await self.get_run(kernel_id, run_id)

    async def abandon_run(self, kernel_id, run_id, *, after):
        await self._called("abandon_run")
        self.abandoned.append((kernel_id, run_id, after))

    async def answer_run(self, kernel_id, run_id, *, offset, text):
        run = await self.get_run(kernel_id, run_id)
        await self._called("answer_run")
        self.answers.append((offset, text))
        return run

    async def type_input(self, kernel_id, run_id, *, writer, offset, data):
        await self.get_run(kernel_id, run_id)
        keyboard = self.keyboards.setdefault((kernel_id, run_id), Keyboard())
        typed = self.typed.get((kernel_id, run_id), b"")
        self.typed[kernel_id, run_id] = typed + keyboard.take(writer, offset, data)
        await self._called("type_input")  # whose answer may be lost
        return keyboard.position(writer)

    async def resize_terminal(self, kernel_id, run_id, *, rows, columns):
        await self._called("resize_terminal")
        self.sizes.append((run_id, rows, columns))

    async def start_service(self, kernel_id, service, *, port, arguments, envs):
        await self._called("start_service")
        running = service in self.services
        self.services[service] = (port, arguments, envs)
        return ServiceStarted(port=port or 8000, was_running=running)

    async def shut_down_service(self, kernel_id, service):
        await self._called("shut_down_service")
        self.services.pop(service, None)

    @asynccontextmanager
    async def tunnel(self, kernel_id, port):
        await self._called("tunnel")
        yield (kernel_id, port)

    async def complete(self, kernel_id, code, cursor):
        await self._called("complete")
        return [f"{code[:cursor]}()"]

    async def poll_run(self, kernel_id, run_id, *, wait, max_bytes, order=None):
        if order is not None:
            await self.start_run(kernel_id, run_id, order)
        run = await self.get_run(kernel_id, run_id)
        records, end, ended = self.pieces.pop(0)
        if ended:
            run = attrs.evolve(run, state=RunState.FINISHED, exit_code=1)
        return Output(
            records=[r.pack() for r in records], next_offset=end, run=attrs.evolve(run, end_offset=end)
        )

    async def read_output(self, kernel_id, run_id, *, offset, max_bytes, wait):
        return await self.poll_run(kernel_id, run_id, wait=wait, max_bytes=max_bytes)

    async def list_files(self, kernel_id, path):
        await self._called("list_files")
        return Listing(path=path, entries=[])

    async def read_file(self, kernel_id, path, *, offset, max_bytes):
        await self._called("read_file")
        if path not in self.files:
            raise AgentRefusal("no-such-file", "there is no such file")
        data = self.files[path]
        return FilePiece(data=data[offset : offset + max_bytes], size=len(data), inode=self.inode)

    async def write_file(self, kernel_id, path, *, upload, offset, data, final, condition=None):
        await self._called("write_file")
        self._check(path, condition)
        self.writes.append((path, upload, offset, len(data), final))
        created = path not in self.files
        self.files[path] = self.files.get(path, b"")[:offset] + data
        return self._written(path, created=created) if final else None

    async def drop_upload(self, kernel_id, path, *, upload):
        await self._called("drop_upload")
        self.dropped.append((path, upload))

    async def patch_file(self, kernel_id, path, *, offset, data, condition=None):
        await self._called("patch_file")
        self._check(path, condition)
        old = self.files[path]
        self.files[path] = old + data if offset is None else old[:offset] + data
        return self._written(path)

    async def move_file(self, kernel_id, path, *, to, replace, condition=None):
        await self._called("move_file")
        self._check(path, condition)
        self.files[to] = self.files.pop(path)
        return self._written(to)

    async def remove_file(self, kernel_id, path, *, recursive, condition=None):
        await self._called("remove_file")
        self._check(path, condition)
        self.removals -= 1
        if self.removals > 0:
            return False
        self.files.pop(path, None)
        return True

    def _written(self, path, *, created=False):
        return Written(size=len(self.files[path]), inode=self.inode, created=created)

    def _check(self, path, condition):
        tag = self._written(path).tag if path in self.files else None
        if condition is not None and not condition.holds(tag):
            raise AgentRefusal("precondition", "it is another one by now")

    async def archive_file(self, kernel_id, path, *, max_bytes):
        await self._called("archive_file")
        return b"tar of " + path.encode()

    async def read_log(self, kernel_id, *, before, max_bytes):
        await self._called("read_log")
        if kernel_id not in self.kernels:
            raise AgentRefusal("no-such-kernel")
        return self.logs[0 if before is None else before.offset]

    async def report(self, epoch):
        await self._called("report")
        if epoch < self.epoch:
            raise AgentRefusal("stale-epoch")
        return self.make_report()

    @asynccontextmanager
    async def reports(self, epoch, owner):
        if epoch < self.epoch:
            raise StaleEpoch(self.name, highest=self.epoch)
        self.epoch = epoch
        yield _Feed(self, epoch)


class _Feed:
    def __init__(self, agent: FakeAgent, epoch: int) -> None:
        self._agent = agent
        self._epoch = epoch
        self._first = True

    def __aiter__(self):
        return self

    async def __anext__(self):
        agent = self._agent
        while True:
            if not self._first:
                with trio.move_on_after(REPORT_INTERVAL):
                    await agent._changed.wait()
            self._first = False
            if agent.epoch > self._epoch:
                raise StaleEpoch(agent.name, highest=agent.epoch)
            if not agent.silent:
                break
            await trio.sleep(REPORT_INTERVAL)
        agent.last_heard = trio.current_time()
        return agent.make_report()

    async def ack(self, report, ended):
        await trio.lowlevel.checkpoint()
        for kernel in ended:
            self._agent.acked.append((kernel.id, kernel.incarnation))
            known = self._agent.kernels.get(kernel.id)
            if known is not None and known.incarnation == kernel.incarnation:
                del self._agent.kernels[kernel.id]


class FakeAgents:
    """Dials `FakeAgent` by id."""

    def __init__(self, *names: str) -> None:
        self.agents = {name: FakeAgent(name) for name in names or ("i-1",)}

    def link(self, agent_id, addr):
        return self.agents[agent_id]

    def __getitem__(self, name: str) -> FakeAgent:
        return self.agents[name]
