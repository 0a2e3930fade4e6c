"""Use cases of runs: start, interrupt, read. No database statement on the way to a session that runs: the
directory finds the kernel, its agent's shim decides and answers."""

import base64
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from math import isfinite
from typing import Any
from uuid import uuid4

import attrs

from ..domain.accounts import Caller
from ..domain.errors import (
    Conflict,
    InvalidParameters,
    NoRoom,
    NotFound,
    RunConflict,
    Unavailable,
)
from ..domain.ids import KernelId, is_run_id
from ..domain.requests import invalid
from ..domain.sessions import PlacedSession
from ..domain.status import DEAD, RunState
from ..runtime.failpoint import failpoint
from ..wire.records import ConsoleFold, Record
from ..wire.rpc import Output, Prompt, RunOrder, RunPlace, RunSpec, RunStatus, Started
from .agentports import AgentLink, Agents
from .agentwords import Refusals, told_by_agent
from .directory import Directory

POLL_BYTES = 1 << 20
MAX_FOLDS = 4096
#: A run whose legacy client dropped ends after so long, unless a reader attached to it.
ABANDONED_SECONDS = 60.0
#: The run of a batch session's startup command.
RESERVED_RUN = "batch-job"


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

    async def put(
        self, caller: Caller, name: str, run_id: str, spec: RunSpec
    ) -> tuple[PlacedSession, Started]:
        """Start the run unless this id has started already; `RunConflict` when it did with another body."""
        check_new(run_id, "run_id")
        try:
            live = await self._directory.find(caller.access_key, name, exact=True)
        except (NotFound, Conflict):  # a client that asks again for what it has had begun finds it
            with suppress(NotFound, Conflict):
                live, run = await self.get(caller, name, run_id)
                if run.digest == spec.digest():
                    return live, Started(created=False, run=run)
            raise
        with _told(live):
            started = await self._link(live).start_run(live.kernel_id, run_id, run_order(live, spec))
        failpoint("put.after_start")
        return live, started

    async def get(self, caller: Caller, name: str, run_id: str) -> tuple[PlacedSession, RunStatus]:
        """The run as its shim tells it, or has left it."""
        live = await self._directory.find_placed(caller.access_key, name)
        with _told(live):
            return live, await self._link(live).get_run(live.kernel_id, run_id)

    async def delete(self, caller: Caller, name: str, run_id: str) -> None:
        """Delete a run that has ended, with its output. `Conflict` when it has not."""
        live = await self._directory.find_placed(caller.access_key, name)
        with _told(live):
            await self._link(live).delete_run(live.kernel_id, run_id)

    async def interrupt(self, caller: Caller, name: str, run_id: str) -> tuple[PlacedSession, RunStatus]:
        """Interrupt the run, or take it out of the queue; its status afterwards. An ended run stays so."""
        live = await self._directory.find_placed(caller.access_key, name)
        with _told(live):
            status = await self._link(live).interrupt_run(live.kernel_id, run_id)
        if status is None:
            raise NotFound("run")
        return live, status

    async def abandon(self, caller: Caller, name: str, run_id: str) -> None:
        """Who started the run is gone without a word: it ends unless somebody reads it soon."""
        live = await self._directory.find(caller.access_key, name, exact=True)
        with _told(live):
            await self._link(live).abandon_run(live.kernel_id, run_id, after=ABANDONED_SECONDS)

    async def list(
        self, caller: Caller, name: str, *, limit: int, after: str | None
    ) -> tuple[PlacedSession, Sequence[RunStatus], str | None]:
        """The session's runs, newest first, and the cursor of the next page (None: no more)."""
        place = None if after is None else _parse_cursor(after)
        live = await self._directory.find_placed(caller.access_key, name)
        with _told(live):
            runs = await self._link(live).list_runs(live.kernel_id, limit=limit + 1, after=place)
        page = runs[:limit]
        return live, page, _cursor(page[-1]) if len(runs) > limit else None

    async def answer(
        self, caller: Caller, name: str, run_id: str, *, offset: int | None, text: str | None
    ) -> tuple[PlacedSession, RunStatus]:
        """Answer what the run asks for at ``offset`` (None: now); ``text`` None is the end of all input.

        `Conflict` when it does not ask for that (any more).
        """
        live = await self._directory.find_placed(caller.access_key, name)
        with _told(live):
            return live, await self._link(live).answer_run(live.kernel_id, run_id, offset=offset, text=text)

    async def complete(self, caller: Caller, reference: str, code: str, cursor: int) -> Sequence[str]:
        """Whole replacements of the word before ``cursor``, in characters of ``code``."""
        live = await self._directory.find(caller.access_key, reference, exact=False)
        with _told(live):
            return await self._link(live).complete(live.kernel_id, code, cursor)

    async def interrupt_session(self, caller: Caller, reference: str) -> None:
        """Interrupt whatever runs in the session now."""
        live = await self._directory.find(caller.access_key, reference, exact=False)
        with _told(live):
            await self._link(live).interrupt_run(live.kernel_id, None)

    async def output(
        self, caller: Caller, name: str, run_id: str, *, offset: int, wait: float, max_bytes: int
    ) -> Output:
        """Output from ``offset`` on; waits up to ``wait`` seconds for some, or for the run's end."""
        live = await self._directory.find_placed(caller.access_key, name)
        with _told(live):
            return await self._link(live).read_output(
                live.kernel_id, run_id, offset=offset, max_bytes=max_bytes, wait=wait
            )

    @asynccontextmanager
    async def stream(
        self, caller: Caller, name: str, run_id: str, *, offset: int, start: RunSpec | None = None
    ) -> AsyncIterator[AsyncIterator[Record | RunStatus]]:
        """Records from ``offset`` on as they come, then the ended run's status as the last item.

        With ``start`` the run is started before, as `put` does, without waiting for the answer.
        """
        if start is not None:
            check_new(run_id, "run_id")
        live = await self._directory.find_placed(caller.access_key, name)
        order = None if start is None else run_order(live, start)
        with _told(live):
            async with self._link(live).stream(live.kernel_id, run_id, offset=offset, order=order) as items:
                yield items

    async def execute(
        self,
        caller: Caller,
        reference: str,
        *,
        mode: str,
        run_id: str | None,
        spec: RunSpec,
        flush: float = 2.0,
    ) -> ExecuteResult:
        """The legacy call: start a run (``query``, ``batch``) or go on with one (``continue``, ``input``
        with the code as its text), and hand out what it printed since the call before, after its end, the end
        of a step, a prompt, or ``flush`` seconds."""
        if mode not in ("query", "batch", "continue", "input"):
            raise invalid("mode", "is no mode of this call")
        if run_id is None:
            if mode in ("continue", "input"):
                raise InvalidParameters("continuation requires explicit run ID", {"runId": "required"})
            run_id = uuid4().hex
        starts = mode in ("query", "batch")
        (check_new if starts else _check)(run_id, "runId")
        live = await self._directory.find(caller.access_key, reference, exact=False)
        with _told(live):
            link = self._link(live)
            if mode == "input":
                await link.answer_run(live.kernel_id, run_id, offset=None, text=spec.code)
            order = run_order(live, spec) if starts else None
            piece = await link.poll_run(live.kernel_id, run_id, wait=flush, max_bytes=POLL_BYTES, order=order)
        return self._fold(live, run_id, piece)

    async def attach_legacy(self, caller: Caller, reference: str) -> PlacedSession:
        """The caller's running session by the legacy rules."""
        return await self._directory.find(caller.access_key, reference, exact=False)

    def _link(self, live: PlacedSession) -> AgentLink:
        return self._agents.link(live.agent_id, live.agent_addr)

    def _fold(self, live: PlacedSession, run_id: str, piece: Output) -> ExecuteResult:
        """A character that two polls share is put together, so the fold is kept between them."""
        key = (live.kernel_id, run_id)
        fold = self._folds.pop(key, None) or ConsoleFold()
        drained = piece.run.ended and piece.next_offset >= piece.run.end_offset
        console = fold.fold(map(Record.unpack, piece.records), final=drained)
        if not drained:
            self._folds[key] = fold
            if len(self._folds) > MAX_FOLDS:
                self._folds.popitem(last=False)
        waits = piece.run.prompt if piece.next_offset >= piece.run.end_offset else None
        status, exit_code, options = legacy_step(fold, piece.run if drained else None, waits)
        return ExecuteResult(
            run_id=run_id, status=status, exit_code=exit_code, console=console, options=options
        )


def run_order(live: PlacedSession, spec: RunSpec) -> RunOrder:
    return RunOrder.of(live.incarnation, spec)


def _told(live: PlacedSession) -> AbstractContextManager[None]:
    """Turn what the agent says about the session's runs into refusals."""
    return told_by_agent({**RUN_REFUSALS, **_GONE} if live.status in DEAD else RUN_REFUSALS)


def _cursor(run: RunStatus) -> str:
    return base64.urlsafe_b64encode(f"{run.queued_at!r} {run.run_id}".encode()).decode().rstrip("=")


def _parse_cursor(text: str) -> RunPlace:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        queued_at, _, run_id = raw.decode().partition(" ")
        place = RunPlace(queued_at=float(queued_at), run_id=run_id)
    except ValueError:
        raise invalid("after", "not a cursor of this list") from None
    if not (isfinite(place.queued_at) and is_run_id(run_id)):
        raise invalid("after", "not a cursor of this list")
    return place


def _check(run_id: str, name: str) -> None:
    if not is_run_id(run_id):
        raise invalid(name, "1 to 64 letters, digits, dots, underscores and dashes")


def check_new(run_id: str, name: str) -> None:
    """A run of this id may be started; else `InvalidParameters` with the parameter's *name*."""
    _check(run_id, name)
    if run_id == RESERVED_RUN:
        raise invalid(name, f"{RESERVED_RUN} is the startup command's")


def legacy_step(
    fold: ConsoleFold, ended: RunStatus | None, waits: Prompt | None
) -> tuple[str, int | None, Mapping[str, Any] | None]:
    """Status, exit code, options: after the end of a step or of the run, a prompt, or plain output."""
    if fold.step_end is not None:
        return f"{fold.step_end['step']}-finished", fold.step_end["exit_code"], None
    if ended is not None:
        return *legacy_outcome(ended), None
    if waits is not None:
        return "waiting-input", None, {"is_password": waits.is_password}
    return "continued", None, None


def legacy_outcome(run: RunStatus) -> tuple[str, int | None]:
    """Status and exit code of an ended run as the legacy interfaces show them (api-sessions §5.5)."""
    match run.state:
        case RunState.FINISHED if run.mode == "batch":
            return "finished", run.exit_code
        case RunState.TIMEOUT:
            return "exec-timeout", None
        case RunState.FINISHED:
            return "finished", 0
        case _:
            return "finished", 130


RUN_REFUSALS: Refusals = {
    "stale-incarnation": lambda message: Unavailable("The session is being restarted.", retry_after=1),
    "no-such-run": lambda message: NotFound("run"),
    "run-conflict": lambda message: RunConflict("This run id was used with another request body."),
    "no-prompt": lambda message: Conflict("The run does not ask for this input (any more)."),
    "no-terminal": lambda message: Conflict("The run has no terminal (any more)."),
    "too-many": lambda message: Conflict("The session has as many of this kind open as it may."),
    "no-room": lambda message: NoRoom("There is no room to record the run."),
    "queue-full": lambda message: Conflict("Too many runs wait in this session."),
    "bad-request": lambda message: InvalidParameters("The agent refused the request.", {"run": message}),
    "not-ended": lambda message: Conflict("The run has not ended. Interrupt it first."),
    "offset-past-end": lambda message: invalid("offset", "past the end of the finished run"),
}
#: Of a session that has ended.
_GONE: Refusals = {
    "no-such-kernel": lambda message: NotFound("run", "The runs of this session are not kept any more."),
}
