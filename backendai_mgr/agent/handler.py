"""What the link server of an agent serves: kernels, runs and reports, as a protocol.

`agent.server` knows frames, epochs and credit; `agent.registry` implements this and knows kernels.
"""

from collections.abc import Collection, Sequence
from typing import Protocol
from uuid import UUID

import attrs

from ..wire.records import Record
from ..wire.reports import KernelReport, Report
from ..wire.rpc import KernelSpec, RunSpec, RunStatus, Started


@attrs.frozen(kw_only=True)
class Chunk:
    """A piece of a run's output. ``next_offset`` follows the last record (or is what was asked for)."""

    records: Sequence[Record]
    next_offset: int
    run: RunStatus


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

    async def start_run(
        self, kernel_id: UUID, incarnation: int, run_id: str, digest: str, spec: RunSpec
    ) -> Started: ...

    async def get_run(self, kernel_id: UUID, run_id: str) -> RunStatus: ...

    async def list_runs(self, kernel_id: UUID) -> Sequence[RunStatus]: ...

    async def interrupt_run(self, kernel_id: UUID, run_id: str | None) -> RunStatus | None: ...

    async def read_output(
        self, kernel_id: UUID, run_id: str, *, offset: int, max_bytes: int, wait: float
    ) -> Chunk:
        """Output from ``offset``; waits at most ``wait`` seconds for some or for the end of the run."""

    async def poll_run(self, kernel_id: UUID, run_id: str, *, wait: float, max_bytes: int) -> Chunk:
        """Legacy: waits up to ``wait`` seconds for the end of the run, then hands out what there is from the
        run's own cursor on, and advances it. Serialised per run."""
