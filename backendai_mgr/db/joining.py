"""Join tokens, the keys of the agent link, and agents that join."""

from datetime import datetime, timedelta

import asyncpg

from ..domain.errors import NotFound
from ..domain.ids import AgentId
from ..domain.joining import Join, JoinRequest, KeyPair, KnownAgent, StoredToken, TokenText, decide
from ..domain.status import AgentStatus
from .agents import READDRESS
from .events import NewEvent, publish
from .pool import Conn, Database

# A worker that starts beside another one waits here for its commit, and then finds its pair.
NEW_KEYS = "INSERT INTO link_keys (public_key, secret_key) VALUES ($1, $2) ON CONFLICT DO NOTHING"
KEYS = "SELECT public_key, secret_key FROM link_keys"

#: Expired tokens are kept for so long, to tell in the log what was tried.
KEPT = timedelta(days=1)
FORGET_TOKENS = "DELETE FROM join_tokens WHERE expires_at < $1"
NEW_TOKEN = """
INSERT INTO join_tokens (id, digest, scaling_group, uses, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6)
"""

# Joins are rare, and two of them may be about the same id or key: one after the other.
ONE_JOIN = "SELECT pg_advisory_xact_lock(4201)"
TOKEN = "SELECT id, digest, scaling_group, expires_at, uses FROM join_tokens WHERE id = $1"
USE_TOKEN = "UPDATE join_tokens SET uses = uses - 1 WHERE id = $1"
KNOWN_AGENTS = """
SELECT id, status::text AS status, public_key, joined_with FROM agents
 WHERE id = $1 OR public_key = $2 ORDER BY id FOR NO KEY UPDATE
"""
# A machine that has another name now leaves its key to that.
TAKE_KEY = """
UPDATE agents SET public_key = NULL, joined_with = NULL, trouble = $3 WHERE public_key = $2 AND id <> $1
"""
STORE_AGENT = """
INSERT INTO agents AS a (id, addr, scaling_group, architecture, status, status_changed, first_contact,
                         public_key, joined_with)
VALUES ($1, $2, $3, $4, 'LOST', $5, $5, $6, $7)
ON CONFLICT (id) DO UPDATE
   SET addr = excluded.addr, scaling_group = excluded.scaling_group, architecture = excluded.architecture,
       public_key = excluded.public_key, joined_with = excluded.joined_with, trouble = NULL,
       status = CASE WHEN a.status = 'TERMINATED' THEN 'LOST' ELSE a.status END
"""
AGENT_KEY = "SELECT public_key FROM agents WHERE id = $1"


async def ensure_link_keys(conn: Conn, fresh: tuple[str, str]) -> KeyPair:
    """The managers' key pair; the first call stores *fresh*, a (public, secret) pair."""
    await conn.execute(NEW_KEYS, *fresh)
    row = await conn.fetchrow(KEYS)
    assert row is not None
    return KeyPair(public=row["public_key"], secret=row["secret_key"])


class PgJoining:
    """`services.ports.JoinStore` and `services.ports.AgentKeys` in PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add_token(
        self, token: TokenText, *, scaling_group: str, uses: int, expires_at: datetime, now: datetime
    ) -> None:
        """Store a new token, and forget old ones. `NotFound` when the scaling group does not exist."""

        async def work(conn: Conn) -> None:
            await conn.execute(FORGET_TOKENS, now - KEPT)
            await conn.execute(NEW_TOKEN, token.id, token.digest(), scaling_group, uses, now, expires_at)

        try:
            await self._db.run(work)
        except asyncpg.ForeignKeyViolationError:
            raise NotFound("scaling group", f"no scaling group is named {scaling_group!r}") from None

    async def join(
        self, token: TokenText | None, request: JoinRequest, *, now: datetime
    ) -> tuple[Join, StoredToken]:
        """Let the agent join, if `decide` says so: its row and the use of the token in one transaction."""

        async def work(conn: Conn) -> tuple[Join, StoredToken]:
            await conn.execute(ONE_JOIN)
            stored = None if token is None else await _token(conn, token.id)
            await conn.execute(READDRESS, request.id, request.addr)
            others = [
                KnownAgent(
                    id=AgentId(row["id"]),
                    status=AgentStatus(row["status"]),
                    public_key=row["public_key"],
                    joined_with=row["joined_with"],
                )
                for row in await conn.fetch(KNOWN_AGENTS, request.id, request.public_key)
            ]
            outcome = decide(token, stored, request, others, now)
            assert stored is not None
            if outcome == "new":
                await conn.execute(USE_TOKEN, stored.id)
                moved = f"Its machine has joined as {request.id}."
                await conn.execute(TAKE_KEY, request.id, request.public_key, moved)
            await conn.execute(
                STORE_AGENT,
                request.id,
                request.addr,
                stored.scaling_group,
                request.architecture,
                now,
                request.public_key,
                stored.id,
            )
            await publish(conn, [NewEvent(type="agent_joined", agent_id=request.id)], now)
            return outcome, stored

        return await self._db.run(work)

    async def agent_key(self, agent_id: AgentId) -> str | None:
        """The public key with which the agent joined; None for one that did not."""

        async def work(conn: Conn) -> str | None:
            key: str | None = await conn.fetchval(AGENT_KEY, agent_id)
            return key

        return await self._db.read(work)


async def _token(conn: Conn, token_id: str) -> StoredToken | None:
    row = await conn.fetchrow(TOKEN, token_id)
    return None if row is None else StoredToken(**dict(row))
