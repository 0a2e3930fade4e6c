"""Sessions and their kernels: creation, look-ups, and moves."""

import builtins
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import asyncpg

from ..domain.accounts import Caller
from ..domain.ids import AccessKey, AgentId, KernelId, SessionId, parse_uuid
from ..domain.sessions import NewSession, PlacedSession, Session
from ..domain.status import Status
from ..services.ports import EnqueueFacts, ImageRow, KernelMove, Match, Renaming
from . import transition
from .events import publish
from .pool import Conn, Database, Row
from .rows import SELECT_SESSION, as_session, environ_texts, uuid_range

#: A reference that fits more sessions than these is ambiguous anyway (data-model §5.3).
MATCH_LIMIT = 10

# ---------------------------------------------------------------- what a creation is decided from

PLACE = """
SELECT coalesce(d.is_active, false) AS domain_active, d.allowed_docker_registries AS registries,
       g.id AS group_id,
       EXISTS (SELECT 1 FROM association_groups_users m
                WHERE m.group_id = g.id AND m.user_id = $3) AS is_member
  FROM (SELECT) AS always
  LEFT JOIN domains d ON d.name = $1
  LEFT JOIN groups g ON g.domain_name = d.name AND g.name = $2 AND g.is_active
"""

SCALING_GROUPS = """
SELECT name FROM scaling_groups
 WHERE is_active AND (
       name IN (SELECT scaling_group FROM sgroups_for_domains WHERE domain = $1)
    OR name IN (SELECT scaling_group FROM sgroups_for_groups WHERE "group" = $2)
    OR name IN (SELECT scaling_group FROM sgroups_for_keypairs WHERE access_key = $3))
 ORDER BY name
"""

# An alias wins over a name. It stands for its image's name in the architecture that is asked for, else
# for its image; a name of the wrong architecture is taken when it is the only one of that name.
IMAGE = """
WITH found AS (
    SELECT CASE WHEN i.architecture = $2 THEN 0 ELSE 1 END AS rank, i.*
      FROM image_aliases a JOIN images t ON t.id = a.image
      JOIN images i ON i.id = t.id OR (i.name = t.name AND i.architecture = $2)
     WHERE a.alias = $1
    UNION ALL
    SELECT CASE WHEN i.architecture = $2 THEN 2 ELSE 3 END, i.* FROM images i WHERE i.name = $1
)
SELECT name, architecture, registry, labels, resources FROM found
 WHERE rank < 3 OR (SELECT count(*) FROM images WHERE name = $1) = 1
 ORDER BY rank LIMIT 1
"""

KNOWN_SLOTS = """
SELECT 'cpu' AS name UNION SELECT 'mem' UNION
SELECT jsonb_object_keys(available_slots) FROM agents ORDER BY name
"""

LIVE_BY_NAME = (
    SELECT_SESSION
    + " WHERE s.access_key = $1 AND s.name = $2 AND s.status NOT IN ('TERMINATED', 'CANCELLED')"
)

STORED_LOG = "SELECT container_log FROM kernels WHERE id = $1"

# ---------------------------------------------------------------- creation

# The unique index of live names decides: of concurrent inserts of one name all but one insert nothing.
INSERT_SESSION = """
INSERT INTO sessions (
    id, creation_id, name, type, access_key, user_uuid, domain_name, group_id, scaling_group, image,
    architecture, registry, tag, requested_slots, resource_opts, environ, bootstrap_script, startup_command,
    callback_url, preopen_ports, created_at, status_changed)
VALUES ($1, $2, $3, upper($4)::sessiontypes, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18,
        $19, $20, $21, $21)
ON CONFLICT (access_key, name) WHERE status NOT IN ('TERMINATED', 'CANCELLED') DO NOTHING
RETURNING id, name, creation_id, access_key, user_uuid, domain_name, group_id
"""

INSERT_MAIN_KERNEL = """
INSERT INTO kernels (id, session_id, image, architecture, registry, occupied_slots, created_at,
                     status_changed)
VALUES ($1, $1, $2, $3, $4, $5, $6, $6)
"""

# ---------------------------------------------------------------- look-ups

# One step of resolving a reference; {condition} is one of STEPS.
MATCH = """
SELECT s.id, s.name, s.status::text AS status, s.created_at FROM sessions s
 WHERE s.access_key = $1 AND {condition} AND ($4 OR s.status NOT IN ('TERMINATED', 'CANCELLED'))
 ORDER BY s.created_at DESC, s.id DESC LIMIT {limit}
"""
BY_ID = MATCH.format(condition="s.id BETWEEN $2 AND $3", limit=MATCH_LIMIT)
BY_NAME = MATCH.format(condition="s.name BETWEEN $2 AND $3", limit=MATCH_LIMIT)
BY_NAME_PREFIX = MATCH.format(condition="s.name >= $2 AND s.name < $3", limit=MATCH_LIMIT)
BY_KERNEL_ID = MATCH.format(
    condition="s.id IN (SELECT k.session_id FROM kernels k WHERE k.id BETWEEN $2 AND $3)", limit=MATCH_LIMIT
)
# A whole id cannot mean anything else; of several sessions of a name at most one is live.
EXACT = """
SELECT s.id, s.name, s.status::text AS status, s.created_at FROM sessions s
 WHERE s.access_key = $1 AND (s.name = $2 OR s.id = $3)
   AND ($4 OR s.status NOT IN ('TERMINATED', 'CANCELLED'))
 ORDER BY s.id IS NOT DISTINCT FROM $3 DESC, s.status IN ('TERMINATED', 'CANCELLED'),
          s.created_at DESC, s.id DESC
 LIMIT 1
"""
RENAME = """
UPDATE sessions AS s SET name = $2
  FROM (SELECT id, name FROM sessions WHERE id = $1 FOR NO KEY UPDATE) AS old
 WHERE s.id = old.id AND s.status = 'RUNNING'
RETURNING s.id, s.name, old.name AS was, s.creation_id, s.access_key, s.user_uuid, s.domain_name, s.group_id
"""
#: Greater than every text that continues a prefix, in bytewise order.
LAST_CHARACTER = "\U0010ffff"

GET = SELECT_SESSION + " WHERE s.id = $1"

LIST = (
    SELECT_SESSION
    + """
 WHERE ($1::text IS NULL OR s.access_key = $1) AND s.status = ANY($2::text[]::kernelstatus[])
   AND ($3::timestamptz IS NULL OR (s.created_at, s.id) < ($3, $4::uuid))
 ORDER BY s.created_at DESC, s.id DESC LIMIT $5
"""
)

# A dead kernel's row keeps the address that its agent had; what it left is where the agent is now.
PLACED = """
SELECT s.id, s.name, s.access_key, s.status::text AS status, k.incarnation, k.agent,
       CASE WHEN s.status IN ('TERMINATED', 'CANCELLED') THEN COALESCE(a.addr, k.agent_addr)
            ELSE k.agent_addr END AS agent_addr
  FROM sessions s JOIN kernels k ON k.id = s.id LEFT JOIN agents a ON a.id = k.agent
 WHERE s.id = $1 AND k.agent IS NOT NULL
"""

ALL_LIVE = (
    SELECT_SESSION
    + " WHERE s.status NOT IN ('TERMINATED', 'CANCELLED') ORDER BY s.created_at DESC, s.id DESC"
)


class PgSessions:
    """`services.ports.Sessions` in PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def enqueue_facts(
        self, owner: Caller, *, domain: str, group: str, name: str, image: str, architecture: str
    ) -> EnqueueFacts:
        """Everything that `services.sessions` decides a creation from. ``image`` may be an alias."""

        async def work(conn: Conn) -> EnqueueFacts:
            place = await conn.fetchrow(PLACE, domain, group, owner.user_id)
            assert place is not None  # outer joins of one row
            group_id: UUID | None = place["group_id"]
            groups = await conn.fetch(SCALING_GROUPS, domain, group_id, owner.access_key)
            image_row = await conn.fetchrow(IMAGE, image, architecture)
            existing = await conn.fetchrow(LIVE_BY_NAME, owner.access_key, name)
            return EnqueueFacts(
                domain_active=place["domain_active"],
                group_id=group_id,
                owner_is_member=place["is_member"],
                scaling_groups=[row["name"] for row in groups],
                image=_image(image_row, place["registries"] or ()),
                existing=None if existing is None else as_session(existing),
                known_slots=await known_slots(conn),
            )

        return await self._db.snapshot(work)

    async def enqueue(self, session: NewSession) -> bool:
        """Store the session and its main kernel, PENDING; False when the name is taken by a live session."""

        async def work(conn: Conn) -> bool:
            row = await conn.fetchrow(INSERT_SESSION, *_columns(session))
            if row is None:
                return False
            await conn.execute(
                INSERT_MAIN_KERNEL,
                session.id,
                session.image,
                session.architecture,
                session.registry,
                dict(session.slots),
                session.created_at,
            )
            event = transition.session_event(
                "session_enqueued",
                row,
                kernel_id=session.id,
                reason="",
                status=Status.PENDING,
                exit_code=None,
            )
            await publish(conn, [event], session.created_at)
            return True

        return await self._db.run(work)

    async def match(
        self, owner: AccessKey, reference: str, *, include_dead: bool, exact: bool = False
    ) -> Sequence[Match]:
        """Up to 10 sessions by the reference rules of data-model §5.3, newest first.

        With ``exact`` only the session whose name, or whole id, the reference is (live before dead).
        """
        steps = _exact_steps(reference) if exact else _steps(reference)

        async def work(conn: Conn) -> builtins.list[Match]:
            for statement, *arguments in steps:
                rows = await conn.fetch(statement, owner, *arguments, include_dead)
                if rows:
                    return [_match(row) for row in rows]
            return []

        return await self._db.read(work)

    async def get(self, session_id: SessionId) -> Session | None:
        """The session, dead or alive."""

        async def work(conn: Conn) -> Session | None:
            row = await conn.fetchrow(GET, session_id)
            return None if row is None else as_session(row)

        return await self._db.read(work)

    async def list(
        self,
        owner: AccessKey | None,
        *,
        statuses: Collection[Status],
        limit: int,
        after: tuple[datetime, SessionId] | None,
    ) -> Sequence[Session]:
        """Sessions of an owner (None: everybody's), newest first, after a (created_at, id) position."""
        since, last = after or (None, None)

        async def work(conn: Conn) -> builtins.list[Session]:
            return [
                as_session(row) for row in await conn.fetch(LIST, owner, sorted(statuses), since, last, limit)
            ]

        return await self._db.read(work)

    async def move(self, moves: Sequence[KernelMove], *, now: datetime) -> Sequence[KernelMove]:
        """Apply the moves that still hold; return those that were applied. One transaction."""

        async def work(conn: Conn) -> Sequence[KernelMove]:
            return await transition.move(conn, moves, now=now)

        return await self._db.run(work)

    async def rename(self, session_id: SessionId, name: str, *, now: datetime) -> Renaming:
        """Give the session another name, if it is RUNNING and no live one of its owner has that name."""

        async def work(conn: Conn) -> Renaming:
            row = await conn.fetchrow(RENAME, session_id, name)
            if row is None:
                return "not-running"
            if row["name"] != row["was"]:
                event = transition.session_event("session_renamed", row, kernel_id=session_id, was=row["was"])
                await publish(conn, [event], now)
            return "renamed"

        try:
            return await self._db.run(work)
        except asyncpg.UniqueViolationError:
            return "name-taken"

    async def placed(self, session_id: SessionId) -> PlacedSession | None:
        """The session, dead or alive, if it has (or had) an agent."""

        async def work(conn: Conn) -> PlacedSession | None:
            row = await conn.fetchrow(PLACED, session_id)
            return None if row is None else _live(row)

        return await self._db.read(work)

    async def stored_log(self, kernel_id: KernelId) -> bytes | None:
        """The log of an ended kernel, if it was stored."""

        async def work(conn: Conn) -> bytes | None:
            return cast(bytes | None, await conn.fetchval(STORED_LOG, kernel_id))

        return await self._db.read(work)

    async def live_owned(self) -> Sequence[Session]:
        """Every live session: what a stop of the local mode has to end."""

        async def work(conn: Conn) -> builtins.list[Session]:
            return [as_session(row) for row in await conn.fetch(ALL_LIVE)]

        return await self._db.read(work)


async def known_slots(conn: Conn) -> frozenset[str]:
    """The slots that exist: cpu and mem, and whatever an agent has reported."""
    return frozenset(row["name"] for row in await conn.fetch(KNOWN_SLOTS))


def _image(row: Row | None, registries: Collection[str]) -> ImageRow | None:
    if row is None or row["registry"] not in registries:
        return None
    return ImageRow(
        name=row["name"],
        architecture=row["architecture"],
        registry=row["registry"],
        labels=row["labels"],
        resources=row["resources"],
    )


def _columns(new: NewSession) -> tuple[Any, ...]:
    """The arguments of `INSERT_SESSION`."""
    return (
        new.id,
        new.creation_id,
        new.name,
        new.type,
        new.access_key,
        new.user_id,
        new.domain,
        new.group_id,
        new.scaling_group,
        new.image,
        new.architecture,
        new.registry,
        new.tag,
        dict(new.slots),
        dict(new.resource_opts),
        environ_texts(new.environ),
        new.bootstrap_script,
        new.startup_command,
        new.callback_url,
        list(new.preopen_ports),
        new.created_at,
    )


def _steps(reference: str) -> list[tuple[Any, ...]]:
    """The look-ups of a reference, in order; the first that finds anything decides."""
    if not reference:
        return []
    ids = uuid_range(reference)
    steps: list[tuple[Any, ...]] = [
        (BY_NAME, reference, reference),
        (BY_NAME_PREFIX, reference, reference + LAST_CHARACTER),
    ]
    return [(BY_ID, *ids), *steps, (BY_KERNEL_ID, *ids)] if ids is not None else steps


def _exact_steps(reference: str) -> list[tuple[Any, ...]]:
    return [(EXACT, reference, parse_uuid(reference))]


def _match(row: Row) -> Match:
    return Match(
        id=SessionId(row["id"]), name=row["name"], status=Status(row["status"]), created_at=row["created_at"]
    )


def _live(row: Row) -> PlacedSession:
    return PlacedSession(
        id=SessionId(row["id"]),
        name=row["name"],
        owner=AccessKey(row["access_key"]),
        status=Status(row["status"]),
        incarnation=row["incarnation"],
        agent_id=AgentId(row["agent"]),
        agent_addr=row["agent_addr"],
    )
