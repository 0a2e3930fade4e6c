"""Sessions and kernels as values: what is asked for, what is stored, what a request is routed by."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import attrs

from .ids import AccessKey, AgentId, KernelId, SessionId
from .status import Status

SessionType = Literal["interactive", "batch"]


@attrs.frozen(kw_only=True)
class NewSession:
    """A checked request for a session of one kernel, ready to be stored. Slot amounts are decimal text."""

    id: SessionId
    creation_id: str
    name: str
    type: SessionType
    access_key: AccessKey
    user_id: UUID
    domain: str
    group_id: UUID
    scaling_group: str
    image: str
    architecture: str
    registry: str
    tag: str | None
    slots: Mapping[str, str]
    resource_opts: Mapping[str, Any]
    environ: Mapping[str, str]
    bootstrap_script: str | None
    startup_command: str | None
    callback_url: str | None
    preopen_ports: Sequence[int]
    created_at: datetime


@attrs.frozen(kw_only=True)
class Session:
    """A session with its main kernel, as replies show it."""

    id: SessionId
    name: str
    type: SessionType
    status: Status
    access_key: AccessKey
    user_id: UUID
    domain: str
    group_id: UUID
    scaling_group: str
    image: str
    architecture: str
    registry: str
    tag: str | None
    requested_slots: Mapping[str, str]
    occupied_slots: Mapping[str, str]
    environ: Mapping[str, str]
    service_ports: Sequence[Mapping[str, Any]]
    created_at: datetime
    terminated_at: datetime | None
    status_changed: datetime
    deadline: datetime | None
    reasons: Mapping[str, Any]
    result: str
    num_queries: int
    last_stat: Mapping[str, Any] | None
    incarnation: int
    agent_id: AgentId | None
    agent_addr: str | None
    container_id: str | None
    exit_code: int | None

    @property
    def kernel_id(self) -> KernelId:
        """The main kernel's id, which is the session's."""
        return KernelId(self.id)


@attrs.frozen(kw_only=True)
class PlacedSession:
    """What the way to its runs needs of a session that has, or had, an agent."""

    id: SessionId
    name: str
    owner: AccessKey
    status: Status
    incarnation: int
    agent_id: AgentId
    agent_addr: str

    @property
    def kernel_id(self) -> KernelId:
        return KernelId(self.id)


@attrs.frozen(kw_only=True)
class KernelToStart:
    """A SCHEDULED or RESTARTING kernel whose agent must be told."""

    kernel_id: KernelId
    session_id: SessionId
    session_name: str
    incarnation: int
    agent_id: AgentId
    agent_addr: str
    image: str
    architecture: str
    slots: Mapping[str, str]
    environ: Mapping[str, str]
    bootstrap_script: str | None
    preopen_ports: Sequence[int] = ()
    #: What it was when it was looked up.
    status: Status = Status.SCHEDULED


@attrs.frozen(kw_only=True)
class KernelRow:
    """A kernel as reconciliation sees it."""

    kernel_id: KernelId
    session_id: SessionId
    incarnation: int
    status: Status
    status_changed: datetime
    #: `seq` and `boot` of the agent's answer to create: only later reports can miss this kernel.
    created_boot: str | None
    created_seq: int | None
    deadline: datetime | None
