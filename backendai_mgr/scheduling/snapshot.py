"""What a scheduling decision is made from, and what it is. Slot amounts are exact decimals."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import attrs

from ..domain.ids import AccessKey, AgentId, SessionId
from ..domain.slots import Slots


@attrs.frozen(kw_only=True)
class PendingSession:
    """A session that waits for an agent. ``retries`` counts the rounds that passed it over."""

    id: SessionId
    owner: AccessKey
    scaling_group: str
    architecture: str
    image: str
    slots: Slots
    created_at: datetime
    starts_at: datetime | None
    retries: int


@attrs.frozen(kw_only=True)
class AgentView:
    """An agent that is ALIVE and schedulable."""

    id: AgentId
    addr: str
    scaling_group: str
    architecture: str
    capacity: Slots
    occupied: Slots
    images: frozenset[str]


@attrs.frozen(kw_only=True)
class TroubledAgent:
    """An agent that the manager knows and cannot talk to, and why."""

    id: AgentId
    scaling_group: str
    trouble: str


@attrs.frozen(kw_only=True)
class OwnerView:
    """What a key pair uses now and may use.

    ``max_sessions`` of 0 or less means no limit; slots without a limit are absent from ``limits``.
    """

    live_sessions: int
    max_sessions: int
    occupied: Slots
    limits: Slots


@attrs.frozen(kw_only=True)
class Snapshot:
    """Everything a round decides from. Pending sessions are in the order of their creation."""

    now: datetime
    pending: Sequence[PendingSession]
    agents: Sequence[AgentView]
    owners: Mapping[AccessKey, OwnerView]
    troubled: Sequence[TroubledAgent] = ()


@attrs.frozen(kw_only=True)
class Assignment:
    """Put this session on that agent."""

    session_id: SessionId
    agent_id: AgentId
    agent_addr: str
    slots: Slots


@attrs.frozen(kw_only=True)
class Waiting:
    """Why a session still waits: an ``info`` word (api-sessions §6.2), a sentence, and data for programs."""

    session_id: SessionId
    info: str
    sentence: str
    data: Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Plan:
    """The round's decision. Every pending session is in exactly one of the two lists."""

    assignments: Sequence[Assignment]
    waiting: Sequence[Waiting]
