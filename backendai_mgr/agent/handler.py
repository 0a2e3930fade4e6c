"""What the link server of an agent serves: kernels, runs and reports, as a protocol.

`agent.server` knows frames, epochs and credit; `agent.registry` implements this and knows kernels.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol
from uuid import UUID

import attrs
import trio

from ..wire.calls import ServiceStarted
from ..wire.files import Condition, FilePiece, Listing, LogPiece, LogPlace, Written
from ..wire.records import Record
from ..wire.reports import KernelReport, Report
from ..wire.rpc import MAX_RUNS, KernelSpec, RunOrder, RunPlace, RunStatus, Started


@attrs.frozen(kw_only=True)
class Chunk:
    """A piece of a run's output. ``next_offset`` follows the last record (or is what was asked for)."""

    records: Sequence[Record]
    next_offset: int
    run: RunStatus


class Files(Protocol):
    """The files of one kernel's work folder. Paths are relative, or below ``/home/work``."""

    async def list(self, path: str) -> Listing: ...

    async def read(self, path: str, offset: int, max_bytes: int) -> FilePiece: ...

    async def write(
        self,
        path: str,
        upload: str,
        offset: int,
        data: bytes,
        *,
        final: bool,
        condition: Condition | None = None,
    ) -> Written | None:
        """A piece of an upload; with *final* the file is put in place. May be repeated."""

    async def drop(self, path: str, upload: str) -> None:
        """Forget the pieces of an upload."""

    async def patch(
        self, path: str, offset: int | None, data: bytes, *, condition: Condition | None
    ) -> Written:
        """Write into a file: at *offset*, or (None) at its end."""

    async def move(self, path: str, to: str, *, replace: bool, condition: Condition | None) -> Written:
        """Give a file or a folder another path."""

    async def remove(self, path: str, *, recursive: bool, condition: Condition | None) -> bool:
        """Remove a file or a folder; whether it is gone, for it may take several calls."""

    async def archive(self, path: str, max_bytes: int) -> bytes:
        """A tar file of a file or a folder."""

    async def log(self, before: LogPlace | None, max_bytes: int) -> LogPiece:
        """The newest of what the kernel and its runs wrote, before a place."""


class Handler(Protocol):
    """All refusals are `wire.rpc.AgentRefusal`."""

    def make_report(self) -> Report:
        """The present state, with the next ``seq``."""

    def acknowledge(self, ended: Collection[tuple[UUID, int]]) -> None:
        """These (kernel id, incarnation) ended and need not be reported again; clean up after them."""

    async def wait_changed(self, seen: int) -> int:
        """The change counter as soon as it differs from ``seen``; it grows with each change of state."""

    async def create_kernel(self, spec: KernelSpec) -> KernelReport: ...

    async def destroy_kernel(self, kernel_id: UUID, incarnation: int, reason: str) -> None: ...

    def files(self, kernel_id: UUID) -> Files: ...

    async def start_run(self, kernel_id: UUID, run_id: str, order: RunOrder) -> Started: ...

    async def get_run(self, kernel_id: UUID, run_id: str) -> RunStatus: ...

    async def list_runs(
        self, kernel_id: UUID, *, limit: int = MAX_RUNS, after: RunPlace | None = None
    ) -> Sequence[RunStatus]:
        """The newest first, from a place on."""

    async def delete_run(self, kernel_id: UUID, run_id: str) -> None:
        """Delete a run that has ended."""

    async def interrupt_run(self, kernel_id: UUID, run_id: str | None) -> RunStatus | None: ...

    async def abandon_run(self, kernel_id: UUID, run_id: str, after: float) -> None:
        """Have the run interrupted in ``after`` seconds unless somebody reads it by then."""

    async def answer_run(
        self, kernel_id: UUID, run_id: str, offset: int | None, text: str | None
    ) -> RunStatus:
        """Answer the prompt at ``offset`` (None: whichever waits); ``text`` None is the end of all input."""

    async def type_input(
        self, kernel_id: UUID, run_id: str, writer: str, offset: int | None, data: bytes
    ) -> int:
        """Type into a terminal; how many bytes it has taken from this writer. May take a few seconds."""

    async def resize_terminal(self, kernel_id: UUID, run_id: str, rows: int, columns: int) -> None: ...

    async def start_service(
        self,
        kernel_id: UUID,
        service: str,
        port: int | None,
        arguments: Mapping[str, Sequence[str]],
        envs: Mapping[str, str],
    ) -> ServiceStarted:
        """Have a service run; returns when it listens."""

    async def shut_down_service(self, kernel_id: UUID, service: str) -> None: ...

    async def connect(self, kernel_id: UUID, port: int) -> trio.SocketStream:
        """A connection to a port inside. Besides refusals raises `shimsocket.NobodyListens` and OSError."""

    async def complete(self, kernel_id: UUID, code: str, cursor: int) -> Sequence[str]:
        """How the word before ``cursor`` may go on; nothing while the interpreter is busy."""

    async def read_output(
        self, kernel_id: UUID, run_id: str, *, offset: int, max_bytes: int, wait: float
    ) -> Chunk:
        """Output from ``offset``; waits at most ``wait`` seconds for some or for the end of the run."""

    async def poll_run(self, kernel_id: UUID, run_id: str, *, wait: float, max_bytes: int) -> Chunk:
        """Legacy: waits up to ``wait`` seconds for the end of the run, then hands out what there is from the
        run's own cursor on, and advances it. Serialised per run."""
