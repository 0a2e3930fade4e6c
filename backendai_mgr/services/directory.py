"""The worker's directory of live sessions: the execute path finds a kernel and its agent without a query."""

from collections import OrderedDict
from collections.abc import Iterable

from ..domain.errors import Conflict, NotFound, TooManyMatches, Unavailable
from ..domain.ids import AccessKey, SessionId
from ..domain.sessions import LiveSession
from ..domain.status import Status
from .ports import EventRow, Match, Sessions

CAPACITY = 20_000


class Directory:
    """Resolved references by owner. Any event of an owner's sessions drops what is known of that owner.

    A reference is kept as it was asked for, since a new session can make an old prefix ambiguous.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._known: OrderedDict[AccessKey, dict[tuple[str, bool], LiveSession]] = OrderedDict()
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

    async def find(self, owner: AccessKey, reference: str, *, exact: bool) -> LiveSession:
        """The owner's running session that *reference* names: exactly (or by full UUID), or by the legacy
        rules of prefixes.

        Refused as `NotFound`, `TooManyMatches`, `Unavailable` while it restarts, or `Conflict` while it is
        not running for another reason.
        """
        known = self._known.get(owner, {}).get((reference, exact))
        if known is not None:
            return known
        generation = self._generation
        session_id = await self._resolve(owner, reference, exact)
        live = await self._sessions.live(session_id)
        if live is not None and live.status is Status.RESTARTING:
            raise Unavailable(f"Session {reference!r} is being restarted.", retry_after=1)
        if live is None or live.status is not Status.RUNNING:
            state = "not running yet" if live is None else str(live.status)
            raise Conflict(f"Session {reference!r} is {state}.", {"session_id": str(session_id)})
        if generation == self._generation:
            self._known.setdefault(owner, {})[(reference, exact)] = live
            self._known.move_to_end(owner)
            if len(self._known) > CAPACITY:
                self._known.popitem(last=False)
        return live

    async def _resolve(self, owner: AccessKey, reference: str, exact: bool) -> SessionId:
        return only(await self._sessions.match(owner, reference, include_dead=False, exact=exact)).id


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
