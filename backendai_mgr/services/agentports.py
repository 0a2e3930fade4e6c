"""What the services need of agents, as protocols that adapters implement."""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from ..domain.ids import AgentId, KernelId
from ..wire.calls import ServiceStarted
from ..wire.files import Condition, FilePiece, Listing, LogPiece, LogPlace, Written
from ..wire.records import Record
from ..wire.reports import KernelReport, Report
from ..wire.rpc import MAX_RUNS, KernelSpec, Output, RunOrder, RunPlace, RunStatus, Started


class ReportFeed(Protocol):
    """Subscription to an agent's reports under an epoch. Iteration ends with `StaleEpoch` when a higher epoch
    has subscribed."""

    def __aiter__(self) -> AsyncIterator[Report]: ...

    async def ack(self, report: Report, ended: Collection[KernelReport]) -> None:
        """Tell the agent that these ended kernels are stored and need not be reported again."""


class Tunnel(Protocol):
    """A connection to a service."""

    async def send(self, data: bytes) -> None:
        """Send all of it, as fast as the service reads; what comes after its end goes nowhere."""

    async def receive(self) -> bytes:
        """The next bytes; none when the service has hung up. Raises what calls of the link raise."""


class AgentLink(Protocol):
    """One agent. Refusals are `wire.rpc.AgentRefusal`, silence past a call's deadline `AgentUnreachable`."""

    @property
    def last_heard(self) -> float:
        """Trio time of the newest frame of any kind from the agent (-inf: none yet)."""

    @property
    def trouble(self) -> str | None:
        """Why the agent is not connected, in a sentence, where that is known."""

    async def create_kernel(self, spec: KernelSpec) -> tuple[str, int, KernelReport]:
        """Start a kernel: (boot, seq, its report). Idempotent on (id, incarnation)."""

    async def destroy_kernel(self, kernel_id: KernelId, incarnation: int, reason: str, epoch: int) -> None:
        """Begin to end a kernel; its end shows in reports."""

    async def start_run(self, kernel_id: KernelId, run_id: str, order: RunOrder) -> Started:
        """Start the run, or attach when it exists with the same digest (`run-conflict` otherwise)."""

    async def get_run(self, kernel_id: KernelId, run_id: str) -> RunStatus: ...

    async def list_runs(
        self, kernel_id: KernelId, *, limit: int = MAX_RUNS, after: RunPlace | None = None
    ) -> Sequence[RunStatus]:
        """Runs that are kept, the newest first, from a place on."""

    async def delete_run(self, kernel_id: KernelId, run_id: str) -> None:
        """Delete a run that has ended (`not-ended` otherwise)."""

    async def interrupt_run(self, kernel_id: KernelId, run_id: str | None) -> RunStatus | None: ...

    async def abandon_run(self, kernel_id: KernelId, run_id: str, *, after: float) -> None:
        """Who started the run has gone: interrupt it in ``after`` seconds unless somebody reads it."""

    async def answer_run(
        self, kernel_id: KernelId, run_id: str, *, offset: int | None, text: str | None
    ) -> RunStatus:
        """Answer the prompt at ``offset`` (None: whichever waits); ``text`` None is the end of all input."""

    async def type_input(
        self, kernel_id: KernelId, run_id: str, *, writer: str, offset: int | None, data: bytes
    ) -> int:
        """Type (at most 64 KiB) into a terminal; how many bytes it has taken from this writer in all."""

    async def resize_terminal(self, kernel_id: KernelId, run_id: str, *, rows: int, columns: int) -> None: ...

    async def complete(self, kernel_id: KernelId, code: str, cursor: int) -> Sequence[str]:
        """Whole replacements of the word before ``cursor``, in characters of ``code``."""

    async def read_output(
        self, kernel_id: KernelId, run_id: str, *, offset: int, max_bytes: int, wait: float
    ) -> Output:
        """Output from ``offset`` on; waits up to ``wait`` seconds for some, or for the run's end."""

    async def poll_run(
        self, kernel_id: KernelId, run_id: str, *, wait: float, max_bytes: int, order: RunOrder | None = None
    ) -> Output:
        """Legacy: start the run if there is an order, continue at the run's own cursor and advance it."""

    async def start_service(
        self,
        kernel_id: KernelId,
        service: str,
        *,
        port: int | None,
        arguments: Mapping[str, Sequence[str]],
        envs: Mapping[str, str],
    ) -> ServiceStarted:
        """Have a service run, and wait until it listens."""

    async def shut_down_service(self, kernel_id: KernelId, service: str) -> None:
        """Ask a service to end, if it runs."""

    def tunnel(self, kernel_id: KernelId, port: int) -> AbstractAsyncContextManager[Tunnel]:
        """A connection to a port inside of the kernel; refused with `connection-refused`."""

    async def list_files(self, kernel_id: KernelId, path: str) -> Listing: ...

    async def read_file(
        self, kernel_id: KernelId, path: str, *, offset: int, max_bytes: int
    ) -> FilePiece: ...

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
        """A piece (at most 4 MiB) of an upload; with ``final`` the file is put in place, and told of. May be
        repeated."""

    async def drop_upload(self, kernel_id: KernelId, path: str, *, upload: str) -> None:
        """Forget the pieces of an upload that will not go on."""

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

    async def move_file(
        self, kernel_id: KernelId, path: str, *, to: str, replace: bool, condition: Condition | None = None
    ) -> Written:
        """Give a file or a folder another path, with ``replace`` also that of another file."""

    async def remove_file(
        self, kernel_id: KernelId, path: str, *, recursive: bool, condition: Condition | None = None
    ) -> bool:
        """Remove a file or a folder; whether it is gone, for it may take several calls."""

    async def archive_file(self, kernel_id: KernelId, path: str, *, max_bytes: int) -> bytes:
        """A tar file of a file or a folder."""

    async def read_log(self, kernel_id: KernelId, *, before: LogPlace | None, max_bytes: int) -> LogPiece:
        """The newest of what the kernel and its runs wrote, before a place (None: the end)."""

    def stream(
        self, kernel_id: KernelId, run_id: str, *, offset: int, order: RunOrder | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[Record | RunStatus]]:
        """Start the run if there is an order; records from ``offset`` on as they come, then its status."""

    def reports(self, epoch: int, owner: str) -> AbstractAsyncContextManager[ReportFeed]:
        """Subscribe to the agent's reports."""

    async def report(self, epoch: int) -> Report:
        """A report made now."""


class Agents(Protocol):
    """Links to agents, dialled on first use."""

    def link(self, agent_id: AgentId, addr: str) -> AgentLink: ...
