"""The agent's methods: arguments, answers and deadlines, one class per method for both ends of the link.

A call travels as a callosum FUNCTION whose named arguments are the attributes of its class. `from_wire` is as
strict as `wire.codec` and has one error for all that a peer can get wrong.
"""

from collections.abc import Mapping
from typing import ClassVar
from uuid import UUID

import attrs
from attrs.validators import and_, ge, le, max_len, optional

from . import filecalls
from .call import MARGIN, Call, is_run_id, is_size
from .reports import KernelReport
from .rpc import MAX_RUNS, KernelSpec, RunOrder, RunPlace

#: Most bytes that are typed at once; most rows and columns of a terminal.
MAX_TYPED = 64 * 1024
MAX_SIDE = 9999
#: Longest that a reading call may wait at the agent, seconds.
MAX_WAIT = 3600.0

_WAIT = and_(ge(0.0), le(MAX_WAIT))
_SIDE = and_(ge(1), le(MAX_SIDE))


@attrs.frozen(kw_only=True)
class CreateKernel(Call):
    """-> `Created`. Idempotent on (id, incarnation). Refused: stale-incarnation, create-failed."""

    method: ClassVar[str] = "create_kernel"
    spec: KernelSpec

    @property
    def timeout(self) -> float:
        return 60.0


@attrs.frozen(kw_only=True)
class DestroyKernel(Call):
    """-> ``{"seq": int}`` when killing has begun; an unknown kernel is fine. Refused: stale-epoch."""

    method: ClassVar[str] = "destroy_kernel"
    kernel_id: UUID
    incarnation: int
    reason: str
    epoch: int

    @property
    def timeout(self) -> float:
        return 30.0


@attrs.frozen(kw_only=True)
class StartRun(Call):
    """-> `Started`. Refused: run-conflict, stale-incarnation, queue-full, kernel-ended, no-such-kernel."""

    method: ClassVar[str] = "start_run"
    kernel_id: UUID
    run_id: str = attrs.field(validator=is_run_id)
    order: RunOrder

    @property
    def timeout(self) -> float:
        return 30.0


@attrs.frozen(kw_only=True)
class GetRun(Call):
    """-> `RunStatus`. Refused: no-such-kernel, no-such-run."""

    method: ClassVar[str] = "get_run"
    kernel_id: UUID
    run_id: str = attrs.field(validator=is_run_id)


@attrs.frozen(kw_only=True)
class ListRuns(Call):
    """-> ``[RunStatus, …]``, the newest first. Refused: no-such-kernel."""

    method: ClassVar[str] = "list_runs"
    kernel_id: UUID
    limit: int = attrs.field(default=MAX_RUNS, validator=and_(ge(1), le(MAX_RUNS)))
    after: RunPlace | None = None


@attrs.frozen(kw_only=True)
class DeleteRun(Call):
    """-> None. Refused: not-ended, no-such-run, no-such-kernel, no-room."""

    method: ClassVar[str] = "delete_run"
    kernel_id: UUID
    run_id: str = attrs.field(validator=is_run_id)


@attrs.frozen(kw_only=True)
class InterruptRun(Call):
    """-> `RunStatus`, or None when no run was named and none is running."""

    method: ClassVar[str] = "interrupt_run"
    kernel_id: UUID
    run_id: str | None = attrs.field(validator=optional(is_run_id))

    @property
    def timeout(self) -> float:
        return 30.0


@attrs.frozen(kw_only=True)
class AbandonRun(Call):
    """-> None. Who started the run has gone: interrupt it in ``after`` seconds unless somebody reads it by
    then. Refused: no-such-kernel."""

    method: ClassVar[str] = "abandon_run"
    kernel_id: UUID
    run_id: str = attrs.field(validator=is_run_id)
    after: float = attrs.field(validator=_WAIT)


@attrs.frozen(kw_only=True)
class AnswerRun(Call):
    """-> `RunStatus`. ``offset`` names the prompt (None: whichever waits); ``text`` None ends all input.

    Refused: no-prompt, no-such-run.
    """

    method: ClassVar[str] = "answer_run"
    kernel_id: UUID
    run_id: str = attrs.field(validator=is_run_id)
    offset: int | None = attrs.field(validator=optional(ge(0)))
    text: str | None


@attrs.frozen(kw_only=True)
class TypeInput(Call):
    """-> the number of bytes that were taken from this ``writer``, by the terminal ``run_id``, in all.

    ``offset`` is the position of ``data`` in what the writer sends (None: it does not count); what was taken
    before is passed over. Nothing is taken where something before is missing, or for want of room within a
    few seconds. Refused: no-terminal, no-such-run.
    """

    method: ClassVar[str] = "type_input"
    kernel_id: UUID
    run_id: str = attrs.field(validator=is_run_id)
    writer: str = attrs.field(validator=is_run_id)
    offset: int | None = attrs.field(validator=optional(and_(ge(0), le(2**62))))
    data: bytes = attrs.field(validator=max_len(MAX_TYPED))


@attrs.frozen(kw_only=True)
class ResizeTerminal(Call):
    """-> None. Refused: no-terminal, no-such-run."""

    method: ClassVar[str] = "resize_terminal"
    kernel_id: UUID
    run_id: str = attrs.field(validator=is_run_id)
    rows: int = attrs.field(validator=_SIDE)
    columns: int = attrs.field(validator=_SIDE)


@attrs.frozen(kw_only=True)
class StartService(Call):
    """-> `ServiceStarted`, when the service listens. ``arguments`` and ``envs`` only as its image allows.

    Refused: no-such-service, no-such-port, service-failed, bad-request.
    """

    method: ClassVar[str] = "start_service"
    kernel_id: UUID
    service: str
    port: int | None = None
    arguments: dict[str, list[str]] = attrs.Factory(dict)
    envs: dict[str, str] = attrs.Factory(dict)

    @property
    def timeout(self) -> float:
        return 60.0


@attrs.frozen(kw_only=True)
class ShutdownService(Call):
    """-> None, also for one that does not run. Refused: no-such-service."""

    method: ClassVar[str] = "shutdown_service"
    kernel_id: UUID
    service: str

    @property
    def timeout(self) -> float:
        return 30.0


@attrs.frozen(kw_only=True)
class Complete(Call):
    """-> ``[str, …]``: whole replacements of the word before ``cursor`` (in characters of ``code``)."""

    method: ClassVar[str] = "complete"
    kernel_id: UUID
    code: str
    cursor: int = attrs.field(validator=ge(0))


@attrs.frozen(kw_only=True)
class ReadOutput(Call):
    """-> `Output` from ``offset`` on, after at most ``wait`` s. Refused: offset-past-end, no-such-run."""

    method: ClassVar[str] = "read_output"
    kernel_id: UUID
    run_id: str = attrs.field(validator=is_run_id)
    offset: int = attrs.field(validator=ge(0))
    max_bytes: int = attrs.field(validator=is_size)
    wait: float = attrs.field(validator=_WAIT)

    @property
    def timeout(self) -> float:
        return self.wait + MARGIN


@attrs.frozen(kw_only=True)
class PollRun(Call):
    """-> `Output` from the run's own cursor on; when the run or a step of it has ended, when it
    asks for input, or after ``wait`` seconds. The run is started before if there is an ``order``."""

    method: ClassVar[str] = "poll_run"
    kernel_id: UUID
    run_id: str = attrs.field(validator=is_run_id)
    wait: float = attrs.field(validator=_WAIT)
    max_bytes: int = attrs.field(validator=is_size)
    order: RunOrder | None = None

    @property
    def timeout(self) -> float:
        return self.wait + (MARGIN if self.order is None else 2 * MARGIN)


@attrs.frozen(kw_only=True)
class MakeReport(Call):
    """-> `Report`, made now. Refused: stale-epoch."""

    method: ClassVar[str] = "report"
    epoch: int

    @property
    def timeout(self) -> float:
        return 5.0


@attrs.frozen(kw_only=True)
class Created:
    """The answer to `CreateKernel`: the first report that can miss the kernel is the one after ``seq``."""

    boot: str
    seq: int
    kernel: KernelReport


@attrs.frozen(kw_only=True)
class ServiceStarted:
    """The answer to `StartService`: the port inside at which it can be reached, and whether it ran before."""

    port: int
    was_running: bool


_CALLS: tuple[type[Call], ...] = (
    *(CreateKernel, DestroyKernel, MakeReport),
    *(StartRun, GetRun, ListRuns, DeleteRun, InterruptRun, AbandonRun, AnswerRun, Complete),
    *(TypeInput, ResizeTerminal, StartService, ShutdownService),
    *(ReadOutput, PollRun),
    *filecalls.CALLS,
)
#: Every call by its method.
CALLS: Mapping[str, type[Call]] = {call.method: call for call in _CALLS}
