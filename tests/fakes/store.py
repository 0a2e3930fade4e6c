"""An in-memory store that keeps the promises of `services.ports`, for services under Trio's own clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from uuid import UUID

import attrs
import trio

from backendai_mgr.db.transition import NEW_LIFE
from backendai_mgr.domain.lifecycle import (
    KERNEL_EVENT,
    SESSION_EVENT,
    check,
    deadline,
    session_status,
)
from backendai_mgr.domain.sessions import KernelRow, KernelToStart, PlacedSession, Session
from backendai_mgr.domain.slots import Slots
from backendai_mgr.domain.status import DEAD, LIVE, AgentStatus, Status
from backendai_mgr.scheduling.snapshot import AgentView, OwnerView, PendingSession, Snapshot
from backendai_mgr.services.ports import (
    EnqueueFacts,
    EventRow,
    ImageRow,
    Lease,
    Match,
    StaleEpoch,
    StoreUnavailable,
)

IMAGE = "local/python:3.11"
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def wall_clock() -> datetime:
    """Wall time that follows Trio's clock, so that autojump moves deadlines too."""
    return EPOCH + timedelta(seconds=trio.current_time() % 1e9)


class FakeStore:
    """Implements every store port at once. ``down = True`` makes all of it `StoreUnavailable`."""

    def __init__(self) -> None:
        self.sessions: dict[UUID, Session] = {}
        self.deadlines: dict[UUID, datetime | None] = {}
        self.preopen: dict[UUID, tuple[int, ...]] = {}
        self.created_by: dict[UUID, tuple[str, int] | None] = {}
        self.agents: dict[str, dict] = {}
        self.leases: dict[str, tuple[str, int, float]] = {}
        self.credentials: dict[str, object] = {}
        self.credential_reads = 0
        self.event_rows: list[EventRow] = []
        self.group_id: UUID | None = UUID(int=77)
        self.down = False
        self.logs: dict[UUID, bytes] = {}
        self.reports: list[tuple[str, object]] = []
        self._listeners: set[trio.MemorySendChannel] = set()

    # -------------------------------------------------------------- helpers

    def _reach(self) -> None:
        if self.down:
            raise StoreUnavailable("the fake database is down")

    def notify(self, topic: str) -> None:
        for channel in self._listeners:
            channel.send_nowait(topic)

    def _event(self, type: str, session: Session, payload=None) -> None:
        self.event_rows.append(
            EventRow(
                id=len(self.event_rows) + 1,
                time=wall_clock(),
                type=type,
                session_id=session.id,
                kernel_id=session.kernel_id,
                agent_id=session.agent_id,
                owner=session.access_key,
                payload=payload or {},
            )
        )
        self.notify("events")

    def disconnect(self) -> None:
        """Break every LISTEN connection."""
        for channel in list(self._listeners):
            channel.close()
        self._listeners.clear()

    def add_agent(self, name: str = "i-1", *, cpu: int = 4, status=AgentStatus.ALIVE) -> None:
        self.agents[name] = {
            "addr": f"tcp://{name}:6001",
            "status": status,
            "capacity": Slots.parse({"cpu": cpu, "mem": "8g"}),
            "lost_at": None,
        }

    # -------------------------------------------------------------- accounts

    async def credential(self, access_key):
        await trio.lowlevel.checkpoint()
        self._reach()
        self.credential_reads += 1
        return self.credentials.get(access_key)

    # -------------------------------------------------------------- sessions

    async def enqueue_facts(self, owner, *, domain, group, name, image, architecture):
        await trio.lowlevel.checkpoint()
        self._reach()
        known = image in (IMAGE, "python")
        existing = next(
            (
                s
                for s in self.sessions.values()
                if (s.access_key, s.name) == (owner.access_key, name) and s.status in LIVE
            ),
            None,
        )
        return EnqueueFacts(
            domain_active=True,
            group_id=self.group_id,
            owner_is_member=True,
            scaling_groups=["default"],
            image=ImageRow(
                name=IMAGE,
                architecture=architecture,
                registry="local",
                labels={},
                resources={"cpu": {"min": "1", "max": None}, "mem": {"min": "64m", "max": None}},
            )
            if known
            else None,
            existing=existing,
            known_slots={"cpu", "mem"},
        )

    async def enqueue(self, new) -> bool:
        await trio.lowlevel.checkpoint()
        self._reach()
        if any(
            (s.access_key, s.name) == (new.access_key, new.name) and s.status in LIVE
            for s in self.sessions.values()
        ):
            return False
        session = Session(
            id=new.id,
            name=new.name,
            type=new.type,
            status=Status.PENDING,
            access_key=new.access_key,
            user_id=new.user_id,
            domain=new.domain,
            group_id=new.group_id,
            scaling_group=new.scaling_group,
            image=new.image,
            architecture=new.architecture,
            registry=new.registry,
            tag=new.tag,
            requested_slots=new.slots,
            occupied_slots={},
            environ=new.environ,
            service_ports=[],
            created_at=new.created_at,
            terminated_at=None,
            status_changed=new.created_at,
            deadline=None,
            reasons={},
            result="UNDEFINED",
            num_queries=0,
            last_stat=None,
            incarnation=0,
            agent_id=None,
            agent_addr=None,
            container_id=None,
            exit_code=None,
        )
        self.sessions[new.id] = session
        self.preopen[new.id] = tuple(new.preopen_ports)
        self._event("session_enqueued", session)
        return True

    async def match(self, owner, reference, *, include_dead, exact=False):
        await trio.lowlevel.checkpoint()
        self._reach()
        mine = [
            s
            for s in sorted(self.sessions.values(), key=lambda s: s.created_at, reverse=True)
            if s.access_key == owner and (include_dead or s.status in LIVE)
        ]
        rules = [
            lambda s: s.name == reference or reference in (str(s.id), s.id.hex),
            lambda s: str(s.id).startswith(reference),
            lambda s: s.name.startswith(reference),
        ]
        for rule in rules[:1] if exact else rules:
            if found := [s for s in mine if rule(s)]:
                return [
                    Match(id=s.id, name=s.name, status=s.status, created_at=s.created_at) for s in found[:10]
                ]
        return []

    async def get(self, session_id):
        await trio.lowlevel.checkpoint()
        self._reach()
        return self.sessions.get(session_id)

    async def list(self, owner, *, statuses, limit, after):
        await trio.lowlevel.checkpoint()
        self._reach()
        rows = sorted(
            (s for s in self.sessions.values() if s.access_key == owner and s.status in statuses),
            key=lambda s: (s.created_at, s.id),
            reverse=True,
        )
        return [s for s in rows if after is None or (s.created_at, s.id) < after][:limit]

    async def move(self, moves, *, now):
        await trio.lowlevel.checkpoint()
        self._reach()
        applied = []
        for move in moves:
            session = self.sessions[move.session_id]
            if session.status != move.seen or session.incarnation != move.incarnation:
                continue
            check(move.seen, move.to)
            assert session_status([move.to]) == move.to
            renewed = move.to in NEW_LIFE
            if renewed:
                self.created_by[move.session_id] = None
            told = {"info": move.info, "sentence": move.sentence} if move.info else {}
            session = attrs.evolve(
                session,
                status=move.to,
                incarnation=session.incarnation + renewed,
                status_changed=now,
                terminated_at=now if move.to in DEAD else None,
                reasons={**session.reasons, **told},
                exit_code=None if renewed else move.exit_code,
            )
            if move.service_ports is not None:
                session = attrs.evolve(session, service_ports=move.service_ports)
            self.sessions[move.session_id] = session
            self.deadlines[move.session_id] = deadline(move.to, now)
            for table in (KERNEL_EVENT, SESSION_EVENT):
                if move.to in table:
                    self._event(table[move.to], session, {"reason": move.info})
            applied.append(move)
        return applied

    async def rename(self, session_id, name, *, now):
        await trio.lowlevel.checkpoint()
        self._reach()
        session = self.sessions[session_id]
        if session.status is not Status.RUNNING:
            return "not-running"
        if any(
            (s.access_key, s.name) == (session.access_key, name) and s.status in LIVE and s.id != session_id
            for s in self.sessions.values()
        ):
            return "name-taken"
        self.sessions[session_id] = attrs.evolve(session, name=name)
        self._event("session_renamed", self.sessions[session_id])
        return "renamed"

    async def placed(self, session_id):
        await trio.lowlevel.checkpoint()
        self._reach()
        s = self.sessions.get(session_id)
        if s is None or s.agent_id is None:
            return None
        return PlacedSession(
            id=s.id,
            name=s.name,
            owner=s.access_key,
            status=s.status,
            incarnation=s.incarnation,
            agent_id=s.agent_id,
            agent_addr=s.agent_addr,
        )

    async def stored_log(self, kernel_id):
        await trio.lowlevel.checkpoint()
        self._reach()
        return self.logs.get(kernel_id)

    async def store_log(self, agent_id, epoch, kernel_id, log):
        await trio.lowlevel.checkpoint()
        self._reach()
        self._fence(agent_id, epoch)
        if self.sessions[kernel_id].status in DEAD:
            self.logs[kernel_id] = log

    async def live_owned(self):
        await trio.lowlevel.checkpoint()
        self._reach()
        return [s for s in self.sessions.values() if s.status in LIVE]

    # -------------------------------------------------------------- scheduling

    async def snapshot(self, *, now):
        await trio.lowlevel.checkpoint()
        self._reach()
        occupied = {name: Slots() for name in self.agents}
        for s in self.sessions.values():
            if s.agent_id and s.status in LIVE:
                occupied[s.agent_id] += Slots.parse(s.requested_slots)
        return Snapshot(
            now=now,
            pending=[
                PendingSession(
                    id=s.id,
                    owner=s.access_key,
                    scaling_group=s.scaling_group,
                    architecture=s.architecture,
                    image=s.image,
                    slots=Slots.parse(s.requested_slots),
                    created_at=s.created_at,
                    starts_at=None,
                    retries=0,
                )
                for s in self.sessions.values()
                if s.status is Status.PENDING
            ],
            agents=[
                AgentView(
                    id=name,
                    addr=a["addr"],
                    scaling_group="default",
                    architecture=next(iter(self.sessions.values())).architecture,
                    capacity=a["capacity"],
                    occupied=occupied[name],
                    images=frozenset({IMAGE}),
                )
                for name, a in self.agents.items()
                if a["status"] is AgentStatus.ALIVE
            ]
            if self.sessions
            else [],
            owners={
                s.access_key: OwnerView(live_sessions=0, max_sessions=0, occupied=Slots(), limits=Slots())
                for s in self.sessions.values()
            },
        )

    async def apply(self, plan, *, now):
        await trio.lowlevel.checkpoint()
        self._reach()
        placed = []
        for assignment in plan.assignments:
            session = self.sessions[assignment.session_id]
            if session.status is not Status.PENDING:
                continue
            self.sessions[session.id] = attrs.evolve(
                session,
                status=Status.SCHEDULED,
                status_changed=now,
                incarnation=session.incarnation + 1,
                agent_id=assignment.agent_id,
                agent_addr=assignment.agent_addr,
            )
            self.deadlines[session.id] = deadline(Status.SCHEDULED, now)
            self.created_by[session.id] = None
            self._event("session_scheduled", self.sessions[session.id])
            placed.append(session.id)
        for waiting in plan.waiting:
            session = self.sessions[waiting.session_id]
            self.sessions[session.id] = attrs.evolve(
                session,
                reasons={"info": waiting.info, "sentence": waiting.sentence, "data": waiting.data},
            )
        return placed

    def _to_start(self, s: Session) -> KernelToStart:
        return KernelToStart(
            kernel_id=s.kernel_id,
            session_id=s.id,
            session_name=s.name,
            incarnation=s.incarnation,
            agent_id=s.agent_id,
            agent_addr=s.agent_addr,
            image=s.image,
            architecture=s.architecture,
            slots=s.requested_slots,
            environ=s.environ,
            preopen_ports=self.preopen.get(s.id, ()),
            bootstrap_script=None,
            status=s.status,
        )

    async def to_start(self, limit):
        await trio.lowlevel.checkpoint()
        self._reach()
        return [self._to_start(s) for s in self.sessions.values() if s.status is Status.SCHEDULED][:limit]

    async def unanswered(self, limit):
        await trio.lowlevel.checkpoint()
        self._reach()
        return [
            self._to_start(s)
            for s in self.sessions.values()
            if s.status is Status.PREPARING and self.created_by[s.id] is None
        ][:limit]

    async def to_restart(self, limit):
        await trio.lowlevel.checkpoint()
        self._reach()
        return [
            self._to_start(s)
            for s in self.sessions.values()
            if s.status is Status.RESTARTING and self.created_by[s.id] is None
        ][:limit]

    async def claim_start(self, kernel, *, now):
        await trio.lowlevel.checkpoint()
        self._reach()
        session = self.sessions[kernel.session_id]
        if session.status is not Status.SCHEDULED or session.incarnation != kernel.incarnation:
            return False
        self.sessions[session.id] = attrs.evolve(session, status=Status.PREPARING, status_changed=now)
        self.deadlines[session.id] = deadline(Status.PREPARING, now)
        self._event("kernel_preparing", self.sessions[session.id])
        return True

    async def created(self, kernel_id, incarnation, *, boot, seq):
        await trio.lowlevel.checkpoint()
        self._reach()
        if self.sessions[kernel_id].incarnation == incarnation:
            self.created_by[kernel_id] = (boot, seq)

    def _row(self, s: Session) -> KernelRow:
        boot, seq = self.created_by.get(s.id) or (None, None)
        return KernelRow(
            kernel_id=s.kernel_id,
            session_id=s.id,
            incarnation=s.incarnation,
            status=s.status,
            status_changed=s.status_changed,
            created_boot=boot,
            created_seq=seq,
            deadline=self.deadlines.get(s.id),
        )

    async def overdue(self, *, now, limit):
        await trio.lowlevel.checkpoint()
        self._reach()
        due = [s for s in self.sessions.values() if (d := self.deadlines.get(s.id)) and d <= now]
        return [self._row(s) for s in due][:limit]

    async def abandoned(self, *, lost_before, limit):
        await trio.lowlevel.checkpoint()
        self._reach()
        return [
            self._row(s)
            for s in self.sessions.values()
            if s.status in (Status.RUNNING, Status.RESTARTING)
            and (lost_at := self.agents[s.agent_id]["lost_at"]) is not None
            and lost_at <= lost_before
        ][:limit]

    # -------------------------------------------------------------- agents

    async def lease(self, owner, *, ttl, above=MappingProxyType({})):
        await trio.lowlevel.checkpoint()
        self._reach()
        now = trio.current_time()
        for name in self.agents:
            holder, epoch, expires = self.leases.get(name, (None, 0, 0.0))
            if holder == owner and expires > now:
                self.leases[name] = (owner, max(epoch, above.get(name, 0) + 1), now + ttl)
            elif expires <= now:
                self.leases[name] = (owner, max(epoch + 1, above.get(name, 0) + 1), now + ttl)
        return [
            Lease(
                agent_id=name,
                addr=self.agents[name]["addr"],
                epoch=epoch,
                status=self.agents[name]["status"],
                fresh=False,
            )
            for name, (holder, epoch, _) in self.leases.items()
            if holder == owner
        ]

    async def release(self, owner):
        await trio.lowlevel.checkpoint()
        self._reach()
        self.leases = {
            name: (holder, epoch, 0.0 if holder == owner else expires)
            for name, (holder, epoch, expires) in self.leases.items()
        }

    def _fence(self, agent_id, epoch) -> None:
        if self.leases.get(agent_id, (None, epoch, 0))[1] != epoch:
            raise StaleEpoch(agent_id)

    async def kernels_of(self, agent_id, reported):
        await trio.lowlevel.checkpoint()
        self._reach()
        rows = [
            self._row(s)
            for s in self.sessions.values()
            if s.agent_id == agent_id and s.status in LIVE - {Status.PENDING}
        ]
        return rows, {k for k in reported if k in self.sessions}

    async def store_report(self, agent_id, epoch, report, *, now):
        await trio.lowlevel.checkpoint()
        self._reach()
        self._fence(agent_id, epoch)
        self.agents[agent_id].update(status=AgentStatus.ALIVE, lost_at=None, trouble=None)
        self.reports.append((agent_id, report))

    async def apply_moves(self, agent_id, epoch, moves, *, now):
        self._fence(agent_id, epoch)
        return await self.move(moves, now=now)

    async def mark_lost(self, agent_id, epoch, *, now):
        await trio.lowlevel.checkpoint()
        self._reach()
        self._fence(agent_id, epoch)
        if self.agents[agent_id]["status"] is not AgentStatus.ALIVE:
            return False
        self.agents[agent_id].update(status=AgentStatus.LOST, lost_at=now)
        return True

    async def note_trouble(self, agent_id, epoch, trouble):
        await trio.lowlevel.checkpoint()
        self._reach()
        self._fence(agent_id, epoch)
        self.agents[agent_id]["trouble"] = trouble

    # -------------------------------------------------------------- events

    async def last_id(self):
        await trio.lowlevel.checkpoint()
        self._reach()
        return len(self.event_rows)

    async def after(self, cursor, limit):
        await trio.lowlevel.checkpoint()
        self._reach()
        return self.event_rows[cursor : cursor + limit]

    @asynccontextmanager
    async def topics(self) -> AsyncIterator:
        self._reach()
        send, receive = trio.open_memory_channel(1000)
        self._listeners.add(send)
        try:
            async with receive:
                yield receive
        finally:
            self._listeners.discard(send)
