"""The HTTP interface as one ASGI application."""

import logging
from contextlib import suppress
from typing import Any, cast

import trio
from quart import Response, has_websocket_context
from quart_trio import QuartTrio
from werkzeug.exceptions import MethodNotAllowed
from werkzeug.routing import MapAdapter, PathConverter
from werkzeug.routing.exceptions import WebsocketMismatch

from ..domain.errors import InvalidParameters
from . import (
    accounts,
    agents,
    apps,
    execute,
    files,
    legacy_files,
    legacy_stream,
    operations,
    root,
    run_stream,
    runs,
    sessions,
    terminals,
)
from .auth import check_version
from .bodies import Connection, Request
from .context import EXTENSION, ApiServices, Installed, current_message
from .decoding import INVALID, clean_text
from .front import ROUTE, Application, Front
from .limits import Limits
from .metrics import AgentMetrics, Metrics
from .problems import problem_of
from .sharing import SharedRuns
from .sockets import INTERNAL_ERROR, POLICY, PeerLeft, Socket, SocketConnection, current_socket

log = logging.getLogger(__name__)

__all__ = ["ApiServices", "create_app"]

BLUEPRINTS = (
    root.blueprint,
    accounts.blueprint,
    sessions.blueprint,
    execute.blueprint,
    runs.blueprint,
    run_stream.blueprint,
    files.blueprint,
    legacy_files.blueprint,
    legacy_stream.blueprint,
    terminals.blueprint,
    apps.blueprint,
    operations.blueprint,
    agents.blueprint,
)


def create_app(services: ApiServices, limits: Limits | None = None) -> Application:
    """The ASGI application that serves the use cases of *services*."""
    limits = limits or Limits()
    metrics = Metrics(services.registry)
    services.health.on_report(AgentMetrics(services.registry).note)
    app = Api(services, limits, metrics)
    return Front(cast(Application, app), metrics, limits)


class Api(QuartTrio):
    """Quart with our routing, errors and websockets."""

    asgi_http_class = Connection
    asgi_websocket_class = SocketConnection
    request_class = Request
    websocket_class = Socket

    def __init__(self, services: ApiServices, limits: Limits, metrics: Metrics) -> None:
        super().__init__(__name__, static_folder=None)
        self.config["MAX_CONTENT_LENGTH"] = max(
            limits.code_body_bytes, limits.multipart_bytes, limits.piece_bytes
        )
        self.config["BODY_TIMEOUT"] = limits.body_seconds
        self.config["RESPONSE_TIMEOUT"] = None  # the server bounds each write
        self.url_map.merge_slashes = False
        self.url_map.redirect_defaults = False
        self.url_map.converters = {**self.url_map.converters, "path": _AnyPath}
        self.extensions[EXTENSION] = Installed(services, limits, metrics, SharedRuns())
        self.before_request(_before)
        self.before_websocket(_before)
        for blueprint in BLUEPRINTS:
            self.register_blueprint(blueprint)

    def create_url_adapter(self, request: Any) -> MapAdapter | None:
        """Routes by path and method alone; a strange Host header is no reason for an error here."""
        if request is None:
            return None
        return MapAdapter(
            self.url_map, "manager", "/", "", request.scheme, request.path, request.method, None
        )

    async def handle_user_exception(self, error: Any) -> Any:
        """Every error of a handler: a problem reply, or the close of a websocket that is open already."""
        if isinstance(error, BaseExceptionGroup) and error.subgroup(trio.Cancelled) is not None:
            raise error
        if has_websocket_context() and isinstance(error, MethodNotAllowed):
            error = WebsocketMismatch()  # the URL exists, but no websocket does
        problem = problem_of(error, current_message().path)
        if has_websocket_context() and (socket := current_socket()).connection.accepted:
            code = INTERNAL_ERROR if problem.status >= 500 else POLICY
            with suppress(PeerLeft):
                await socket.close_now(code, problem.msg or problem.title)
            return None
        return problem.response()

    def log_exception(self, exception_info: Any) -> None:
        log.error("unexpected error outside of a handler", exc_info=exception_info)


class _AnyPath(PathConverter):
    """A path that may have line feeds in it, as names of files may."""

    regex = f"(?s:{PathConverter.regex})"


async def _before() -> Response | None:
    """Checks that precede every handler; an unknown URL is told only after them."""
    message = current_message()
    if message.url_rule is not None:
        message.scope["state"][ROUTE] = message.url_rule.rule
    check_version(message.headers)
    for name, value in (message.view_args or {}).items():
        try:
            clean_text(value)
        except ValueError as error:
            raise InvalidParameters(INVALID, {name: str(error)}) from None
    return None
