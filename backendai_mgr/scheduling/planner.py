"""`Snapshot -> Plan`, one queue: the oldest first; one that cannot be placed does not hold up those behind.

A session that cannot be placed says why, as a value. Placing follows the reference's fifo: among the agents
that fit, avoid those with slot types the request leaves unused, then take the largest capacity
(scheduling §5), with the name as the last word so that equal inputs give equal plans.
"""

from collections.abc import Iterable
from decimal import Decimal

from ..domain.ids import AccessKey, AgentId
from ..domain.slots import Slots, format_amount
from .snapshot import (
    AgentView,
    Assignment,
    OwnerView,
    PendingSession,
    Plan,
    Snapshot,
    TroubledAgent,
    Waiting,
)

_NOBODY = OwnerView(live_sessions=0, max_sessions=0, occupied=Slots(), limits=Slots())


def plan(snapshot: Snapshot) -> Plan:
    """Place what can be placed now; say of each other session what it waits for."""
    occupied: dict[AgentId, Slots] = {agent.id: agent.occupied for agent in snapshot.agents}
    owners: dict[AccessKey, OwnerView] = dict(snapshot.owners)
    assignments: list[Assignment] = []
    waiting: list[Waiting] = []
    for session in snapshot.pending:
        owner = owners.get(session.owner, _NOBODY)
        held = _held_back(session, owner, snapshot) or _no_agent(session, snapshot, occupied)
        if isinstance(held, Waiting):
            waiting.append(held)
            continue
        assignments.append(
            Assignment(session_id=session.id, agent_id=held.id, agent_addr=held.addr, slots=session.slots)
        )
        occupied[held.id] += session.slots
        owners[session.owner] = OwnerView(
            live_sessions=owner.live_sessions + 1,
            max_sessions=owner.max_sessions,
            occupied=owner.occupied + session.slots,
            limits=owner.limits,
        )
    return Plan(assignments=assignments, waiting=waiting)


def _held_back(session: PendingSession, owner: OwnerView, snapshot: Snapshot) -> Waiting | None:
    """The first rule that keeps the session from being placed anywhere, with the reference's names."""
    if session.starts_at is not None and session.starts_at > snapshot.now:
        return _predicate(session, "reserved_time", f"It starts at {session.starts_at.isoformat()}.")
    if owner.max_sessions > 0 and owner.live_sessions >= owner.max_sessions:
        return _predicate(
            session,
            "concurrency",
            f"You cannot run more than {owner.max_sessions} concurrent sessions; "
            f"{owner.live_sessions} are live. End one of them.",
        )
    over = {
        name: limit
        for name, limit in owner.limits.items()
        if owner.occupied.amount(name) + session.slots.amount(name) > limit
    }
    if over:
        text = ", ".join(f"{name}={format_amount(limit)}" for name, limit in sorted(over.items()))
        return _predicate(
            session, "keypair_resource_limit", f"Your keypair resource quota is exceeded. ({text})"
        )
    return None


def _predicate(session: PendingSession, name: str, sentence: str) -> Waiting:
    return Waiting(
        session_id=session.id,
        info="predicate-checks-failed",
        sentence=sentence,
        data={"failed_predicates": [{"name": name, "msg": sentence}]},
    )


def _no_agent(
    session: PendingSession, snapshot: Snapshot, occupied: dict[AgentId, Slots]
) -> AgentView | Waiting:
    """The agent to take, or why none can be."""
    group = [agent for agent in snapshot.agents if agent.scaling_group == session.scaling_group]
    if not group:
        nobody = f"No agent is alive in scaling group {session.scaling_group!r}."
        return _unplaced(session, "no-agent", nobody + _troubles(session, snapshot.troubled))
    able = [
        agent
        for agent in group
        if agent.architecture == session.architecture and session.image in agent.images
    ]
    if not able:
        where = f"scaling group {session.scaling_group!r}"
        return _unplaced(
            session,
            "no-image",
            f"No live agent of {where} offers the image {session.image} for {session.architecture}.",
        )
    large = [agent for agent in able if session.slots <= agent.capacity]
    if not large:
        return _unplaced(session, "too-large", f"No agent is large enough for {_amounts(session.slots)}.")
    free = [agent for agent in large if occupied[agent.id] + session.slots <= agent.capacity]
    if not free:
        return _unplaced(
            session,
            "busy",
            f"Every agent that could run it is busy; it needs {_amounts(session.slots)}.",
        )
    return min(free, key=lambda agent: _preference(agent, session.slots))


def _troubles(session: PendingSession, troubled: Iterable[TroubledAgent]) -> str:
    """Sentences about the group's agents that cannot be talked to; the first few."""
    known = [agent for agent in troubled if agent.scaling_group == session.scaling_group]
    return "".join(
        f" Agent {agent.id} is not connected: {agent.trouble.removesuffix('.')}." for agent in known[:3]
    )


def _unplaced(session: PendingSession, cause: str, sentence: str) -> Waiting:
    return Waiting(
        session_id=session.id,
        info="no-available-instances",
        sentence=sentence,
        data={"cause": cause, "requested": session.slots.to_text()},
    )


def _amounts(slots: Slots) -> str:
    return ", ".join(f"{name}={amount}" for name, amount in sorted(slots.to_text().items()))


def _preference(agent: AgentView, wanted: Slots) -> tuple[int, list[Decimal], str]:
    unused = sum(1 for name, amount in agent.capacity.items() if amount and not wanted.amount(name))
    return unused, [-agent.capacity.amount(name) for name in sorted(agent.capacity)], agent.id
