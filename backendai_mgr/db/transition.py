"""The one place that writes statuses.

A kernel moves by a guarded UPDATE that names the status and the incarnation it leaves; its session's status
follows by `domain.lifecycle.session_status` in the same transaction. The session's row lock makes the movers
of one session take turns, so that none computes its status from kernels that another one is changing.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import attrs

from ..domain.ids import KernelId, SessionId
from ..domain.lifecycle import KERNEL_EVENT, SESSION_EVENT, check, deadline, session_status, sibling_end
from ..domain.status import OCCUPIES_AGENT, Status
from ..services.ports import KernelMove
from .events import NewEvent, publish
from .pool import Conn, Row

#: Entering these begins a new life of the kernel: whatever the old one still sends is stale from then on.
NEW_LIFE = frozenset({Status.SCHEDULED, Status.RESTARTING})

# NO KEY: rows that refer to the session (runs, attachments) may be inserted meanwhile.
LOCK_SESSIONS = """
SELECT id, status::text AS status, name, creation_id, access_key, user_uuid, domain_name, group_id
  FROM sessions WHERE id = ANY($1::uuid[]) ORDER BY id FOR NO KEY UPDATE
"""


async def move(conn: Conn, moves: Sequence[KernelMove], *, now: datetime) -> list[KernelMove]:
    """Apply the moves that still hold, in order; return those.

    The other kernels of a session that is ending by them are ended as well.
    `domain.lifecycle.IllegalTransition` when the table forbids one of them: then nothing was changed. Moves
    of one kernel may follow each other. Writes events, so the caller's transaction does nothing after this.
    """
    for item in moves:
        check(item.seen, item.to)
    if not moves:
        return []
    rows = await conn.fetch(LOCK_SESSIONS, list({item.session_id for item in moves}))
    sessions = {row["id"]: row for row in rows}
    seen = {row["id"]: Status(row["status"]) for row in rows}
    applied: list[KernelMove] = []
    siblings: dict[UUID, KernelMove] = {}
    events: list[NewEvent] = []
    agents: set[str] = set()
    for batch in [*_rounds(moves), siblings]:
        done = await _move_kernels(conn, [*batch.values()], now)
        for moved in done:
            events += _kernel_event(moved, sessions[moved.move.session_id])
            if moved.agent and (moved.move.seen in OCCUPIES_AGENT) != (moved.move.to in OCCUPIES_AGENT):
                agents.add(moved.agent)
        events += await _follow(conn, done, sessions, seen, siblings, now)
        if batch is not siblings:
            applied += [moved.move for moved in done]
    if agents:
        await recount(conn, agents)
    await publish(conn, events, now)
    return applied


def _rounds(moves: Sequence[KernelMove]) -> Iterator[dict[UUID, KernelMove]]:
    """Batches that name each kernel at most once, in which the moves of one kernel keep their order."""
    rest = list(moves)
    while rest:
        batch: dict[UUID, KernelMove] = {}
        later = []
        for item in rest:
            if item.kernel_id in batch:
                later.append(item)
            else:
                batch[item.kernel_id] = item
        yield batch
        rest = later


# ---------------------------------------------------------------- kernels


@attrs.frozen(kw_only=True)
class _Moved:
    """An applied move, and what its events tell of the kernel as it was before."""

    move: KernelMove
    agent: str | None
    cluster_role: str
    cluster_idx: int
    exit_code: int | None


# "old" is the row as the statement found it; the session's lock keeps it so until the UPDATE.
MOVE_KERNELS = """
UPDATE kernels AS k
   SET status = m.goal,
       status_changed = $1::timestamptz,
       status_info = CASE WHEN m.info <> '' OR m.goal = 'PREPARING' THEN m.info ELSE k.status_info END,
       deadline = m.deadline,
       terminated_at = CASE WHEN m.goal IN ('TERMINATED', 'CANCELLED') THEN $1::timestamptz END,
       exit_code = CASE WHEN m.renewed THEN NULL ELSE coalesce(m.exit_code, k.exit_code) END,
       incarnation = k.incarnation + m.renewed::int,
       agent = CASE WHEN m.goal = 'PENDING' THEN NULL ELSE k.agent END,
       agent_addr = CASE WHEN m.goal = 'PENDING' THEN NULL ELSE k.agent_addr END,
       container_id = CASE WHEN m.goal = 'PENDING' OR m.renewed THEN NULL ELSE k.container_id END,
       created_boot = CASE WHEN m.goal = 'PENDING' OR m.renewed THEN NULL ELSE k.created_boot END,
       created_seq = CASE WHEN m.goal = 'PENDING' OR m.renewed THEN NULL ELSE k.created_seq END,
       service_ports = coalesce(m.offers -> 'service_ports', k.service_ports),
       last_active = CASE WHEN m.goal = 'RUNNING' THEN $1::timestamptz ELSE k.last_active END
  FROM unnest($2::uuid[], $3::uuid[], $4::int[], $5::text[]::kernelstatus[], $6::text[]::kernelstatus[],
              $7::text[], $8::int[], $9::timestamptz[], $10::bool[], $11::jsonb[])
       AS m (id, session_id, incarnation, seen, goal, info, exit_code, deadline, renewed, offers)
  JOIN kernels AS old ON old.id = m.id
 WHERE k.id = m.id AND k.session_id = m.session_id AND k.status = m.seen AND k.incarnation = m.incarnation
RETURNING k.id, old.agent, k.cluster_role, k.cluster_idx, k.exit_code
"""


async def _move_kernels(conn: Conn, batch: Sequence[KernelMove], now: datetime) -> list[_Moved]:
    if not batch:
        return []
    rows = await conn.fetch(
        MOVE_KERNELS,
        now,
        [item.kernel_id for item in batch],
        [item.session_id for item in batch],
        [item.incarnation for item in batch],
        [item.seen for item in batch],
        [item.to for item in batch],
        [item.info for item in batch],
        [item.exit_code for item in batch],
        [deadline(item.to, now) for item in batch],
        [item.to in NEW_LIFE for item in batch],
        # In an object: a list in a list would be an array of two dimensions.
        [
            None if item.service_ports is None else {"service_ports": list(item.service_ports)}
            for item in batch
        ],
    )
    found = {row["id"]: row for row in rows}
    return [
        _Moved(
            move=item,
            agent=row["agent"],
            cluster_role=row["cluster_role"],
            cluster_idx=row["cluster_idx"],
            exit_code=row["exit_code"],
        )
        for item in batch
        if (row := found.get(item.kernel_id)) is not None
    ]


def _kernel_event(moved: _Moved, session: Row) -> list[NewEvent]:
    item = moved.move
    if item.to not in KERNEL_EVENT:
        return []
    renewed = item.to in NEW_LIFE
    return [
        session_event(
            KERNEL_EVENT[item.to],
            session,
            kernel_id=item.kernel_id,
            agent_id=moved.agent,
            reason=item.info,
            status=item.to,
            exit_code=moved.exit_code,
            cluster_role=moved.cluster_role,
            cluster_idx=moved.cluster_idx,
            incarnation=item.incarnation + renewed,
        )
    ]


def session_event(
    kind: str,
    session: Row,
    *,
    kernel_id: UUID,
    agent_id: str | None = None,
    **payload: Any,
) -> NewEvent:
    """An event of a session (columns as in ``sessions``), with *payload* and what readers filter by."""
    return NewEvent(
        type=kind,
        session_id=session["id"],
        kernel_id=kernel_id,
        agent_id=agent_id,
        user_id=session["user_uuid"],
        access_key=session["access_key"],
        payload={
            **payload,
            "session_name": session["name"],
            "creation_id": session["creation_id"],
            "domain": session["domain_name"],
            "group_id": str(session["group_id"]),
            "user_id": str(session["user_uuid"]),
        },
    )


# ---------------------------------------------------------------- sessions

KERNELS = """
SELECT id, session_id, incarnation, status::text AS status FROM kernels WHERE session_id = ANY($1::uuid[])
"""

# Leaving PENDING drops what was told about waiting, and a new reason drops the old one's sentence; otherwise
# the new reason is merged into the old ones.
FOLLOW = """
UPDATE sessions AS s
   SET status = m.goal,
       status_changed = CASE WHEN m.goal = m.seen THEN s.status_changed ELSE $1::timestamptz END,
       deadline = CASE WHEN m.goal = m.seen THEN s.deadline ELSE m.deadline END,
       terminated_at = CASE WHEN m.goal IN ('TERMINATED', 'CANCELLED')
                            THEN coalesce(s.terminated_at, $1::timestamptz) END,
       reasons = CASE WHEN m.seen = 'PENDING' AND m.goal <> 'PENDING' THEN '{}'
                      WHEN m.reasons ? 'info' THEN s.reasons - 'sentence' ELSE s.reasons END
                 || m.reasons
  FROM unnest($2::uuid[], $3::text[]::kernelstatus[], $4::text[]::kernelstatus[], $5::timestamptz[],
              $6::jsonb[]) AS m (id, seen, goal, deadline, reasons)
 WHERE s.id = m.id AND s.status = m.seen
"""


async def _follow(
    conn: Conn,
    done: Sequence[_Moved],
    sessions: Mapping[UUID, Row],
    seen: dict[UUID, Status],
    siblings: dict[UUID, KernelMove],
    now: datetime,
) -> list[NewEvent]:
    """Let the sessions follow their moved kernels; *seen* holds their statuses and is brought up to date.

    What has to end with them is added to *siblings*, by kernel.
    """
    if not done:
        return []
    last: dict[UUID, _Moved] = {moved.move.session_id: moved for moved in done}
    statuses: dict[UUID, list[Status]] = defaultdict(list)
    kernels = await conn.fetch(KERNELS, list(last))
    for row in kernels:
        statuses[row["session_id"]].append(Status(row["status"]))
    goals = {session_id: session_status(its) for session_id, its in statuses.items()}
    ending = [row for row in kernels if goals[row["session_id"]] is Status.TERMINATING]
    siblings |= {move.kernel_id: move for row in ending if (move := _sibling_move(row)) is not None}
    changed = [i for i, moved in last.items() if goals[i] is not seen[i] or _reasons(moved)]
    if changed:
        await conn.execute(
            FOLLOW,
            now,
            changed,
            [seen[i] for i in changed],
            [goals[i] for i in changed],
            [deadline(goals[i], now) for i in changed],
            [_reasons(last[i]) for i in changed],
        )
    events = [
        session_event(
            SESSION_EVENT[goals[i]],
            sessions[i],
            kernel_id=i,
            agent_id=last[i].agent,
            reason=last[i].move.info,
            status=goals[i],
            exit_code=last[i].exit_code,
        )
        for i in changed
        if goals[i] is not seen[i] and goals[i] in SESSION_EVENT
    ]
    seen.update(goals)
    return events


def _sibling_move(row: Row) -> KernelMove | None:
    """The end of a kernel whose session ends; without a reason, so that the session keeps its own."""
    status = Status(row["status"])
    to = sibling_end(status)
    if to is None:
        return None
    return KernelMove(
        kernel_id=KernelId(row["id"]),
        session_id=SessionId(row["session_id"]),
        incarnation=row["incarnation"],
        seen=status,
        to=to,
    )


def _reasons(moved: _Moved) -> dict[str, str]:
    """What the session keeps of a move. An empty info leaves the one before, but a start begins anew."""
    move = moved.move
    if move.info or move.to is Status.PREPARING:
        return {"info": move.info} | ({"sentence": move.sentence} if move.sentence else {})
    return {}


# ---------------------------------------------------------------- agents

LOCK_AGENTS = "SELECT id FROM agents WHERE id = ANY($1::text[]) ORDER BY id FOR NO KEY UPDATE"

RECOUNT = """
UPDATE agents AS a
   SET occupied_slots = coalesce((
       SELECT jsonb_object_agg(slot, amount::text)
         FROM (SELECT s.key AS slot, trim_scale(sum(s.value::numeric)) AS amount
                 FROM kernels k, jsonb_each_text(k.occupied_slots) AS s
                WHERE k.agent = a.id AND k.status NOT IN ('PENDING', 'TERMINATED', 'CANCELLED')
                GROUP BY s.key) AS sums), '{}')
 WHERE a.id = ANY($1::text[])
"""


async def recount(conn: Conn, agents: Collection[str]) -> None:
    """Recompute what these agents have given away from the kernels that occupy them.

    The rows are locked by a statement of its own: the sums must be taken after other writers have committed.
    """
    names = sorted(agents)
    await conn.execute(LOCK_AGENTS, names)
    await conn.execute(RECOUNT, names)
