"""One agent, as services speak to it (`services.agentports.AgentLink`)."""

import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from ..domain.ids import AgentId, KernelId
from ..wire import calls, filecalls
from ..wire.call import MAX_OUTPUT, Call, from_wire, to_wire
from ..wire.callosum import AgentError, FrameError
from ..wire.files import Condition, FilePiece, Listing, LogPiece, LogPlace, Written
from ..wire.records import Record
from ..wire.reports import KernelReport, Report
from ..wire.rpc import MAX_RUNS, AgentRefusal, KernelSpec, Output, RunOrder, RunPlace, RunStatus, Started
from .connection import Connection
from .feed import Feed
from .tunnels import Tunnel

T = TypeVar("T")


class Connections(Protocol):
    """Where connections are had from."""

    def known(self, agent_id: AgentId, addr: str) -> Connection | None:
        """The connection if there is one."""

    def connection(self, agent_id: AgentId, addr: str) -> Connection:
        """The connection, dialled if need be."""


class Link:
    """One agent (`services.agentports.AgentLink`); a handle that may be kept for as long as one likes.

    Every call raises `AgentRefusal` (the agent says no), `AgentUnreachable` (no answer in time) or
    `AgentError` (the agent broke, or its answer makes no sense).
    """

    def __init__(self, links: Connections, agent_id: AgentId, addr: str) -> None:
        self._links = links
        self._agent_id = agent_id
        self._addr = addr

    @property
    def last_heard(self) -> float:
        """Trio time of the newest frame of any kind from the agent (-inf: none yet)."""
        connection = self._links.known(self._agent_id, self._addr)
        return -math.inf if connection is None else connection.last_heard

    @property
    def trouble(self) -> str | None:
        """Why the agent is not connected, where more is known than that it is silent."""
        connection = self._links.known(self._agent_id, self._addr)
        return None if connection is None else connection.trouble

    # ------------------------------------------------------------ kernels

    async def create_kernel(self, spec: KernelSpec) -> tuple[str, int, KernelReport]:
        """Start a kernel: (boot, seq, its report). Idempotent on (id, incarnation)."""
        created = _as(calls.Created, await self._call(calls.CreateKernel(spec=spec)))
        return created.boot, created.seq, created.kernel

    async def destroy_kernel(self, kernel_id: KernelId, incarnation: int, reason: str, epoch: int) -> None:
        """Begin to end a kernel; its end shows in reports."""
        await self._call(
            calls.DestroyKernel(kernel_id=kernel_id, incarnation=incarnation, reason=reason, epoch=epoch)
        )

    async def report(self, epoch: int) -> Report:
        """A report made now."""
        return _as(Report, await self._call(calls.MakeReport(epoch=epoch)))

    @asynccontextmanager
    async def reports(self, epoch: int, owner: str) -> AsyncIterator[Feed]:
        """Subscribe to the agent's reports; a feed that this worker opened before is `StaleEpoch`."""
        connection = self._links.connection(self._agent_id, self._addr)
        with connection.used():
            feed = connection.feeds.open(epoch, owner)
            try:
                yield feed
            finally:
                connection.feeds.close(feed)

    # ------------------------------------------------------------ runs

    async def start_run(self, kernel_id: KernelId, run_id: str, order: RunOrder) -> Started:
        """Start the run, or attach when it exists with the same digest (`run-conflict` otherwise)."""
        call = calls.StartRun(kernel_id=kernel_id, run_id=run_id, order=order)
        return _as(Started, await self._call(call))

    async def get_run(self, kernel_id: KernelId, run_id: str) -> RunStatus:
        """The run's present status."""
        return _as(RunStatus, await self._call(calls.GetRun(kernel_id=kernel_id, run_id=run_id)))

    async def list_runs(
        self, kernel_id: KernelId, *, limit: int = MAX_RUNS, after: RunPlace | None = None
    ) -> Sequence[RunStatus]:
        """Runs that are kept, the newest first, from a place on."""
        call = calls.ListRuns(kernel_id=kernel_id, limit=limit, after=after)
        return _as(list[RunStatus], await self._call(call))

    async def delete_run(self, kernel_id: KernelId, run_id: str) -> None:
        """Delete a run that has ended (`not-ended` otherwise)."""
        await self._call(calls.DeleteRun(kernel_id=kernel_id, run_id=run_id))

    async def interrupt_run(self, kernel_id: KernelId, run_id: str | None) -> RunStatus | None:
        """Interrupt a run, or whichever is running; None when none is."""
        answer = await self._call(calls.InterruptRun(kernel_id=kernel_id, run_id=run_id))
        return None if answer is None else _as(RunStatus, answer)

    async def abandon_run(self, kernel_id: KernelId, run_id: str, *, after: float) -> None:
        """Who started the run has gone: interrupt it in ``after`` seconds unless somebody reads it."""
        await self._call(calls.AbandonRun(kernel_id=kernel_id, run_id=run_id, after=after))

    async def answer_run(
        self, kernel_id: KernelId, run_id: str, *, offset: int | None, text: str | None
    ) -> RunStatus:
        """Answer the prompt at ``offset`` (None: whichever waits); ``text`` None is the end of all input."""
        call = calls.AnswerRun(kernel_id=kernel_id, run_id=run_id, offset=offset, text=text)
        return _as(RunStatus, await self._call(call))

    async def type_input(
        self, kernel_id: KernelId, run_id: str, *, writer: str, offset: int | None, data: bytes
    ) -> int:
        """Type into a terminal; how many bytes it has taken from this writer in all."""
        call = calls.TypeInput(kernel_id=kernel_id, run_id=run_id, writer=writer, offset=offset, data=data)
        return _as(int, await self._call(call))

    async def resize_terminal(self, kernel_id: KernelId, run_id: str, *, rows: int, columns: int) -> None:
        """Give a terminal another size."""
        await self._call(calls.ResizeTerminal(kernel_id=kernel_id, run_id=run_id, rows=rows, columns=columns))

    async def complete(self, kernel_id: KernelId, code: str, cursor: int) -> Sequence[str]:
        """Whole replacements of the word before ``cursor``, in characters of ``code``."""
        call = calls.Complete(kernel_id=kernel_id, code=code, cursor=cursor)
        return _as(list[str], await self._call(call))

    async def read_output(
        self, kernel_id: KernelId, run_id: str, *, offset: int, max_bytes: int, wait: float
    ) -> Output:
        """Output from ``offset`` on; waits up to ``wait`` seconds for some, or for the run's end."""
        call = calls.ReadOutput(
            kernel_id=kernel_id,
            run_id=run_id,
            offset=offset,
            max_bytes=min(max_bytes, MAX_OUTPUT),
            wait=min(wait, calls.MAX_WAIT),
        )
        return _as_output(await self._call(call))

    async def poll_run(
        self, kernel_id: KernelId, run_id: str, *, wait: float, max_bytes: int, order: RunOrder | None = None
    ) -> Output:
        """Legacy: start the run if there is an order, continue at the run's own cursor and advance it."""
        call = calls.PollRun(
            kernel_id=kernel_id,
            run_id=run_id,
            wait=min(wait, calls.MAX_WAIT),
            max_bytes=min(max_bytes, MAX_OUTPUT),
            order=order,
        )
        return _as_output(await self._call(call))

    # ------------------------------------------------------------ services

    async def start_service(
        self,
        kernel_id: KernelId,
        service: str,
        *,
        port: int | None,
        arguments: Mapping[str, Sequence[str]],
        envs: Mapping[str, str],
    ) -> calls.ServiceStarted:
        """Have a service run, and wait until it listens."""
        given = {name: list(values) for name, values in arguments.items()}
        call = calls.StartService(
            kernel_id=kernel_id, service=service, port=port, arguments=given, envs=dict(envs)
        )
        return _as(calls.ServiceStarted, await self._call(call))

    async def shut_down_service(self, kernel_id: KernelId, service: str) -> None:
        """Ask a service to end, if it runs."""
        await self._call(calls.ShutdownService(kernel_id=kernel_id, service=service))

    @asynccontextmanager
    async def tunnel(self, kernel_id: KernelId, port: int) -> AsyncIterator[Tunnel]:
        """A connection to a port inside of the kernel, closed at the end. Raises what calls raise."""
        connection = self._links.connection(self._agent_id, self._addr)
        with connection.used():
            await connection.ready(timeout=connection.silence)
            tunnel = await connection.tunnels.dial(kernel_id, port)
            try:
                yield tunnel
            finally:
                connection.tunnels.hang_up(tunnel)

    # ------------------------------------------------------------ files

    async def list_files(self, kernel_id: KernelId, path: str) -> Listing:
        """What is in a folder of the work folder, or the file itself."""
        return _as(Listing, await self._call(filecalls.ListFiles(kernel_id=kernel_id, path=path)))

    async def read_file(self, kernel_id: KernelId, path: str, *, offset: int, max_bytes: int) -> FilePiece:
        """At most ``max_bytes`` of a file from ``offset`` on; none past its end."""
        call = filecalls.ReadFile(
            kernel_id=kernel_id, path=path, offset=offset, max_bytes=min(max_bytes, MAX_OUTPUT)
        )
        return _as(FilePiece, await self._call(call))

    async def write_file(
        self,
        kernel_id: KernelId,
        path: str,
        *,
        upload: str,
        offset: int,
        data: bytes,
        final: bool,
        condition: Condition | None = None,
    ) -> Written | None:
        """A piece (at most 4 MiB) of an upload; with ``final`` the file is put in place. May be repeated."""
        call = filecalls.WriteFile(
            kernel_id=kernel_id,
            path=path,
            upload=upload,
            offset=offset,
            data=data,
            final=final,
            condition=condition,
        )
        answer = await self._call(call)
        return None if answer is None else _as(Written, answer)

    async def drop_upload(self, kernel_id: KernelId, path: str, *, upload: str) -> None:
        """Forget the pieces of an upload that will not go on."""
        await self._call(filecalls.DropUpload(kernel_id=kernel_id, path=path, upload=upload))

    async def patch_file(
        self,
        kernel_id: KernelId,
        path: str,
        *,
        offset: int | None,
        data: bytes,
        condition: Condition | None = None,
    ) -> Written:
        """Write (at most 4 MiB) into a file: at ``offset``, or (None) at its end."""
        call = filecalls.PatchFile(
            kernel_id=kernel_id, path=path, offset=offset, data=data, condition=condition
        )
        return _as(Written, await self._call(call))

    async def move_file(
        self, kernel_id: KernelId, path: str, *, to: str, replace: bool, condition: Condition | None = None
    ) -> Written:
        """Give a file or a folder another path."""
        call = filecalls.MoveFile(kernel_id=kernel_id, path=path, to=to, replace=replace, condition=condition)
        return _as(Written, await self._call(call))

    async def remove_file(
        self, kernel_id: KernelId, path: str, *, recursive: bool, condition: Condition | None = None
    ) -> bool:
        """Remove a file or a folder; whether it is gone, for it may take several calls."""
        call = filecalls.RemoveFile(kernel_id=kernel_id, path=path, recursive=recursive, condition=condition)
        return _as(bool, await self._call(call))

    async def archive_file(self, kernel_id: KernelId, path: str, *, max_bytes: int) -> bytes:
        """A tar file of a file or a folder."""
        call = filecalls.ArchiveFile(kernel_id=kernel_id, path=path, max_bytes=min(max_bytes, MAX_OUTPUT))
        return _as(bytes, await self._call(call))

    async def read_log(self, kernel_id: KernelId, *, before: LogPlace | None, max_bytes: int) -> LogPiece:
        """The newest of what the kernel and its runs wrote, before a place (None: the end)."""
        call = filecalls.ReadLog(kernel_id=kernel_id, before=before, max_bytes=min(max_bytes, MAX_OUTPUT))
        return _as(LogPiece, await self._call(call))

    # ------------------------------------------------------------ streams

    @asynccontextmanager
    async def stream(
        self, kernel_id: KernelId, run_id: str, *, offset: int, order: RunOrder | None = None
    ) -> AsyncIterator[AsyncIterator[Record | RunStatus]]:
        """Records from ``offset`` on as they come, then the ended run's status as the last item. The run is
        started before if there is an order.

        Iterating raises what calls raise; after `AgentUnreachable` a new stream may go on at the same offset.
        """
        connection = self._links.connection(self._agent_id, self._addr)
        with connection.used():
            await connection.ready(timeout=connection.silence)
            try:
                stream = connection.streams.start(kernel_id, run_id, offset, order)
            except FrameError as error:
                raise AgentRefusal("bad-request", str(error)) from error
            try:
                yield stream
            finally:
                connection.streams.stop(stream)

    async def _call(self, call: Call) -> Any:
        connection = self._links.connection(self._agent_id, self._addr)
        return await connection.call(call.method, to_wire(call), timeout=call.timeout)


def _as(kind: type[T], answer: Any) -> T:
    try:
        return from_wire(answer, kind)
    except FrameError as error:
        raise AgentError(f"the agent's answer makes no sense: {error}") from error


def _as_output(answer: Any) -> Output:
    output = _as(Output, answer)
    try:
        for record in output.records:
            Record.unpack(record)
    except ValueError as error:
        raise AgentError(f"the agent's answer makes no sense: {error}") from error
    return output
