"""The worker's directory of live sessions: the execute path finds a kernel and its agent without a query."""

from collections import OrderedDict
from collections.abc import Iterable

from ..domain.errors import Conflict, NotFound, TooManyMatches, Unavailable
from ..domain.ids import AccessKey, SessionId
from ..domain.sessions import PlacedSession
from ..domain.status import DEAD, Status
from .ports import EventRow, Match, Sessions

CAPACITY = 20_000


class Directory:
    """Resolved references by owner. Any event of an owner's sessions drops what is known of that owner.

    A reference is kept as it was asked for, since a new session can make an old prefix ambiguous.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._known: OrderedDict[AccessKey, dict[tuple[str, bool], PlacedSession]] = OrderedDict()
        self._generation = 0

    def on_event(self, event: EventRow) -> None:
        """Forget the sessions of the event's owner."""
        if event.owner is not None:
            self._generation += 1
            self._known.pop(event.owner, None)

    def drop_all(self) -> None:
        """Forget everything: events may have been missed."""
        self._generation += 1
        self._known.clear()

    async def find(self, owner: AccessKey, reference: str, *, exact: bool) -> PlacedSession:
        """The owner's running session that *reference* names: exactly (or by full UUID), or by the legacy
        rules of prefixes.

        Refused as `NotFound`, `TooManyMatches`, `Unavailable` while it restarts, or `Conflict` while it is
        not running for another reason.
        """
        known = self._known.get(owner, {}).get((reference, exact))
        if known is not None:
            return known
        session = await self._look(owner, reference, exact=exact, include_dead=False)
        if session.status is Status.RESTARTING:
            raise Unavailable(f"Session {reference!r} is being restarted.", retry_after=1)
        if session.status is not Status.RUNNING:
            raise _in_no_state(reference, session.id, str(session.status))
        return session

    async def find_placed(self, owner: AccessKey, name: str) -> PlacedSession:
        """The owner's session of exactly this name (or full UUID), the live one before those that have ended,
        whatever its status, with the agent that has its runs. `NotFound`, or `Conflict` when it has no agent.
        """
        known = self._known.get(owner, {}).get((name, True))
        return known or await self._look(owner, name, exact=True, include_dead=True)

    async def _look(
        self, owner: AccessKey, reference: str, *, exact: bool, include_dead: bool
    ) -> PlacedSession:
        """Look the session up. One that runs is remembered."""
        generation = self._generation
        match = only(await self._sessions.match(owner, reference, include_dead=include_dead, exact=exact))
        session = await self._sessions.placed(match.id)
        if session is None:
            state = "not running yet" if match.status not in DEAD else f"{match.status} and never ran"
            raise _in_no_state(reference, match.id, state)
        if session.status is Status.RUNNING and generation == self._generation:
            self._known.setdefault(owner, {})[(reference, exact)] = session
            self._known.move_to_end(owner)
            if len(self._known) > CAPACITY:
                self._known.popitem(last=False)
        return session


def _in_no_state(reference: str, session_id: SessionId, state: str) -> Conflict:
    return Conflict(f"Session {reference!r} is {state}.", {"session_id": str(session_id)})


def only(matches: Iterable[Match]) -> Match:
    """The single match; `NotFound` or `TooManyMatches` otherwise."""
    found = list(matches)
    if not found:
        raise NotFound("session")
    if len(found) > 1:
        raise TooManyMatches(
            data={
                "matches": [
                    {
                        "id": str(m.id),
                        "name": m.name,
                        "status": str(m.status),
                        "created_at": m.created_at.isoformat(),
                    }
                    for m in found
                ]
            }
        )
    return found[0]
