"""Use cases of sessions: create, look up, list, end, explain."""

import base64
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid4

import attrs
import trio

from ..domain.access import check_acting_for
from ..domain.accounts import Caller
from ..domain.errors import (
    BadRequest,
    Forbidden,
    InsufficientPrivilege,
    NotFound,
    QuotaExceeded,
    SessionExists,
    Unavailable,
)
from ..domain.explaining import explain
from ..domain.ids import RESERVED_SESSION_NAMES, AccessKey, SessionId
from ..domain.requests import granted_slots, invalid
from ..domain.sessions import NewSession, Session, SessionType
from ..domain.status import DEAD, LIVE, STARTING, Status
from .accounts import KeyCache
from .directory import only
from .hub import POLL, Hub
from .ports import EnqueueFacts, KernelMove, Match, Sessions
from .restarting import restart

log = logging.getLogger(__name__)

#: How long a destroy waits to see the end; the end itself comes in any case (domain.lifecycle).
DESTROY_WAIT = 15.0
#: Ports that a session's user may open.
MAX_PREOPEN = 16
NOT_YET = "This is not supported by this version."


@attrs.frozen(kw_only=True)
class CreateRequest:
    """The parsed and defaulted body of ``POST /session`` (api-sessions §5.3.1).

    ``max_wait`` in seconds, 0 for as long as it takes.
    """

    name: str
    image: str
    architecture: str | None = None
    type: SessionType = "interactive"
    group: str = "default"
    domain: str | None = None
    cluster_size: int = 1
    cluster_mode: Literal["single-node", "multi-node"] | str = "single-node"
    tag: str | None = None
    enqueue_only: bool = False
    max_wait: float = 0
    reuse: bool = True
    startup_command: str | None = None
    bootstrap_script: str | None = None
    starts_at: str | None = None
    dependencies: Sequence[str] = ()
    callback_url: str | None = None
    owner_access_key: str | None = None
    mounts: Sequence[str] = ()
    mount_map: Mapping[str, str] = attrs.Factory(dict)
    environ: Mapping[str, str] = attrs.Factory(dict)
    scaling_group: str | None = None
    resources: Mapping[str, Any] = attrs.Factory(dict)
    resource_opts: Mapping[str, Any] = attrs.Factory(dict)
    preopen_ports: Sequence[int] = ()
    agent_list: Sequence[str] = ()


@attrs.frozen(kw_only=True)
class Creation:
    """The answer to a creation. ``status`` is the session's, or TIMEOUT when ``max_wait`` ran out."""

    session: Session
    created: bool
    status: str


class SessionService:
    """The use cases of sessions, in the caller's own key unless an owner is named."""

    def __init__(
        self,
        sessions: Sessions,
        keys: KeyCache,
        hub: Hub,
        *,
        architecture: str,
        now: Callable[[], datetime],
    ) -> None:
        self._sessions = sessions
        self._keys = keys
        self._hub = hub
        self._architecture = architecture
        self._now = now

    async def create(self, caller: Caller, request: CreateRequest) -> Creation:
        """Create the session, or find the live one of that name, and wait until it runs or has ended.

        A wait that ends early (``max_wait``, a dropped client) leaves the session queued.
        """
        _refuse_what_cannot_be_done(caller, request)
        owner = await self._owner(caller, request.owner_access_key)
        domain = request.domain or caller.domain
        facts = await self._sessions.enqueue_facts(
            owner,
            domain=domain,
            group=request.group,
            name=request.name,
            image=request.image,
            architecture=request.architecture or self._architecture,
        )
        if facts.existing is not None:
            return _reuse(facts.existing, facts, request)
        session = self._decide(owner, domain, facts, request)
        with self._hub.watch(session.id) as changed:
            if not await self._sessions.enqueue(session):
                raise SessionExists(f"A session named {request.name!r} was created at the same moment.")
            log.info("session enqueued", extra={"session": str(session.id)})
            stored, timed_out = await self._await_start(session.id, request, changed.wait)
        return Creation(session=stored, created=True, status="TIMEOUT" if timed_out else str(stored.status))

    async def info(self, caller: Caller, reference: str) -> Session:
        """The caller's live session that the reference names."""
        found = only(await self._sessions.match(caller.access_key, reference, include_dead=False))
        return await self._get(found.id)

    async def match(self, caller: Caller, reference: str) -> Sequence[Match]:
        """Up to 10 sessions, dead ones included, that the reference matches."""
        return await self._sessions.match(caller.access_key, reference, include_dead=True)

    async def list(
        self, caller: Caller, *, statuses: Collection[Status], limit: int, after: str | None
    ) -> tuple[Sequence[Session], str | None]:
        """The caller's sessions, newest first, and the cursor of the next page (None: no more)."""
        page = await self._sessions.list(
            caller.access_key,
            statuses=statuses or LIVE,
            limit=limit,
            after=None if after is None else _parse_cursor(after),
        )
        return page, _cursor(page[-1]) if len(page) == limit else None

    async def why(self, caller: Caller, name_or_id: str) -> Mapping[str, Any]:
        """What the session waits for, or why it ended, in a sentence and in data. The newest session of that
        name, also when it has ended."""
        found = only(
            (await self._sessions.match(caller.access_key, name_or_id, include_dead=True, exact=True))[:1]
        )
        session = await self._get(found.id)
        return {
            "session_id": str(session.id),
            "name": session.name,
            "status": str(session.status),
            "sentence": explain(session),
            "info": session.reasons.get("info", ""),
            "data": session.reasons.get("data", {}),
        }

    async def destroy(
        self, caller: Caller, reference: str, *, forced: bool, owner_access_key: str | None
    ) -> Mapping[str, Any]:
        """End the session; returns its last statistics with the status it reached.

        Waits a while to see the end, so that the name can be used again at once.
        """
        owner = await self._owner(caller, owner_access_key)
        if forced and not (caller.is_admin or caller.is_superadmin):
            raise InsufficientPrivilege("You are not allowed to force-terminate")
        found = only(await self._sessions.match(owner.access_key, reference, include_dead=False))
        with self._hub.watch(found.id) as changed:
            session = await self._stop(found.id, forced)
            with trio.move_on_after(DESTROY_WAIT):
                while session.status not in DEAD and not self._hub.stopped:
                    await changed.wait(POLL)
                    session = await self._get(found.id)
        if session.status is Status.CANCELLED:
            return {"status": "cancelled"}
        return {**(session.last_stat or {}), "version": 2, "status": "terminated"}

    async def _stop(self, session_id: SessionId, forced: bool) -> Session:
        """One guarded move towards the end; repeated while another writer was quicker."""
        while True:
            session = await self._get(session_id)
            to = _stop_target(session.status, forced)
            if to is None:
                return session
            move = KernelMove(
                kernel_id=session.kernel_id,
                session_id=session.id,
                incarnation=session.incarnation,
                seen=session.status,
                to=to,
                info="force-terminated" if forced else "user-requested",
            )
            if await self._sessions.move([move], now=self._now()):
                return await self._get(session_id)

    async def restart(self, caller: Caller, reference: str) -> None:
        """Give the running session a new life in its old folder, and wait until it runs again."""
        found = await self._live_or_dead(caller, reference)
        await restart(self._sessions, self._hub, found.id, now=self._now)

    async def rename(self, caller: Caller, reference: str, name: str) -> None:
        """Give the running session another name."""
        found = await self._live_or_dead(caller, reference)
        match await self._sessions.rename(found.id, name, now=self._now()):
            case "not-running":
                raise BadRequest("Can't change name of not running session")
            case "name-taken":
                raise SessionExists(f"Another session is named {name!r}.")

    async def _live_or_dead(self, caller: Caller, reference: str) -> Match:
        """The live session that the reference names; if there is none, a dead one, so that the refusal can
        tell of it."""
        for include_dead in (False, True):
            if found := await self._sessions.match(caller.access_key, reference, include_dead=include_dead):
                break
        return only(found[:1] if include_dead else found)

    async def _owner(self, caller: Caller, owner_access_key: str | None) -> Caller:
        if owner_access_key is None or owner_access_key == caller.access_key:
            return caller
        credential = await self._keys.credential(AccessKey(owner_access_key))
        if credential is None:
            raise invalid("owner_access_key", "Unknown owner access key")
        check_acting_for(caller, credential.caller)
        return credential.caller

    async def _get(self, session_id: SessionId) -> Session:
        session = await self._sessions.get(session_id)
        if session is None:
            raise NotFound("session")
        return session

    def _decide(self, owner: Caller, domain: str, facts: EnqueueFacts, request: CreateRequest) -> NewSession:
        """Check the request against the facts (api-sessions §5.3.1 steps 4 to 9)."""
        if not facts.domain_active:
            raise invalid("domain", "Invalid domain")
        if domain != owner.domain and not owner.is_superadmin:
            raise invalid("domain", "You can only set the domain to that of the owner.")
        if facts.group_id is None or not facts.owner_is_member:
            raise invalid("group", "Invalid group")
        if facts.image is None:
            raise NotFound("environment image", "unknown alias or disallowed registry")
        limit = owner.policy.max_containers_per_session
        if request.cluster_size > limit > 0:
            raise QuotaExceeded(f"You cannot create a session with more than {limit} containers.")
        if request.cluster_size > 1:
            raise invalid("cluster_size", NOT_YET)
        scaling_group = request.scaling_group or next(iter(facts.scaling_groups), None)
        if scaling_group is None or scaling_group not in facts.scaling_groups:
            raise NotFound("scaling group")
        slots = granted_slots(
            request.resources,
            request.resource_opts,
            image_resources=facts.image.resources,
            labels=facts.image.labels,
            known=facts.known_slots,
        )
        return NewSession(
            id=SessionId(uuid4()),
            creation_id=uuid4().hex,
            name=request.name,
            type=request.type,
            access_key=owner.access_key,
            user_id=owner.user_id,
            domain=domain,
            group_id=facts.group_id,
            scaling_group=scaling_group,
            image=facts.image.name,
            architecture=facts.image.architecture,
            registry=facts.image.registry,
            tag=request.tag,
            slots=slots.to_text(),
            resource_opts=request.resource_opts,
            environ=request.environ,
            bootstrap_script=None,
            startup_command=request.startup_command,
            callback_url=None,
            preopen_ports=request.preopen_ports,
            created_at=self._now(),
        )

    async def _await_start(
        self, session_id: SessionId, request: CreateRequest, wait: Callable[[float], Any]
    ) -> tuple[Session, bool]:
        """Wait until the session runs or has ended; (session, whether ``max_wait`` ran out)."""
        session = await self._get(session_id)
        if request.enqueue_only:
            return session, False
        with trio.move_on_after(request.max_wait or float("inf")):
            while session.status in STARTING or session.status is Status.PENDING:
                if self._hub.stopped:
                    raise Unavailable(
                        "The server is stopping; the session stays queued.",
                        data={"sessionId": str(session_id)},
                    )
                await wait(POLL)
                session = await self._get(session_id)
            return session, False
        return session, True


def _refuse_what_cannot_be_done(caller: Caller, request: CreateRequest) -> None:
    """Checks that need no look-up; the field is named (api-sessions §5.3.1 steps 1, 3 and 6)."""
    if request.name in RESERVED_SESSION_NAMES:
        raise invalid("name", "This name is reserved.")
    if request.agent_list and not caller.is_superadmin:
        raise InsufficientPrivilege("Only superadmins may choose agents.")
    if request.starts_at is not None and request.type != "batch":
        raise invalid("starts_at", "Only batch sessions may have a start time.")
    if request.mounts or request.mount_map:
        raise NotFound("virtual folder")
    if len(request.preopen_ports) > MAX_PREOPEN:
        raise invalid("config.preopen_ports", f"There may be at most {MAX_PREOPEN}.")
    unsupported = {
        "type": request.type != "interactive",
        "config.agent_list": bool(request.agent_list),
        "bootstrap_script": bool(request.bootstrap_script),
        "dependencies": bool(request.dependencies),
        "callback_url": bool(request.callback_url),
    }
    for field, given in unsupported.items():
        if given:
            raise invalid(field, NOT_YET)


def _reuse(existing: Session, facts: EnqueueFacts, request: CreateRequest) -> Creation:
    same_image = facts.image is not None and (existing.image, existing.architecture) == (
        facts.image.name,
        facts.image.architecture,
    )
    if not (same_image and request.reuse):
        raise SessionExists(data={"existingSessionId": str(existing.id)})
    return Creation(session=existing, created=False, status=str(existing.status))


def _stop_target(status: Status, forced: bool) -> Status | None:
    """Where a destroy takes a session in *status*; None when it is dead already (api-sessions §5.4)."""
    if status in DEAD:
        return None
    if status is Status.PENDING:
        return Status.CANCELLED
    if status is Status.RUNNING or status is Status.RESTARTING:
        return Status.TERMINATING
    if status is Status.PULLING or not forced:
        raise Forbidden(f"Cannot destroy kernels in {status.lower()} status")
    return Status.TERMINATED


def _cursor(session: Session) -> str:
    text = f"{session.created_at.isoformat()} {session.id}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _parse_cursor(text: str) -> tuple[datetime, SessionId]:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        created_at, _, session_id = raw.decode().partition(" ")
        position = datetime.fromisoformat(created_at), SessionId(UUID(session_id))
    except ValueError:
        raise invalid("after", "not a cursor of this list") from None
    if position[0].tzinfo is None:
        raise invalid("after", "not a cursor of this list")
    return position
