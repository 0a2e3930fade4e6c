"""Rows of sessions and kernels as the domain's values."""

from collections.abc import Iterable, Mapping
from uuid import UUID

from ..domain.ids import AccessKey, AgentId, KernelId, SessionId
from ..domain.sessions import KernelRow, Session, SessionType
from ..domain.status import Status
from .pool import Row

#: A session with its main kernel; `as_session` reads such rows.
SELECT_SESSION = """
SELECT s.id, s.name, lower(s.type::text) AS type, s.status::text AS status, s.access_key, s.user_uuid,
       s.domain_name, s.group_id, s.scaling_group, s.image, s.architecture, s.registry, s.tag,
       s.requested_slots, k.occupied_slots, s.environ, k.service_ports, s.created_at, s.terminated_at,
       s.status_changed, s.deadline, s.reasons, s.result::text AS result, s.num_queries, k.last_stat,
       k.incarnation, k.agent, k.agent_addr, k.container_id, k.exit_code
  FROM sessions s JOIN kernels k ON k.id = s.id
"""

#: Columns that `as_kernel` reads, of ``kernels AS k``.
KERNEL_COLUMNS = """k.id, k.session_id, k.incarnation, k.status::text AS status, k.status_changed,
       k.created_boot, k.created_seq, k.deadline"""


def as_session(row: Row) -> Session:
    """From a row of `SELECT_SESSION`."""
    kind: SessionType = row["type"]
    return Session(
        id=SessionId(row["id"]),
        name=row["name"],
        type=kind,
        status=Status(row["status"]),
        access_key=AccessKey(row["access_key"]),
        user_id=row["user_uuid"],
        domain=row["domain_name"],
        group_id=row["group_id"],
        scaling_group=row["scaling_group"] or "",
        image=row["image"],
        architecture=row["architecture"],
        registry=row["registry"],
        tag=row["tag"],
        requested_slots=row["requested_slots"],
        occupied_slots=row["occupied_slots"],
        environ=environ_mapping(row["environ"]),
        service_ports=row["service_ports"],
        created_at=row["created_at"],
        terminated_at=row["terminated_at"],
        status_changed=row["status_changed"],
        deadline=row["deadline"],
        reasons=row["reasons"],
        result=row["result"],
        num_queries=row["num_queries"],
        last_stat=row["last_stat"],
        incarnation=row["incarnation"],
        agent_id=None if row["agent"] is None else AgentId(row["agent"]),
        agent_addr=row["agent_addr"],
        container_id=row["container_id"],
        exit_code=row["exit_code"],
    )


def as_kernel(row: Row) -> KernelRow:
    """From a row with `KERNEL_COLUMNS`."""
    return KernelRow(
        kernel_id=KernelId(row["id"]),
        session_id=SessionId(row["session_id"]),
        incarnation=row["incarnation"],
        status=Status(row["status"]),
        status_changed=row["status_changed"],
        created_boot=row["created_boot"],
        created_seq=row["created_seq"],
        deadline=row["deadline"],
    )


def environ_texts(environ: Mapping[str, str]) -> list[str]:
    """The stored form of an environment: "NAME=value"."""
    return [f"{name}={value}" for name, value in environ.items()]


def environ_mapping(texts: Iterable[str]) -> dict[str, str]:
    """The inverse of `environ_texts`."""
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def uuid_range(prefix: str) -> tuple[UUID, UUID] | None:
    """The first and last UUID whose text (lower case, dashes) begins with *prefix*; None when none does."""
    shape = "00000000-0000-0000-0000-000000000000"
    if not 0 < len(prefix) <= len(shape):
        return None
    if any(
        char != "-" if place == "-" else char not in "0123456789abcdef"
        for char, place in zip(prefix, shape, strict=False)
    ):
        return None
    rest = shape[len(prefix) :]
    return UUID(prefix + rest), UUID(prefix + rest.replace("0", "f"))
