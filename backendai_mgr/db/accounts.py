"""Key pairs and users."""

from ..domain.accounts import Caller, Credential, KeypairPolicy, Role
from ..domain.ids import AccessKey
from .pool import Conn, Database, Row

CREDENTIAL = """
SELECT k.access_key, k.secret_key, k.is_admin, k.rate_limit,
       u.uuid, u.email, u.role::text AS role, u.domain_name,
       p.name AS policy, p.max_concurrent_sessions, p.max_containers_per_session, p.max_session_lifetime,
       p.idle_timeout, p.default_for_unspecified::text AS unspecified, p.total_resource_slots
  FROM keypairs k
  JOIN users u ON u.uuid = k."user"
  JOIN keypair_resource_policies p ON p.name = k.resource_policy
 WHERE k.access_key = $1 AND k.is_active AND u.status = 'active'
"""


class PgAccounts:
    """`services.ports.Accounts` in PostgreSQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def credential(self, access_key: AccessKey) -> Credential | None:
        """The active key pair of an active user with this access key, else None."""

        async def work(conn: Conn) -> Credential | None:
            row = await conn.fetchrow(CREDENTIAL, access_key)
            return None if row is None else _credential(row)

        return await self._db.read(work)


def _credential(row: Row) -> Credential:
    policy = KeypairPolicy(
        name=row["policy"],
        max_concurrent_sessions=row["max_concurrent_sessions"],
        max_containers_per_session=row["max_containers_per_session"],
        max_session_lifetime=row["max_session_lifetime"],
        idle_timeout=row["idle_timeout"],
        unlimited_by_default=row["unspecified"] == "UNLIMITED",
        total_slots=row["total_resource_slots"],
    )
    caller = Caller(
        access_key=AccessKey(row["access_key"]),
        user_id=row["uuid"],
        email=row["email"],
        role=Role(row["role"]),
        domain=row["domain_name"] or "",
        is_admin=row["is_admin"],
        rate_limit=row["rate_limit"],
        policy=policy,
    )
    return Credential(caller=caller, secret_key=row["secret_key"])
