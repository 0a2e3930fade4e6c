"""Agents, leases, and what agents report."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from uuid import UUID

import asyncpg
import attrs

from ..domain.errors import NotFound
from ..domain.ids import AgentId, KernelId
from ..domain.sessions import KernelRow
from ..domain.status import AgentStatus, KernelState
from ..services.ports import KernelMove, Lease, StaleEpoch
from ..wire.reports import Report
from . import transition
from .events import NewEvent, publish
from .images import aliases_of, point_aliases, store_images
from .pool import Conn, Database
from .rows import KERNEL_COLUMNS, as_kernel

# A new address is also told to the rows that remember the old one. Who is registered is known without a key.
REGISTER = """
INSERT INTO agents AS a (id, addr, scaling_group, architecture, status, status_changed, first_contact)
VALUES ($1, $2, $3, $4, 'LOST', $5, $5)
ON CONFLICT (id) DO UPDATE
   SET addr = excluded.addr, scaling_group = excluded.scaling_group, architecture = excluded.architecture,
       public_key = NULL, joined_with = NULL, trouble = NULL,
       status = CASE WHEN a.status = 'TERMINATED' THEN 'LOST' ELSE a.status END
 WHERE (a.addr, a.scaling_group, a.architecture)
       <> (excluded.addr, excluded.scaling_group, excluded.architecture)
    OR a.status = 'TERMINATED' OR a.public_key IS NOT NULL
"""
READDRESS = """
UPDATE kernels SET agent_addr = $2
 WHERE agent = $1 AND agent_addr <> $2 AND status NOT IN ('PENDING', 'TERMINATED', 'CANCELLED')
"""

NEW_LEASES = """
INSERT INTO agent_leases (agent_id)
SELECT id FROM agents a WHERE NOT EXISTS (SELECT 1 FROM agent_leases l WHERE l.agent_id = a.id)
 ORDER BY id ON CONFLICT DO NOTHING
"""

# By the server's clock, the one that all workers share. Locked in order of ids: of two workers the second
# waits and then finds the lease taken. One's own lease keeps its epoch however late it is renewed, for nobody
# else can have held it meanwhile without changing the owner. A database that was set back may lag behind what
# agents have seen ($3, $4): then the epoch leaps.
LEASE = """
WITH mine AS (
    SELECT agent_id, owner IS DISTINCT FROM $1 AS fresh FROM agent_leases
     WHERE owner = $1 OR owner IS NULL OR expires_at <= clock_timestamp()
     ORDER BY agent_id FOR NO KEY UPDATE)
UPDATE agent_leases AS l
   SET owner = $1, epoch = greatest(l.epoch + mine.fresh::int, seen.epoch + 1),
       expires_at = clock_timestamp() + $2::interval
  FROM mine JOIN agents a ON a.id = mine.agent_id
  LEFT JOIN unnest($3::text[], $4::bigint[]) AS seen (agent_id, epoch) ON seen.agent_id = mine.agent_id
 WHERE l.agent_id = mine.agent_id AND a.status <> 'TERMINATED'
RETURNING l.agent_id, a.addr, l.epoch, a.status::text AS status, mine.fresh
"""

RELEASE = "UPDATE agent_leases SET owner = NULL, expires_at = '-infinity' WHERE owner = $1"

# Held to the commit: a takeover waits for us, or we find its epoch here.
HOLD_LEASE = "SELECT 1 FROM agent_leases WHERE agent_id = $1 AND epoch = $2 FOR SHARE"

# The look before a report is stored: most say nothing new, and then no lock is taken and nothing written.
LOOK = """
SELECT a.status::text AS status, a.report_digest, a.trouble IS NOT NULL AS troubled
  FROM agents a JOIN agent_leases l ON l.agent_id = a.id WHERE a.id = $1 AND l.epoch = $2
"""

STORE_REPORT = """
UPDATE agents AS a
   SET available_slots = $2, version = $3, architecture = $4, boot = $5, missing = $6, report_digest = $7,
       status = CASE WHEN old.revived THEN 'ALIVE' ELSE a.status END,
       status_changed = CASE WHEN old.revived THEN $8::timestamptz ELSE a.status_changed END,
       lost_at = NULL, trouble = NULL
  FROM (SELECT id, status IN ('LOST', 'RESTARTING', 'TERMINATED') AS revived FROM agents
         WHERE id = $1 FOR NO KEY UPDATE) AS old
 WHERE a.id = old.id
RETURNING old.revived
"""

#: Kernels' activity is stored this coarsely.
ACTIVITY_STEP = timedelta(seconds=15)

STORE_ACTIVITY = """
UPDATE kernels AS k SET last_active = m.last_active
  FROM unnest($1::uuid[], $2::int[], $3::timestamptz[]) AS m (id, incarnation, last_active)
 WHERE k.id = m.id AND k.incarnation = m.incarnation AND k.status = 'RUNNING'
   AND coalesce(k.last_active, k.created_at) + $4::interval < m.last_active
"""

KERNELS_OF = f"""
SELECT {KERNEL_COLUMNS} FROM kernels k
 WHERE k.agent = $1 AND k.status NOT IN ('PENDING', 'TERMINATED', 'CANCELLED') ORDER BY k.id
"""

KNOWN = "SELECT id FROM kernels WHERE id = ANY($1::uuid[])"

STORE_LOG = """
UPDATE kernels SET container_log = $3
 WHERE id = $1 AND agent = $2 AND status IN ('TERMINATED', 'CANCELLED', 'ERROR')
"""

MARK_LOST = """
UPDATE agents SET status = 'LOST', status_changed = $2, lost_at = $2 WHERE id = $1 AND status = 'ALIVE'
RETURNING id
"""

NOTE_TROUBLE = "UPDATE agents SET trouble = $2 WHERE id = $1 AND trouble IS DISTINCT FROM $2"


class PgAgents:
    """`services.ports.AgentStore` in PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def register(
        self, agent_id: AgentId, *, addr: str, scaling_group: str, architecture: str, now: datetime
    ) -> None:
        """Make the agent known (status LOST until it reports), or move it to a new address.

        `NotFound` when the scaling group does not exist.
        """

        async def work(conn: Conn) -> None:
            await conn.execute(READDRESS, agent_id, addr)
            await conn.execute(REGISTER, agent_id, addr, scaling_group, architecture, now)

        try:
            await self._db.run(work)
        except asyncpg.ForeignKeyViolationError:
            raise NotFound("scaling group", f"no scaling group is named {scaling_group!r}") from None

    async def lease(
        self, owner: str, *, ttl: float, above: Mapping[AgentId, int] = MappingProxyType({})
    ) -> Sequence[Lease]:
        """Take every free or expired lease, renew one's own; returns all that ``owner`` holds now.

        Where ``above`` names an epoch, the agent has seen that one: its lease gets a higher one.
        """
        seen = list(above), list(above.values())

        async def work(conn: Conn) -> list[Lease]:
            await conn.execute(NEW_LEASES)
            return [
                Lease(
                    agent_id=AgentId(row["agent_id"]),
                    addr=row["addr"],
                    epoch=row["epoch"],
                    status=AgentStatus(row["status"]),
                    fresh=row["fresh"],
                )
                for row in await conn.fetch(LEASE, owner, timedelta(seconds=ttl), *seen)
            ]

        return await self._db.run(work)

    async def release(self, owner: str) -> None:
        """Give up all leases of ``owner``, so that another worker need not wait for their end."""

        async def work(conn: Conn) -> None:
            await conn.execute(RELEASE, owner)

        await self._db.read(work)

    async def kernels_of(
        self, agent_id: AgentId, reported: Collection[UUID]
    ) -> tuple[Sequence[KernelRow], Collection[UUID]]:
        """Kernels assigned to the agent that are neither dead nor PENDING; and which of the ``reported`` ids
        have a row at all, in whatever status."""

        async def work(conn: Conn) -> tuple[list[KernelRow], frozenset[UUID]]:
            known = await conn.fetch(KNOWN, list(reported)) if reported else []
            rows = await conn.fetch(KERNELS_OF, agent_id)
            return [as_kernel(row) for row in rows], frozenset(row["id"] for row in known)

        return await self._db.read(work)

    async def store_report(self, agent_id: AgentId, epoch: int, report: Report, *, now: datetime) -> None:
        """Status ALIVE (UPDATING and UNHEALTHY stay), capacity, version, images, activity of kernels.

        Writes only what has changed. `StaleEpoch` when the lease has gone.
        """
        digest = _digest(report)

        async def look(conn: Conn) -> bool:
            row = await conn.fetchrow(LOOK, agent_id, epoch)
            if row is None:
                raise StaleEpoch(f"{agent_id}: epoch {epoch} is over")
            await _store_activity(conn, report)
            silent = row["status"] in ("LOST", "RESTARTING", "TERMINATED")
            return silent or row["troubled"] or row["report_digest"] != digest

        async def store(conn: Conn) -> None:
            await _hold_lease(conn, agent_id, epoch)
            revived = await conn.fetchval(
                STORE_REPORT,
                agent_id,
                report.capacity,
                report.version,
                report.architecture,
                report.boot,
                report.missing,
                digest,
                now,
            )
            await store_images(conn, agent_id, report.images)
            kind = "agent_started" if revived else "agent_changed"
            await publish(conn, [NewEvent(type=kind, agent_id=agent_id)], now)

        if await self._db.read(look):
            await self._db.run(store)

    async def apply_moves(
        self, agent_id: AgentId, epoch: int, moves: Sequence[KernelMove], *, now: datetime
    ) -> Sequence[KernelMove]:
        """As `Sessions.move`, guarded by the epoch."""

        async def work(conn: Conn) -> Sequence[KernelMove]:
            await _hold_lease(conn, agent_id, epoch)
            return await transition.move(conn, moves, now=now)

        return await self._db.run(work)

    async def store_log(self, agent_id: AgentId, epoch: int, kernel_id: KernelId, log: bytes) -> None:
        """Keep the log of a kernel that has ended. `StaleEpoch` as above."""

        async def work(conn: Conn) -> None:
            await _hold_lease(conn, agent_id, epoch)
            await conn.execute(STORE_LOG, kernel_id, agent_id, log)

        await self._db.run(work)

    async def mark_lost(self, agent_id: AgentId, epoch: int, *, now: datetime) -> bool:
        """ALIVE -> LOST. `StaleEpoch` as above; False when it was not ALIVE."""

        async def work(conn: Conn) -> bool:
            await _hold_lease(conn, agent_id, epoch)
            if await conn.fetchval(MARK_LOST, agent_id, now) is None:
                return False
            await point_aliases(conn, await aliases_of(conn, agent_id))
            await publish(conn, [NewEvent(type="agent_lost", agent_id=agent_id)], now)
            return True

        return await self._db.run(work)

    async def note_trouble(self, agent_id: AgentId, epoch: int, trouble: str) -> None:
        """Keep why the agent cannot be talked to, until it reports. `StaleEpoch` as above."""

        async def work(conn: Conn) -> None:
            await _hold_lease(conn, agent_id, epoch)
            await conn.execute(NOTE_TROUBLE, agent_id, trouble)

        await self._db.run(work)


async def _hold_lease(conn: Conn, agent_id: AgentId, epoch: int) -> None:
    if await conn.fetchval(HOLD_LEASE, agent_id, epoch) is None:
        raise StaleEpoch(f"{agent_id}: epoch {epoch} is over")


async def _store_activity(conn: Conn, report: Report) -> None:
    """Activity only grows, so that it needs no lock of the lease."""
    active = [k for k in report.kernels if k.state is KernelState.RUNNING and k.last_active > 0]
    if active:
        await conn.execute(
            STORE_ACTIVITY,
            [k.id for k in active],
            [k.incarnation for k in active],
            [datetime.fromtimestamp(k.last_active, UTC) for k in active],
            ACTIVITY_STEP,
        )


def _digest(report: Report) -> str:
    """SHA-256 over what `PgAgents.store_report` keeps of a report."""
    kept = {
        "boot": report.boot,
        "version": report.version,
        "architecture": report.architecture,
        "capacity": report.capacity,
        "missing": report.missing,
        "images": [attrs.asdict(image) for image in report.images],
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
