"""What the scheduler reads and writes."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import attrs

from ..domain.ids import AccessKey, AgentId, KernelId, SessionId
from ..domain.sessions import KernelRow, KernelToStart
from ..domain.slots import Slots
from ..domain.status import Status
from ..scheduling.snapshot import (
    AgentView,
    Assignment,
    OwnerView,
    PendingSession,
    Plan,
    Snapshot,
    TroubledAgent,
    Waiting,
)
from ..services.ports import KernelMove
from . import transition
from .pool import Conn, Database, Row
from .rows import KERNEL_COLUMNS, as_kernel, environ_mapping
from .sessions import known_slots

# ---------------------------------------------------------------- snapshot

PENDING = """
SELECT id, access_key, scaling_group, architecture, image, requested_slots, created_at, starts_at,
       coalesce((reasons ->> 'retries')::int, 0) AS retries
  FROM sessions WHERE status = 'PENDING' ORDER BY created_at, id
"""

AGENTS = """
SELECT a.id, a.addr, a.scaling_group, a.architecture, a.available_slots, a.occupied_slots,
       ARRAY(SELECT i.name::text FROM agent_images i
              WHERE i.agent_id = a.id AND i.architecture = a.architecture) AS images
  FROM agents a WHERE a.status = 'ALIVE' AND a.schedulable AND NOT a.drain ORDER BY a.id
"""

TROUBLED = """
SELECT id, scaling_group, trouble FROM agents
 WHERE trouble IS NOT NULL AND status NOT IN ('ALIVE', 'TERMINATED') ORDER BY id LIMIT 20
"""

# What counts against quotas: everything on an agent that is not already on its way out.
OWNERS = """
SELECT o.access_key, p.max_concurrent_sessions, p.total_resource_slots,
       p.default_for_unspecified = 'UNLIMITED' AS unlimited,
       (SELECT count(*) FROM sessions s
         WHERE s.access_key = o.access_key AND s.status NOT IN ('TERMINATED', 'CANCELLED')
           AND s.status NOT IN ('PENDING', 'TERMINATING')) AS live_sessions,
       (SELECT jsonb_object_agg(slot, amount::text)
          FROM (SELECT e.key AS slot, sum(e.value::numeric) AS amount
                  FROM sessions s JOIN kernels k ON k.session_id = s.id,
                       jsonb_each_text(k.occupied_slots) AS e
                 WHERE s.access_key = o.access_key AND s.status NOT IN ('TERMINATED', 'CANCELLED')
                   AND k.status NOT IN ('PENDING', 'TERMINATING', 'TERMINATED', 'CANCELLED')
                 GROUP BY e.key) AS sums) AS occupied
  FROM keypairs o JOIN keypair_resource_policies p ON p.name = o.resource_policy
 WHERE o.access_key = ANY($1::text[])
"""

# ---------------------------------------------------------------- apply

# Locks, by id, what the plan will write: the sessions it places, and those whose reason is news.
CLAIM = """
SELECT s.id, s.requested_slots, m.id IS NOT NULL AS waits
  FROM sessions s
  LEFT JOIN unnest($2::uuid[], $3::text[], $4::text[], $5::jsonb[]) AS m (id, info, sentence, data)
    ON m.id = s.id
 WHERE s.status = 'PENDING' AND (s.id = ANY($1::uuid[]) OR m.id IS NOT NULL AND (
       s.reasons ->> 'info' IS DISTINCT FROM m.info OR s.reasons ->> 'sentence' IS DISTINCT FROM m.sentence
       OR s.reasons -> 'data' IS DISTINCT FROM m.data))
 ORDER BY s.id FOR NO KEY UPDATE OF s
"""

EXPLAIN = """
UPDATE sessions AS s
   SET reasons = jsonb_build_object(
       'info', m.info, 'sentence', m.sentence, 'data', m.data,
       'retries', coalesce((s.reasons ->> 'retries')::int, 0) + 1, 'last_try', $5::text)
  FROM unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[]) AS m (id, info, sentence, data)
 WHERE s.id = m.id AND s.status = 'PENDING'
"""

# From here to the commit nobody else gives these agents' slots away.
LOCK_AGENTS = """
SELECT id, addr, available_slots, occupied_slots FROM agents
 WHERE id = ANY($1::text[]) AND status = 'ALIVE' AND schedulable AND NOT drain
 ORDER BY id FOR NO KEY UPDATE
"""

PLACE = """
UPDATE kernels AS k SET agent = m.agent, agent_addr = m.addr
  FROM unnest($1::uuid[], $2::text[], $3::text[]) AS m (session_id, agent, addr)
 WHERE k.session_id = m.session_id AND k.status = 'PENDING'
RETURNING k.id, k.session_id, k.incarnation
"""

# ---------------------------------------------------------------- starting

KERNELS_TO_START = """
SELECT k.id, k.session_id, s.name, k.incarnation, k.agent, k.agent_addr, k.image, k.architecture,
       k.occupied_slots, s.environ, s.bootstrap_script, s.preopen_ports, k.status::text AS status
  FROM kernels k JOIN sessions s ON s.id = k.session_id
 WHERE {condition} ORDER BY k.status_changed, k.id LIMIT $1
"""
TO_START = KERNELS_TO_START.format(condition="k.status = 'SCHEDULED'")
# Its deadline is not null: said for the index of deadlines, in which few kernels are.
TO_RESTART = KERNELS_TO_START.format(
    condition="k.status = 'RESTARTING' AND k.created_boot IS NULL AND k.deadline IS NOT NULL"
)
UNANSWERED = KERNELS_TO_START.format(condition="k.status = 'PREPARING' AND k.created_boot IS NULL")

CREATED = """
UPDATE kernels SET created_boot = $3, created_seq = $4
 WHERE id = $1 AND incarnation = $2 AND status NOT IN ('PENDING', 'TERMINATED', 'CANCELLED')
"""

OVERDUE = f"SELECT {KERNEL_COLUMNS} FROM kernels k WHERE k.deadline <= $1 ORDER BY k.deadline, k.id LIMIT $2"

ABANDONED = f"""
SELECT {KERNEL_COLUMNS} FROM kernels k JOIN agents a ON a.id = k.agent
 WHERE k.status NOT IN ('PENDING', 'TERMINATED', 'CANCELLED') AND k.status IN ('RUNNING', 'RESTARTING')
   AND a.status = 'LOST' AND coalesce(a.lost_at, a.status_changed) <= $1
 ORDER BY k.id LIMIT $2
"""


class PgScheduling:
    """`services.ports.Scheduling` in PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def snapshot(self, *, now: datetime) -> Snapshot:
        """Pending sessions, agents and quota usage, consistent with each other."""

        async def work(conn: Conn) -> Snapshot:
            pending = [_pending(row) for row in await conn.fetch(PENDING)]
            owners = await conn.fetch(OWNERS, list({session.owner for session in pending}))
            slots = await known_slots(conn)
            return Snapshot(
                now=now,
                pending=pending,
                agents=[_agent(row) for row in await conn.fetch(AGENTS)],
                owners={AccessKey(row["access_key"]): _owner(row, slots) for row in owners},
                troubled=[TroubledAgent(**dict(row)) for row in await conn.fetch(TROUBLED)],
            )

        return await self._db.snapshot(work)

    async def apply(self, plan: Plan, *, now: datetime) -> Sequence[SessionId]:
        """Carry out the plan: assignments that still hold (PENDING, agent ALIVE and large enough) become
        SCHEDULED and count on the agent; reasons of the others are stored. Returns the sessions scheduled."""
        if not plan.assignments and not plan.waiting:
            return []

        async def work(conn: Conn) -> list[SessionId]:
            claimed = await _claim(conn, plan)
            news = [waiting for waiting in plan.waiting if waiting.session_id in claimed.waiting]
            if news:
                await conn.execute(EXPLAIN, *_reasons(news), now.isoformat())
            moves = await _place(conn, plan.assignments, claimed.requested)
            moved = await transition.move(conn, moves, now=now)
            scheduled = {item.session_id for item in moved}
            return [item.session_id for item in plan.assignments if item.session_id in scheduled]

        return await self._db.run(work)

    async def to_start(self, limit: int) -> Sequence[KernelToStart]:
        """SCHEDULED kernels, oldest first."""

        async def work(conn: Conn) -> list[KernelToStart]:
            return [_to_start(row) for row in await conn.fetch(TO_START, limit)]

        return await self._db.read(work)

    async def unanswered(self, limit: int) -> Sequence[KernelToStart]:
        """PREPARING kernels whose create was not answered, as far as is stored, oldest first."""

        async def work(conn: Conn) -> list[KernelToStart]:
            return [_to_start(row) for row in await conn.fetch(UNANSWERED, limit)]

        return await self._db.read(work)

    async def to_restart(self, limit: int) -> Sequence[KernelToStart]:
        """RESTARTING kernels whose create was not answered, as far as is stored, oldest first."""

        async def work(conn: Conn) -> list[KernelToStart]:
            return [_to_start(row) for row in await conn.fetch(TO_RESTART, limit)]

        return await self._db.read(work)

    async def claim_start(self, kernel: KernelToStart, *, now: datetime) -> bool:
        """SCHEDULED -> PREPARING for exactly one caller."""
        start = KernelMove(
            kernel_id=kernel.kernel_id,
            session_id=kernel.session_id,
            incarnation=kernel.incarnation,
            seen=Status.SCHEDULED,
            to=Status.PREPARING,
        )

        async def work(conn: Conn) -> bool:
            return bool(await transition.move(conn, [start], now=now))

        return await self._db.run(work)

    async def created(self, kernel_id: KernelId, incarnation: int, *, boot: str, seq: int) -> None:
        """Note which report can first miss this kernel: the one after the answer to create."""

        async def work(conn: Conn) -> None:
            await conn.execute(CREATED, kernel_id, incarnation, boot, seq)

        await self._db.read(work)

    async def overdue(self, *, now: datetime, limit: int) -> Sequence[KernelRow]:
        """Kernels past their deadline, oldest deadline first."""

        async def work(conn: Conn) -> list[KernelRow]:
            return [as_kernel(row) for row in await conn.fetch(OVERDUE, now, limit)]

        return await self._db.read(work)

    async def abandoned(self, *, lost_before: datetime, limit: int) -> Sequence[KernelRow]:
        """RUNNING and RESTARTING kernels whose agent has been LOST since before that time."""

        async def work(conn: Conn) -> list[KernelRow]:
            return [as_kernel(row) for row in await conn.fetch(ABANDONED, lost_before, limit)]

        return await self._db.read(work)


# ---------------------------------------------------------------- steps of apply


@attrs.frozen(kw_only=True)
class _Claimed:
    """The sessions of a plan that are locked, and PENDING until commit."""

    requested: Mapping[UUID, Slots]
    waiting: frozenset[UUID]


async def _claim(conn: Conn, plan: Plan) -> _Claimed:
    placed = [item.session_id for item in plan.assignments]
    rows = await conn.fetch(CLAIM, placed, *_reasons(plan.waiting))
    return _Claimed(
        requested={row["id"]: Slots.parse(row["requested_slots"]) for row in rows if not row["waits"]},
        waiting=frozenset(row["id"] for row in rows if row["waits"]),
    )


async def _place(
    conn: Conn, assignments: Sequence[Assignment], requested: Mapping[UUID, Slots]
) -> list[KernelMove]:
    """Give agents to the kernels of those assignments that still fit, in order; returns their moves."""
    wanted = [item for item in assignments if item.session_id in requested]
    if not wanted:
        return []
    rows = await conn.fetch(LOCK_AGENTS, sorted({item.agent_id for item in wanted}))
    addresses = {row["id"]: row["addr"] for row in rows}
    free = {
        row["id"]: Slots.parse(row["available_slots"]) - Slots.parse(row["occupied_slots"]) for row in rows
    }
    fitting = []
    for item in wanted:
        slots = requested[item.session_id]
        if item.agent_id in free and not slots.lacking(free[item.agent_id]):
            free[item.agent_id] -= slots
            fitting.append(item)
    if not fitting:
        return []
    kernels = await conn.fetch(
        PLACE,
        [item.session_id for item in fitting],
        [item.agent_id for item in fitting],
        [addresses[item.agent_id] for item in fitting],
    )
    return [
        KernelMove(
            kernel_id=KernelId(row["id"]),
            session_id=SessionId(row["session_id"]),
            incarnation=row["incarnation"],
            seen=Status.PENDING,
            to=Status.SCHEDULED,
            info="scheduled",
        )
        for row in kernels
    ]


def _reasons(waiting: Sequence[Waiting]) -> tuple[list[UUID], list[str], list[str], list[dict[str, Any]]]:
    return (
        [item.session_id for item in waiting],
        [item.info for item in waiting],
        [item.sentence for item in waiting],
        [dict(item.data) for item in waiting],
    )


# ---------------------------------------------------------------- rows


def _pending(row: Row) -> PendingSession:
    return PendingSession(
        id=SessionId(row["id"]),
        owner=AccessKey(row["access_key"]),
        scaling_group=row["scaling_group"] or "",
        architecture=row["architecture"],
        image=row["image"],
        slots=Slots.parse(row["requested_slots"]),
        created_at=row["created_at"],
        starts_at=row["starts_at"],
        retries=row["retries"],
    )


def _agent(row: Row) -> AgentView:
    return AgentView(
        id=AgentId(row["id"]),
        addr=row["addr"],
        scaling_group=row["scaling_group"],
        architecture=row["architecture"],
        capacity=Slots.parse(row["available_slots"]),
        occupied=Slots.parse(row["occupied_slots"]),
        images=frozenset(row["images"]),
    )


def _owner(row: Row, known: frozenset[str]) -> OwnerView:
    policy = Slots.parse(
        {name: amount for name, amount in row["total_resource_slots"].items() if name in known}
    )
    limits = {name: amount for name, amount in policy.items() if amount.is_finite()}
    if not row["unlimited"]:
        limits |= {name: policy.amount(name) for name in known if name not in policy}
    return OwnerView(
        live_sessions=row["live_sessions"],
        max_sessions=row["max_concurrent_sessions"],
        occupied=Slots.parse(row["occupied"] or {}),
        limits=Slots(limits),
    )


def _to_start(row: Row) -> KernelToStart:
    return KernelToStart(
        kernel_id=KernelId(row["id"]),
        session_id=SessionId(row["session_id"]),
        session_name=row["name"],
        incarnation=row["incarnation"],
        agent_id=AgentId(row["agent"]),
        agent_addr=row["agent_addr"],
        image=row["image"],
        architecture=row["architecture"],
        slots=row["occupied_slots"],
        environ=environ_mapping(row["environ"]),
        bootstrap_script=row["bootstrap_script"],
        preopen_ports=row["preopen_ports"],
        status=Status(row["status"]),
    )
