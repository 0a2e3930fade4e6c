"""What the services need of the database, as protocols that adapters implement.

Every store method is one transaction and one crossing to the driver. All of them raise `StoreUnavailable`
when the database cannot be reached, having changed nothing that they did not report.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal, Protocol
from uuid import UUID

import attrs

from ..domain.accounts import Caller, Credential
from ..domain.ids import AccessKey, AgentId, KernelId, SessionId
from ..domain.joining import Join, JoinRequest, StoredToken, TokenText
from ..domain.sessions import KernelRow, KernelToStart, NewSession, PlacedSession, Session
from ..domain.status import AgentStatus, Status
from ..scheduling.snapshot import Plan, Snapshot
from ..wire.reports import Report


class StoreUnavailable(Exception):
    """The database is away. The caller answers 503 or tries again later."""


# ---------------------------------------------------------------- accounts


class Accounts(Protocol):
    """Key pairs and users."""

    async def credential(self, access_key: AccessKey) -> Credential | None:
        """The active key pair of an active user with this access key, else None."""


# ---------------------------------------------------------------- sessions


@attrs.frozen(kw_only=True)
class ImageRow:
    """An image that may be started. ``resources`` maps a slot to its least (and most) amount as text."""

    name: str
    architecture: str
    registry: str
    labels: Mapping[str, str]
    resources: Mapping[str, Mapping[str, str | None]]


@attrs.frozen(kw_only=True)
class EnqueueFacts:
    """What deciding about a new session needs to know, read in one transaction."""

    domain_active: bool
    group_id: UUID | None
    owner_is_member: bool
    #: Names of the active scaling groups that the owner may use, sorted.
    scaling_groups: Sequence[str]
    #: None when unknown, or of a registry that the domain does not allow.
    image: ImageRow | None
    existing: Session | None
    known_slots: Collection[str]


@attrs.frozen(kw_only=True)
class Match:
    """A session that a reference matched."""

    id: SessionId
    name: str
    status: Status
    created_at: datetime


@attrs.frozen(kw_only=True)
class KernelMove:
    """A status change of one kernel. It applies only while the kernel is still ``seen`` in ``incarnation``.

    ``info`` is the reason (kebab-case) that the session keeps and events carry; ``sentence`` says more of it,
    in the words of whoever refused or gave up.
    """

    kernel_id: KernelId
    session_id: SessionId
    incarnation: int
    seen: Status
    to: Status
    info: str = ""
    exit_code: int | None = None
    sentence: str = ""
    #: What the kernel offers from now on; None: what it offered before.
    service_ports: Sequence[Mapping[str, Any]] | None = None


#: How the wish for another name came out.
Renaming = Literal["renamed", "not-running", "name-taken"]


class Sessions(Protocol):
    """Sessions and their kernels."""

    async def enqueue_facts(
        self, owner: Caller, *, domain: str, group: str, name: str, image: str, architecture: str
    ) -> EnqueueFacts:
        """Everything that `services.sessions` decides a creation from. ``image`` may be an alias."""

    async def enqueue(self, session: NewSession) -> bool:
        """Store the session and its main kernel, PENDING; False when the name is taken by a live session."""

    async def match(
        self, owner: AccessKey, reference: str, *, include_dead: bool, exact: bool = False
    ) -> Sequence[Match]:
        """Up to 10 sessions by the reference rules of data-model §5.3, newest first.

        With ``exact`` only the session whose name, or whole id, the reference is (live before dead).
        """

    async def get(self, session_id: SessionId) -> Session | None:
        """The session, dead or alive."""

    async def list(
        self,
        owner: AccessKey | None,
        *,
        statuses: Collection[Status],
        limit: int,
        after: tuple[datetime, SessionId] | None,
    ) -> Sequence[Session]:
        """Sessions of an owner (None: everybody's), newest first, after a (created_at, id) position."""

    async def move(self, moves: Sequence[KernelMove], *, now: datetime) -> Sequence[KernelMove]:
        """Apply the moves that still hold; return those that were applied. One transaction."""

    async def rename(self, session_id: SessionId, name: str, *, now: datetime) -> Renaming:
        """Give the session another name, if it is RUNNING and no live one of its owner has that name."""

    async def placed(self, session_id: SessionId) -> PlacedSession | None:
        """The session, dead or alive, if it has (or had) an agent."""

    async def stored_log(self, kernel_id: KernelId) -> bytes | None:
        """The log of an ended kernel, if it was stored."""

    async def live_owned(self) -> Sequence[Session]:
        """Every live session: what a stop of the local mode has to end."""


# ---------------------------------------------------------------- scheduling


class Scheduling(Protocol):
    """What the scheduler reads and writes."""

    async def snapshot(self, *, now: datetime) -> Snapshot:
        """Pending sessions, agents and quota usage, consistent with each other."""

    async def apply(self, plan: Plan, *, now: datetime) -> Sequence[SessionId]:
        """Carry out the plan: assignments that still hold (PENDING, agent ALIVE and large enough) become
        SCHEDULED and count on the agent; reasons of the others are stored. Returns the sessions scheduled."""

    async def to_start(self, limit: int) -> Sequence[KernelToStart]:
        """SCHEDULED kernels, oldest first."""

    async def unanswered(self, limit: int) -> Sequence[KernelToStart]:
        """PREPARING kernels whose create was not answered, as far as is stored, oldest first."""

    async def to_restart(self, limit: int) -> Sequence[KernelToStart]:
        """RESTARTING kernels whose create was not answered, as far as is stored, oldest first."""

    async def claim_start(self, kernel: KernelToStart, *, now: datetime) -> bool:
        """SCHEDULED -> PREPARING for exactly one caller."""

    async def created(self, kernel_id: KernelId, incarnation: int, *, boot: str, seq: int) -> None:
        """Note which report can first miss this kernel: the one after the answer to create."""

    async def overdue(self, *, now: datetime, limit: int) -> Sequence[KernelRow]:
        """Kernels past their deadline, oldest deadline first."""

    async def abandoned(self, *, lost_before: datetime, limit: int) -> Sequence[KernelRow]:
        """RUNNING and RESTARTING kernels whose agent has been LOST since before that time."""


# ---------------------------------------------------------------- agents


@attrs.frozen(kw_only=True)
class Lease:
    """The right of one worker to write what an agent reports, until it expires."""

    agent_id: AgentId
    addr: str
    epoch: int
    status: AgentStatus
    #: True when this call took the lease over or for the first time; false when it renewed it.
    fresh: bool


class StaleEpoch(Exception):
    """Another worker holds the agent's lease by now: whatever was to be written was not. ``highest`` is the
    epoch that the agent obeys, where it was the agent that said so; 0 otherwise."""

    def __init__(self, message: str = "", *, highest: int = 0) -> None:
        super().__init__(message)
        self.highest = highest


class AgentStore(Protocol):
    """Agents, leases, and what agents report."""

    async def register(
        self, agent_id: AgentId, *, addr: str, scaling_group: str, architecture: str, now: datetime
    ) -> None:
        """Make the agent known (status LOST until it reports), or move it to a new address."""

    async def lease(
        self, owner: str, *, ttl: float, above: Mapping[AgentId, int] = MappingProxyType({})
    ) -> Sequence[Lease]:
        """Take every free or expired lease, renew one's own; returns all that ``owner`` holds now.

        Where ``above`` names an epoch, the agent has seen that one: its lease gets a higher one.
        """

    async def release(self, owner: str) -> None:
        """Give up all leases of ``owner``, so that another worker need not wait for their end."""

    async def kernels_of(
        self, agent_id: AgentId, reported: Collection[UUID]
    ) -> tuple[Sequence[KernelRow], Collection[UUID]]:
        """Kernels assigned to the agent that are neither dead nor PENDING; and which of the ``reported`` ids
        have a row at all, in whatever status."""

    async def store_report(self, agent_id: AgentId, epoch: int, report: Report, *, now: datetime) -> None:
        """Status ALIVE, capacity, version, images. `StaleEpoch` when the lease has gone."""

    async def apply_moves(
        self, agent_id: AgentId, epoch: int, moves: Sequence[KernelMove], *, now: datetime
    ) -> Sequence[KernelMove]:
        """As `Sessions.move`, guarded by the epoch."""

    async def store_log(self, agent_id: AgentId, epoch: int, kernel_id: KernelId, log: bytes) -> None:
        """Keep the log of a kernel that has ended. `StaleEpoch` as above."""

    async def mark_lost(self, agent_id: AgentId, epoch: int, *, now: datetime) -> bool:
        """ALIVE -> LOST. `StaleEpoch` as above; False when it was not ALIVE."""

    async def note_trouble(self, agent_id: AgentId, epoch: int, trouble: str) -> None:
        """Keep why the agent cannot be talked to, until it reports. `StaleEpoch` as above."""


class JoinStore(Protocol):
    """Agents that join."""

    async def join(
        self, token: TokenText | None, request: JoinRequest, *, now: datetime
    ) -> tuple[Join, StoredToken]:
        """Let the agent join, if `domain.joining.decide` says so; raises what that raises."""


class AgentKeys(Protocol):
    """The keys of agents on the link."""

    async def agent_key(self, agent_id: AgentId) -> str | None:
        """The public key with which the agent joined; None for one that did not."""


# ---------------------------------------------------------------- events


@attrs.frozen(kw_only=True)
class EventRow:
    """A row of the event log; ids grow in commit order."""

    id: int
    time: datetime
    type: str
    session_id: SessionId | None
    kernel_id: KernelId | None
    agent_id: AgentId | None
    owner: AccessKey | None
    payload: Mapping[str, Any]


class Events(Protocol):
    """The event log and its wake-ups."""

    async def last_id(self) -> int:
        """Id of the newest event, 0 when there is none."""

    async def after(self, cursor: int, limit: int) -> Sequence[EventRow]:
        """Events past the cursor, oldest first."""

    def topics(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Topics as they are notified: "events", "keys". A lost connection ends with `StoreUnavailable`.

        ``__anext__`` may be cancelled and called again; nothing is lost.
        """


class Turns(Protocol):
    """Which worker of the cluster does what only one needs to do."""

    def take(self) -> AbstractAsyncContextManager[None]:
        """Wait for the turn, and have it for the length of the block, which is cancelled when it is lost.

        `StoreUnavailable`, perhaps in a group, then and when the database is away.
        """
