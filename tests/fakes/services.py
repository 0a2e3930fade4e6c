"""The services that the HTTP interface calls, in memory and scripted: what they answer is data, and each
refusal that a test plants is raised once."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import attrs
import trio

from backendai_mgr.domain.accounts import Caller, Credential, KeypairPolicy, Role
from backendai_mgr.domain.errors import Conflict, InvalidParameters, NotFound, RunConflict
from backendai_mgr.domain.ids import AccessKey, AgentId, SessionId, is_run_id
from backendai_mgr.domain.sessions import PlacedSession, Session
from backendai_mgr.domain.status import RunState, Status
from backendai_mgr.services.ports import Match, StoreUnavailable
from backendai_mgr.services.runs import ExecuteResult, legacy_outcome
from backendai_mgr.services.sessions import CreateRequest, Creation
from backendai_mgr.wire.records import STDOUT, ConsoleFold, Record
from backendai_mgr.wire.reports import Report
from backendai_mgr.wire.rpc import Output, RunSpec, RunStatus, Started

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
SESSION_ID = UUID("11111111-2222-3333-4444-555555555555")
CREATED_AT = datetime(2022, 3, 15, 1, 2, 3, tzinfo=UTC)

POLICY = KeypairPolicy(
    name="default",
    max_concurrent_sessions=5,
    max_containers_per_session=1,
    max_session_lifetime=0,
    idle_timeout=0,
    unlimited_by_default=True,
    total_slots={},
)
CALLER = Caller(
    access_key=AccessKey(ACCESS_KEY),
    user_id=UUID(int=7),
    email="user@example.com",
    role=Role.USER,
    domain="default",
    is_admin=False,
    rate_limit=1000,
    policy=POLICY,
)


class FakeKeys:
    """One key pair; ``away`` makes the database vanish."""

    def __init__(self) -> None:
        self.away = False
        self.asked: list[str] = []

    async def credential(self, access_key: AccessKey) -> Credential | None:
        self.asked.append(access_key)
        if self.away:
            raise StoreUnavailable
        return Credential(caller=CALLER, secret_key=SECRET_KEY) if access_key == ACCESS_KEY else None


def a_session(**changes: Any) -> Session:
    """A running session."""
    session = Session(
        id=SessionId(SESSION_ID),
        name="my-session",
        type="interactive",
        status=Status.RUNNING,
        access_key=AccessKey(ACCESS_KEY),
        user_id=CALLER.user_id,
        domain="default",
        group_id=UUID(int=9),
        scaling_group="default",
        image="local/python:3.11",
        architecture="x86_64",
        registry="local",
        tag=None,
        requested_slots={"cpu": "1"},
        occupied_slots={"cpu": "1"},
        environ={"A": "b"},
        service_ports=({"name": "sshd", "protocol": "tcp", "container_ports": [2200], "host_ports": [1]},),
        created_at=CREATED_AT,
        terminated_at=None,
        status_changed=CREATED_AT,
        deadline=None,
        reasons={},
        result="undefined",
        num_queries=0,
        last_stat=None,
        incarnation=1,
        agent_id=AgentId("i-local"),
        agent_addr="tcp://127.0.0.1:6001",
        container_id=None,
        exit_code=None,
    )
    return attrs.evolve(session, **changes)


class FakeSessions:
    """Sessions by name. ``refusal``, once set, is what the next call raises; ``calls`` is what was asked."""

    def __init__(self) -> None:
        self.sessions = {"my-session": a_session()}
        self.refusal: Exception | None = None
        self.calls: list[Any] = []

    def _enter(self, *call: Any) -> None:
        self.calls.append(call)
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal

    def _find(self, reference: str) -> Session:
        found = [s for s in self.sessions.values() if reference in (s.name, str(s.id))]
        if not found:
            raise NotFound("session")
        return found[0]

    async def create(self, caller: Caller, request: CreateRequest) -> Creation:
        self._enter("create", request)
        if (existing := self.sessions.get(request.name)) is not None:
            return Creation(session=existing, created=False, status=str(existing.status))
        session = a_session(id=SessionId(uuid4()), name=request.name)
        self.sessions[request.name] = session
        return Creation(session=session, created=True, status=str(session.status))

    async def info(self, caller: Caller, reference: str) -> Session:
        self._enter("info", reference)
        return self._find(reference)

    async def match(self, caller: Caller, reference: str) -> list[Match]:
        self._enter("match", reference)
        return [
            Match(id=s.id, name=s.name, status=s.status, created_at=s.created_at)
            for s in self.sessions.values()
            if s.name.startswith(reference)
        ]

    async def destroy(
        self, caller: Caller, reference: str, *, forced: bool, owner_access_key: str | None
    ) -> dict[str, Any]:
        self._enter("destroy", reference, forced, owner_access_key)
        self._find(reference)
        return {"status": "terminated", "version": 2}

    async def restart(self, caller: Caller, reference: str) -> None:
        self._enter("restart", reference)
        self._find(reference)

    async def rename(self, caller: Caller, reference: str, name: str) -> None:
        self._enter("rename", reference, name)
        self._find(reference)

    async def list(
        self, caller: Caller, *, statuses: Any, limit: int, after: str | None
    ) -> tuple[list[Session], str | None]:
        self._enter("list", statuses, limit, after)
        return list(self.sessions.values())[:limit], "more"

    async def why(self, caller: Caller, name_or_id: str) -> dict[str, Any]:
        self._enter("why", name_or_id)
        session = self._find(name_or_id)
        return {"session_id": str(session.id), "name": session.name, "sentence": "It is running."}


class FakeRun:
    """A run whose program is the test: it writes and ends when told."""

    def __init__(self, run_id: str, spec: RunSpec) -> None:
        self.spec = spec
        self.records: list[Record] = []
        self.interrupts = 0
        self.readers = 0
        #: Where the reader of its stream has got to.
        self.handed_out = 0
        self._changed = trio.Event()
        self.status = RunStatus(
            run_id=run_id,
            incarnation=1,
            digest=spec.digest(),
            mode=spec.mode,
            state=RunState.RUNNING,
            queued_at=1.0,
            started_at=2.0,
        )

    def _notify(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def write(self, data: bytes, stream: str = STDOUT) -> None:
        record = Record(self.status.end_offset, 1_000_000_000, stream, data)
        self.records.append(record)
        self.status = attrs.evolve(self.status, end_offset=record.end)
        self._notify()

    def end(self, state: RunState = RunState.FINISHED, exit_code: int | None = 0, reason: str = "") -> None:
        self.status = attrs.evolve(self.status, state=state, exit_code=exit_code, reason=reason, ended_at=3.0)
        self._notify()

    def interrupt(self) -> None:
        self.interrupts += 1
        if not self.status.ended:
            self.end(RunState.CANCELLED, 130)
        self._notify()

    async def until(self, predicate: Callable[[], bool]) -> None:
        """Wait for something that is true after a change."""
        while not predicate():
            await self._changed.wait()

    async def until_past(self, offset: int) -> None:
        """Wait for output past *offset*, or for the end."""
        await self.until(lambda: self.status.ended or self.status.end_offset > offset)

    def read(self, offset: int, most: int = 1 << 62) -> list[Record]:
        """What lies past *offset*, cut to *most* bytes."""
        found = []
        for record in self.records:
            skip = max(0, offset - record.offset)
            data = record.data[skip : skip + most]
            if data:
                found.append(attrs.evolve(record, offset=record.offset + skip, data=data))
                most -= len(data)
        return found


class FakeRuns:
    """Runs of every session of `FakeSessions`. ``program`` is called with each run that starts; ``refusal``
    is what the next call of any method raises."""

    def __init__(self, sessions: FakeSessions) -> None:
        self._sessions = sessions
        self.runs: dict[str, FakeRun] = {}
        self.program: Callable[[FakeRun], None] = lambda run: None
        self.refusal: BaseException | None = None
        self.executed: list[Any] = []
        self.answers: list[Any] = []
        self.abandoned: list[str] = []
        self._folds: dict[str, tuple[ConsoleFold, int]] = {}

    def _enter(self, reference: str) -> PlacedSession:
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        session = self._sessions._find(reference)
        return PlacedSession(
            id=session.id,
            name=session.name,
            owner=session.access_key,
            status=session.status,
            incarnation=1,
            agent_id=AgentId("i-local"),
            agent_addr="tcp://127.0.0.1:6001",
        )

    def _run(self, run_id: str) -> FakeRun:
        if run_id not in self.runs:
            raise NotFound("run")
        return self.runs[run_id]

    async def put(
        self, caller: Caller, name: str, run_id: str, spec: RunSpec
    ) -> tuple[PlacedSession, Started]:
        if not is_run_id(run_id):
            raise InvalidParameters("", {"run_id": "not a run id"})
        live = self._enter(name)
        if run_id in self.runs:
            if self.runs[run_id].status.digest != spec.digest():
                raise RunConflict("This run id was used before.")
            return live, Started(created=False, run=self.runs[run_id].status)
        run = self.runs[run_id] = FakeRun(run_id, spec)
        self.program(run)
        return live, Started(created=True, run=run.status)

    async def get(self, caller: Caller, name: str, run_id: str) -> tuple[PlacedSession, RunStatus]:
        return self._enter(name), self._run(run_id).status

    async def interrupt(self, caller: Caller, name: str, run_id: str) -> tuple[PlacedSession, RunStatus]:
        live = self._enter(name)
        self._run(run_id).interrupt()
        return live, self.runs[run_id].status

    async def abandon(self, caller: Caller, name: str, run_id: str) -> None:
        self._enter(name)
        self.abandoned.append(run_id)

    async def list(
        self, caller: Caller, name: str, *, limit: int, after: str | None
    ) -> tuple[PlacedSession, list[RunStatus], str | None]:
        live = self._enter(name)
        begin = 0 if after is None else int(after)
        runs = [run.status for run in reversed(self.runs.values())][begin:]
        return live, runs[:limit], str(begin + limit) if len(runs) > limit else None

    async def delete(self, caller: Caller, name: str, run_id: str) -> None:
        self._enter(name)
        if not self._run(run_id).status.ended:
            raise Conflict("The run has not ended. Interrupt it first.")
        del self.runs[run_id]

    async def answer(
        self, caller: Caller, name: str, run_id: str, *, offset: int | None, text: str | None
    ) -> tuple[PlacedSession, RunStatus]:
        live = self._enter(name)
        run = self._run(run_id)
        prompt = run.status.prompt
        if prompt is None or offset not in (None, prompt.offset):
            if (offset, text) in self.answers:
                return live, run.status
            raise Conflict("The run does not ask for this input (any more).")
        self.answers.append((offset, text))
        run.status = attrs.evolve(run.status, prompt=None, state=RunState.RUNNING)
        return live, run.status

    async def complete(self, caller: Caller, reference: str, code: str, cursor: int) -> Any:
        self._enter(reference)
        return [code[:cursor] + "()"]

    async def interrupt_session(self, caller: Caller, reference: str) -> None:
        self._enter(reference)

    async def output(
        self, caller: Caller, name: str, run_id: str, *, offset: int, wait: float, max_bytes: int
    ) -> Output:
        self._enter(name)
        run = self._run(run_id)
        if run.status.ended and offset > run.status.end_offset:
            raise InvalidParameters("", {"offset": "past the end of the finished run"})
        with trio.move_on_after(wait):
            await run.until_past(offset)
        records = run.read(offset, max_bytes)
        end = records[-1].end if records else offset
        return Output(records=[r.pack() for r in records], next_offset=end, run=run.status)

    @asynccontextmanager
    async def stream(
        self, caller: Caller, name: str, run_id: str, *, offset: int, start: RunSpec | None = None
    ) -> AsyncIterator[AsyncIterator[Record | RunStatus]]:
        self._enter(name)
        if start is not None:
            await self.put(caller, name, run_id, start)
        run = self._run(run_id)
        run.readers += 1
        run._notify()
        try:
            async with aclosing(self._items(run, offset)) as items:
                yield items
        finally:
            run.readers -= 1
            run._notify()

    async def _items(self, run: FakeRun, offset: int) -> AsyncIterator[Record | RunStatus]:
        while True:
            await run.until_past(offset)
            if self.refusal is not None:
                refusal, self.refusal = self.refusal, None
                raise refusal
            for record in run.read(offset):
                run.handed_out = record.end
                yield record
                offset = record.end
            if run.status.ended and offset >= run.status.end_offset:
                yield run.status
                return

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
        self._enter(reference)
        self.executed.append((mode, run_id, spec.code))
        if mode in ("query", "batch"):
            run_id = run_id or uuid4().hex
            await self.put(caller, reference, run_id, spec)
        assert run_id is not None
        run = self._run(run_id)
        console = ConsoleFold().fold(run.read(0), final=run.status.ended)
        status, exit_code = legacy_outcome(run.status) if run.status.ended else ("continued", None)
        return ExecuteResult(run_id=run_id, status=status, exit_code=exit_code, console=console)

    async def attach_legacy(self, caller: Caller, reference: str) -> PlacedSession:
        return self._enter(reference)


class FakeHealth:
    """As `services.health.Health`, set by hand."""

    def __init__(self) -> None:
        self.draining = False
        self.stopping = trio.Event()
        self.wrong: dict[str, str] = {}
        #: What wants to hear of reports: (agent, epoch, report).
        self.listeners: list[Callable[[AgentId, int, Report], None]] = []

    def on_report(self, listener: Callable[[AgentId, int, Report], None]) -> None:
        self.listeners.append(listener)

    def problems(self) -> dict[str, str]:
        return self.wrong

    def details(self) -> dict[str, Any]:
        return {"database": not self.wrong}
