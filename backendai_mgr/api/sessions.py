"""``/session`` and ``/sessions``: create, look at, list, end, explain (api-sessions §5.3, §5.4)."""

from quart import Blueprint, Response

from ..domain.accounts import Caller
from .auth import authenticated
from .body import legacy_parameters, query_parameters, reply
from .context import admit_work, services
from .models.sessions import (
    CreateSession,
    DestroySession,
    ListSessions,
    MatchSessions,
    RenameSession,
    creation_reply,
    info_reply,
    list_reply,
    match_reply,
)

blueprint = Blueprint("sessions", __name__)


@blueprint.post("/session")
@blueprint.post("/session/_/create")
@authenticated
async def create(caller: Caller) -> Response:
    """Create a session, or find the live one of that name, and wait until it runs."""
    admit_work()
    parameters = await legacy_parameters(CreateSession)
    creation = await services().sessions.create(caller, parameters.request())
    return reply(creation_reply(creation), 201 if creation.created else 200)


@blueprint.get("/session/_/match")
@authenticated
async def match(caller: Caller) -> Response:
    """Sessions, dead ones too, that a reference may mean."""
    parameters = await legacy_parameters(MatchSessions)
    return reply(match_reply(await services().sessions.match(caller, parameters.id)))


@blueprint.get("/session/<ref>")
@authenticated
async def info(caller: Caller, ref: str) -> Response:
    """What is known of a live session."""
    session = await services().sessions.info(caller, ref)
    return reply(info_reply(session, services().now()))


@blueprint.delete("/session/<ref>")
@authenticated
async def destroy(caller: Caller, ref: str) -> Response:
    """End a session; the answer has its last statistics."""
    parameters = await legacy_parameters(DestroySession)
    stats = await services().sessions.destroy(
        caller, ref, forced=parameters.forced, owner_access_key=parameters.owner_access_key
    )
    return reply({"stats": stats})


@blueprint.patch("/session/<ref>")
@authenticated
async def restart(caller: Caller, ref: str) -> Response:
    """Start a running session's kernel anew; its files and earlier runs are kept."""
    admit_work()
    await services().sessions.restart(caller, ref)
    return Response(b"", status=204)


@blueprint.post("/session/<ref>/rename")
@authenticated
async def rename(caller: Caller, ref: str) -> Response:
    """Give a running session another name."""
    parameters = await legacy_parameters(RenameSession)
    await services().sessions.rename(caller, ref, parameters.name)
    return Response(b"", status=204)


@blueprint.get("/session/<name>/why")
@authenticated
async def why(caller: Caller, name: str) -> Response:
    """What a session waits for, or why it ended."""
    return reply(await services().sessions.why(caller, name))


@blueprint.get("/sessions")
@authenticated
async def list_sessions(caller: Caller) -> Response:
    """The caller's sessions, newest first, page by page."""
    query = query_parameters(ListSessions)
    page, after = await services().sessions.list(
        caller, statuses=query.statuses, limit=query.limit, after=query.after
    )
    return reply(list_reply(page, after))
