"""Who calls: key pairs, users, and the policy that binds them."""

import enum
from collections.abc import Mapping
from uuid import UUID

import attrs

from .ids import AccessKey


class Role(enum.StrEnum):
    """Role of a user."""

    SUPERADMIN = "superadmin"
    ADMIN = "admin"
    USER = "user"
    MONITOR = "monitor"


@attrs.frozen(kw_only=True)
class KeypairPolicy:
    """The limits of a key pair. Zero or less means no limit; slot amounts are decimal text."""

    name: str
    max_concurrent_sessions: int
    max_containers_per_session: int
    max_session_lifetime: int
    idle_timeout: int
    unlimited_by_default: bool
    total_slots: Mapping[str, str]


@attrs.frozen(kw_only=True)
class Caller:
    """The authenticated caller of a request."""

    access_key: AccessKey
    user_id: UUID
    email: str
    role: Role
    domain: str
    is_admin: bool
    rate_limit: int
    policy: KeypairPolicy

    @property
    def is_superadmin(self) -> bool:
        return self.role is Role.SUPERADMIN


@attrs.frozen(kw_only=True)
class Credential:
    """An active key pair as authentication needs it."""

    caller: Caller
    secret_key: str = attrs.field(repr=False)
