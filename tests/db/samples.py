"""Rows and values that the tests of the database start from."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from backendai_mgr.db.agents import PgAgents
from backendai_mgr.db.pool import Conn, Database
from backendai_mgr.domain.accounts import Caller, KeypairPolicy, Role
from backendai_mgr.domain.ids import AccessKey, AgentId, KernelId, SessionId
from backendai_mgr.domain.lifecycle import deadline, session_status
from backendai_mgr.domain.sessions import NewSession
from backendai_mgr.domain.status import DEAD, KernelState, Status
from backendai_mgr.services.ports import KernelMove
from backendai_mgr.wire.reports import ImageReport, KernelReport, Report

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=7)
KEY = AccessKey("AKIAIOSFODNN7EXAMPLE")
OTHER_KEY = AccessKey("AKIANABBDUSEREXAMPLE")
USER = UUID("f38dea23-50fa-42a0-b5ae-338f5f4693f4")
GROUP = UUID("2de2b969-1d04-48a6-af16-0bc8adb3c831")
AGENT = AgentId("i-one")
IMAGE = "local/python:3.11"

CALLER = Caller(
    access_key=KEY,
    user_id=USER,
    email="admin@lablup.com",
    role=Role.SUPERADMIN,
    domain="default",
    is_admin=True,
    rate_limit=30000,
    policy=KeypairPolicy(
        name="default",
        max_concurrent_sessions=30,
        max_containers_per_session=1,
        max_session_lifetime=0,
        idle_timeout=3600,
        unlimited_by_default=True,
        total_slots={},
    ),
)


def new_session(name: str = "work", **changes: object) -> NewSession:
    """A checked request, as the services hand it over."""
    values: dict = {
        "id": SessionId(uuid4()),
        "creation_id": "creation",
        "name": name,
        "type": "interactive",
        "access_key": KEY,
        "user_id": USER,
        "domain": "default",
        "group_id": GROUP,
        "scaling_group": "default",
        "image": IMAGE,
        "architecture": "x86_64",
        "registry": "local",
        "tag": None,
        "slots": {"cpu": "1", "mem": "1073741824"},
        "resource_opts": {"shmem": "67108864"},
        "environ": {"A": "1", "B": "x=y"},
        "bootstrap_script": "echo hello",
        "startup_command": None,
        "callback_url": None,
        "preopen_ports": (8080, 8081),
        "created_at": NOW,
    }
    return NewSession(**{**values, **changes})


def report(**changes: object) -> Report:
    """What an agent of 4 cores reports."""
    values: dict = {
        "boot": "boot-1",
        "seq": 1,
        "version": "0.1.0",
        "architecture": "x86_64",
        "capacity": {"cpu": "4", "mem": "8589934592"},
        "occupied": {},
        "images": [python_image()],
        "kernels": [],
    }
    return Report(**{**values, **changes})


def python_image(version: str = "3.11", aliases: Sequence[str] = ("python",)) -> ImageReport:
    return ImageReport(
        name=f"local/python:{version}",
        architecture="x86_64",
        digest=f"sha256:{version}",
        labels={"ai.backend.runtime-type": "python"},
        resources={"cpu": {"min": "1", "max": None}},
        aliases=list(aliases),
        size_bytes=1000,
    )


def kernel_report(kernel_id: UUID, incarnation: int, **changes: object) -> KernelReport:
    values: dict = {
        "id": kernel_id,
        "session_id": kernel_id,
        "incarnation": incarnation,
        "cluster_id": "ours",
        "state": KernelState.RUNNING,
    }
    return KernelReport(**{**values, **changes})


async def add_agent(db: Database, agent_id: AgentId = AGENT, **changes: object) -> int:
    """An ALIVE agent; returns the epoch of the lease that "test" holds on it."""
    agents = PgAgents(db)
    await agents.register(
        agent_id, addr=f"tcp://{agent_id}:6001", scaling_group="default", architecture="x86_64", now=NOW
    )
    leases = await agents.lease("test", ttl=600)
    epoch = next(lease.epoch for lease in leases if lease.agent_id == agent_id)
    await agents.store_report(agent_id, epoch, report(**changes), now=NOW)
    return epoch


INSERT_SESSION = """
INSERT INTO sessions (
    id, creation_id, name, domain_name, group_id, user_uuid, access_key, scaling_group, image, registry,
    requested_slots, created_at, status, status_changed, deadline, terminated_at, cluster_size)
VALUES ($1, 'creation', $2, 'default', $3, $4, $5, 'default', 'local/python:3.11', 'local',
        '{"cpu": "1"}', $6, $7, $6, $8, $9, $10)
"""
INSERT_KERNEL = """
INSERT INTO kernels (
    id, session_id, cluster_role, cluster_idx, cluster_hostname, image, registry, agent, agent_addr,
    occupied_slots, created_at, status, status_changed, deadline, terminated_at, incarnation)
VALUES ($1, $2, $3::text, $4::int, $3::text || $4::int, 'local/python:3.11', 'local', $5, 'tcp://agent:6001',
        '{"cpu": "1"}', $6, $7, $6, $8, $9, $10)
"""


async def insert_session(
    db: Database,
    *statuses: Status,
    name: str | None = None,
    session_id: UUID | None = None,
    created_at: datetime = NOW,
    owner: AccessKey = KEY,
    incarnation: int = 1,
    agent: AgentId | None = AGENT,
) -> list[KernelId]:
    """A session whose kernels are in *statuses*, however they got there; the kernels' ids, main first."""
    main = session_id or uuid4()
    ids = [KernelId(main), *(KernelId(uuid4()) for _ in statuses[1:])]
    whole = session_status(statuses)

    async def work(conn: Conn) -> None:
        await conn.execute(
            INSERT_SESSION,
            main,
            name or f"session-{main.hex[:12]}",
            GROUP,
            USER,
            owner,
            created_at,
            whole,
            deadline(whole, created_at),
            created_at if whole in DEAD else None,
            len(statuses),
        )
        for index, (kernel_id, status) in enumerate(zip(ids, statuses, strict=True), 1):
            await conn.execute(
                INSERT_KERNEL,
                kernel_id,
                main,
                "main" if index == 1 else "sub",
                index,
                None if status is Status.PENDING else agent,
                created_at,
                status,
                deadline(status, created_at),
                created_at if status in DEAD else None,
                incarnation,
            )

    await db.run(work)
    return ids


def move(kernel_id: UUID, seen: Status, to: Status, incarnation: int = 1, **changes: object) -> KernelMove:
    """A move of the main kernel, unless *changes* name another session."""
    values: dict = {
        "kernel_id": KernelId(kernel_id),
        "session_id": SessionId(kernel_id),
        "incarnation": incarnation,
        "seen": seen,
        "to": to,
    }
    return KernelMove(**{**values, **changes})


async def fetch(db: Database, statement: str, *arguments: object) -> list[Mapping]:
    """Rows of a query."""

    async def work(conn: Conn) -> list[Mapping]:
        return await conn.fetch(statement, *arguments)

    return await db.read(work)


async def fetchval(db: Database, statement: str, *arguments: object) -> object:
    """The first value of a query."""
    return (await fetch(db, statement, *arguments))[0][0]
