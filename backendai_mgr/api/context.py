"""What handlers reach for: the services, the limits, the request at hand and its id."""

import logging
from collections.abc import Callable
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

import attrs
from prometheus_client import CollectorRegistry
from quart import current_app, has_websocket_context, request, websocket

from ..domain.errors import Unavailable
from ..services.accounts import KeyCache
from ..services.apps import AppService
from ..services.files import FileService
from ..services.health import Health
from ..services.joining import JoinService
from ..services.runs import RunService
from ..services.sessions import SessionService
from ..services.terminals import TerminalService
from .limits import Limits
from .metrics import Metrics

if TYPE_CHECKING:
    from quart.wrappers.base import BaseRequestWebsocket

    from .sharing import SharedRuns


#: Member of a scope's ``state``: the server's connection that a request or websocket came over, if it tells.
TRANSPORT = "backendai.transport"

#: Id of the request that this task serves; replies carry it as ``X-Request-Id``.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


@attrs.frozen(kw_only=True)
class ApiServices:
    """What the HTTP interface serves. ``version`` is what ``GET /`` tells as the manager's."""

    keys: KeyCache
    sessions: SessionService
    runs: RunService
    terminals: TerminalService
    apps: AppService
    files: FileService
    joining: JoinService
    health: Health
    registry: CollectorRegistry
    now: Callable[[], datetime]
    version: str = "22.03.3"


@attrs.frozen
class Installed:
    """What an application was made with; it keeps it as its extension of this name."""

    services: ApiServices
    limits: Limits
    metrics: Metrics
    shared: "SharedRuns"


EXTENSION = "backendai"


def installed() -> Installed:
    """What the application that serves this request was made with."""
    return cast(Installed, current_app.extensions[EXTENSION])


def services() -> ApiServices:
    """The services of the application that serves this request."""
    return installed().services


def limits() -> Limits:
    """The limits of the application that serves this request."""
    return installed().limits


def current_message() -> "BaseRequestWebsocket":
    """The request or websocket handshake at hand."""
    proxy: Any = websocket if has_websocket_context() else request
    return cast("BaseRequestWebsocket", proxy._get_current_object())


def admit_work() -> None:
    """Refuse what begins something new while the server is on its way out."""
    if services().health.draining:
        raise Unavailable("The server is stopping.", retry_after=2)


class RequestIdFilter(logging.Filter):
    """Gives log records the id of the request at hand as ``request``; attach it to handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request"):
            record.request = request_id.get()
        return True
