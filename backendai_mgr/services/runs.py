"""Use cases of runs: start, interrupt, read. No database statement on the way: the directory
finds the kernel, its agent's shim decides and answers."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any
from uuid import uuid4

import attrs

from ..domain.accounts import Caller
from ..domain.errors import AgentFailed, Conflict, InvalidParameters, NotFound, RunConflict, Unavailable
from ..domain.ids import KernelId, is_run_id
from ..domain.requests import invalid
from ..domain.sessions import LiveSession
from ..domain.status import RunState
from ..wire.callosum import AgentError
from ..wire.records import ConsoleFold, Record
from ..wire.rpc import AgentRefusal, AgentUnreachable, Output, RunSpec, RunStatus, Started
from .directory import Directory
from .ports import AgentLink, Agents

POLL_BYTES = 1 << 20
MAX_FOLDS = 4096


@attrs.frozen(kw_only=True)
class ExecuteResult:
    """The answer of the legacy execute call (api-sessions §5.5)."""

    run_id: str
    status: str
    exit_code: int | None
    console: list[list[Any]]
    options: Mapping[str, Any] | None = None


class RunService:
    """Runs in the caller's own sessions. ``name`` is exact (or a full UUID), ``reference`` follows the legacy
    rules of prefixes."""

    def __init__(self, directory: Directory, agents: Agents) -> None:
        self._directory = directory
        self._agents = agents
        self._folds: OrderedDict[tuple[KernelId, str], ConsoleFold] = OrderedDict()

    async def put(self, caller: Caller, name: str, run_id: str, spec: RunSpec) -> tuple[LiveSession, Started]:
        """Start the run unless this id has started already; `RunConflict` when it did with another body."""
        if not is_run_id(run_id):
            raise invalid("run_id", "1 to 64 letters, digits, dots, underscores and dashes")
        live = await self._directory.find(caller.access_key, name, exact=True)
        with _told_by_agent():
            return live, await self._link(live).start_run(live.kernel_id, live.incarnation, run_id, spec)

    async def get(self, caller: Caller, name: str, run_id: str) -> tuple[LiveSession, RunStatus]:
        """The run as its shim tells it."""
        live = await self._directory.find(caller.access_key, name, exact=True)
        with _told_by_agent():
            return live, await self._link(live).get_run(live.kernel_id, run_id)

    async def interrupt(self, caller: Caller, name: str, run_id: str) -> tuple[LiveSession, RunStatus]:
        """Interrupt the run, or take it out of the queue; its status afterwards. An ended run stays so."""
        live = await self._directory.find(caller.access_key, name, exact=True)
        with _told_by_agent():
            status = await self._link(live).interrupt_run(live.kernel_id, run_id)
        if status is None:
            raise NotFound("run")
        return live, status

    async def interrupt_session(self, caller: Caller, reference: str) -> None:
        """Interrupt whatever runs in the session now."""
        live = await self._directory.find(caller.access_key, reference, exact=False)
        with _told_by_agent():
            await self._link(live).interrupt_run(live.kernel_id, None)

    async def output(
        self, caller: Caller, name: str, run_id: str, *, offset: int, wait: float, max_bytes: int
    ) -> Output:
        """Output from ``offset`` on; waits up to ``wait`` seconds for some, or for the run's end."""
        live = await self._directory.find(caller.access_key, name, exact=True)
        with _told_by_agent():
            return await self._link(live).read_output(
                live.kernel_id, run_id, offset=offset, max_bytes=max_bytes, wait=wait
            )

    @asynccontextmanager
    async def stream(
        self, caller: Caller, name: str, run_id: str, *, offset: int
    ) -> AsyncIterator[AsyncIterator[Record | RunStatus]]:
        """Records from ``offset`` on as they come, then the ended run's status as the last item."""
        live = await self._directory.find(caller.access_key, name, exact=True)
        with _told_by_agent():
            async with self._open(live, run_id, offset) as items:
                yield items

    async def execute(
        self,
        caller: Caller,
        reference: str,
        *,
        mode: str,
        run_id: str | None,
        code: str,
        flush: float = 2.0,
    ) -> ExecuteResult:
        """The legacy call: start (``query``) or go on with (``continue``) a run, and hand out what it printed
        since the call before, after its end or ``flush`` seconds."""
        if mode not in ("query", "continue"):
            raise invalid("mode", f"Mode {mode!r} is not supported by this version.")
        if run_id is None:
            if mode == "continue":
                raise InvalidParameters("continuation requires explicit run ID", {"runId": "required"})
            run_id = uuid4().hex
        if not is_run_id(run_id):
            raise invalid("runId", "1 to 64 letters, digits, dots, underscores and dashes")
        live = await self._directory.find(caller.access_key, reference, exact=False)
        with _told_by_agent():
            link = self._link(live)
            if mode == "query":
                await link.start_run(live.kernel_id, live.incarnation, run_id, RunSpec(code=code))
            piece = await link.poll_run(live.kernel_id, run_id, wait=flush, max_bytes=POLL_BYTES)
        return self._fold(live, run_id, piece)

    async def attach_legacy(self, caller: Caller, reference: str) -> LiveSession:
        """The caller's running session by the legacy rules."""
        return await self._directory.find(caller.access_key, reference, exact=False)

    def _link(self, live: LiveSession) -> AgentLink:
        return self._agents.link(live.agent_id, live.agent_addr)

    def _open(
        self, live: LiveSession, run_id: str, offset: int
    ) -> AbstractAsyncContextManager[AsyncIterator[Record | RunStatus]]:
        return self._link(live).stream(live.kernel_id, run_id, offset=offset)

    def _fold(self, live: LiveSession, run_id: str, piece: Output) -> ExecuteResult:
        """A character that two polls share is put together, so the fold is kept between them."""
        key = (live.kernel_id, run_id)
        fold = self._folds.pop(key, None) or ConsoleFold()
        drained = piece.run.ended and piece.next_offset >= piece.run.end_offset
        console = fold.fold(map(Record.unpack, piece.records), final=drained)
        if not drained:
            self._folds[key] = fold
            if len(self._folds) > MAX_FOLDS:
                self._folds.popitem(last=False)
        status, exit_code = legacy_outcome(piece.run) if drained else ("continued", None)
        return ExecuteResult(run_id=run_id, status=status, exit_code=exit_code, console=console)


def legacy_outcome(run: RunStatus) -> tuple[str, int | None]:
    """Status and exit code of an ended query run as the legacy interfaces show them (api-sessions §5.5)."""
    match run.state:
        case RunState.TIMEOUT:
            return "exec-timeout", None
        case RunState.FINISHED:
            return "finished", 0
        case _:
            return "finished", 130


@contextmanager
def _told_by_agent() -> Iterator[None]:
    """Turn what the agent or its link say into our refusals."""
    try:
        yield
    except AgentRefusal as refusal:
        raise _REFUSALS.get(refusal.code, _failed)(refusal.message or refusal.code) from refusal
    except AgentUnreachable as error:
        raise Unavailable("The session's agent does not answer.", retry_after=2) from error
    except AgentError as error:
        raise AgentFailed("execute", str(error)) from error


def _failed(message: str) -> Exception:
    return AgentFailed("execute", message)


_REFUSALS: Mapping[str, Any] = {
    "no-such-kernel": lambda message: Unavailable("The session's kernel is not there (yet, or any more)."),
    "kernel-silent": lambda message: Unavailable("The session's kernel does not answer."),
    "kernel-ended": lambda message: Conflict("The session's kernel has ended."),
    "stale-incarnation": lambda message: Unavailable("The session is being restarted.", retry_after=1),
    "no-such-run": lambda message: NotFound("run"),
    "run-conflict": lambda message: RunConflict("This run id was used with another request body."),
    "queue-full": lambda message: Conflict("Too many runs wait in this session."),
    "bad-request": lambda message: InvalidParameters("The agent refused the request.", {"run": message}),
    "offset-past-end": lambda message: invalid("offset", "past the end of the finished run"),
}
