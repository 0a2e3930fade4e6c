"""Services in sessions: listed, started, and connected to through websockets (api-sessions §5.7, §5.8)."""

from functools import partial

import trio
from quart import Blueprint, Response

from ..domain.accounts import Caller
from ..domain.errors import Conflict, Refusal
from ..domain.status import Status
from ..services.agentports import Tunnel
from ..services.apps import App, NobodyListens
from .auth import authenticated
from .body import legacy_parameters, query_parameters, reply
from .context import admit_work, services
from .models.apps import OpenApp, ShutdownService, StartService
from .models.sessions import service_ports
from .sockets import (
    GOING_AWAY,
    INTERNAL_ERROR,
    TRY_AGAIN,
    Socket,
    current_socket,
    race,
    serve,
    stop_with_server,
)

blueprint = Blueprint("apps", __name__)


@blueprint.post("/session/<ref>/start-service")
@authenticated
async def start_service(caller: Caller, ref: str) -> Response:
    """Start a service for an app proxy, of which there is none."""
    admit_work()
    given = await legacy_parameters(StartService)
    await services().apps.publish(caller, ref, given.request())


@blueprint.post("/session/<ref>/shutdown-service")
@authenticated
async def shutdown_service(caller: Caller, ref: str) -> Response:
    """End a service, if it runs."""
    given = await legacy_parameters(ShutdownService)
    await services().apps.shut_down(caller, ref, given.service_name)
    return Response(b"", status=204)


@blueprint.get("/stream/session/<ref>/apps")
@authenticated
async def apps(caller: Caller, ref: str) -> Response:
    """What can be connected to: a list."""
    session = await services().sessions.info(caller, ref)
    if session.status is not Status.RUNNING:
        raise Conflict(f"Session {session.name!r} is {session.status}.", {"session_id": str(session.id)})
    return reply(service_ports(session))


@blueprint.websocket("/stream/session/<ref>/tcpproxy")
@blueprint.websocket("/stream/session/<ref>/httpproxy")
@authenticated
async def proxy(caller: Caller, ref: str) -> None:
    """A connection to a service, which is started where it does not run: its bytes, in binary frames.

    Closed with 1001 when the service hangs up, with 1013 when nothing listens, with 1011 when it breaks.
    """
    admit_work()
    app = await services().apps.start(caller, ref, query_parameters(OpenApp).request())
    socket = current_socket()
    await socket.open()
    await serve(socket, partial(_carry, socket, app), partial(stop_with_server, socket))


async def _carry(socket: Socket, app: App) -> None:
    try:
        async with services().apps.connect(app) as tunnel:
            await race(partial(_to_client, socket, tunnel), partial(_to_service, socket, tunnel))
    except NobodyListens as error:
        await socket.close_now(TRY_AGAIN, error.message)
    except Refusal as error:
        await socket.close_now(INTERNAL_ERROR, error.message)


async def _to_client(socket: Socket, tunnel: Tunnel) -> None:
    while data := await tunnel.receive():
        await socket.send_bytes(data)
    await socket.finish(GOING_AWAY, "The service has hung up.")


async def _to_service(socket: Socket, tunnel: Tunnel) -> None:
    """Pass on what the client sends, as fast as the service reads; text is none of it."""
    while True:
        message = await socket.receive_message()
        if isinstance(message, bytes):
            await tunnel.send(message)
        else:
            await trio.lowlevel.checkpoint()
