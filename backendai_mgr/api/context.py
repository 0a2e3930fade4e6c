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
from ..services.files import FileService
from ..services.health import Health
from ..services.joining import JoinService
from ..services.runs import RunService
from ..services.sessions import SessionService
from .metrics import Metrics

if TYPE_CHECKING:
    from quart.wrappers.base import BaseRequestWebsocket

MIB = 1 << 20

#: Id of the request that this task serves; replies carry it as ``X-Request-Id``.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


@attrs.frozen(kw_only=True)
class ApiServices:
    """What the HTTP interface serves. ``version`` is what ``GET /`` tells as the manager's."""

    keys: KeyCache
    sessions: SessionService
    runs: RunService
    files: FileService
    joining: JoinService
    health: Health
    registry: CollectorRegistry
    now: Callable[[], datetime]
    version: str = "22.03.3"


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds of requests and waits, in bytes and seconds."""

    json_bytes: int = MIB
    #: Code of a run, as UTF-8; and the body that carries it, in which JSON may escape each byte.
    code_bytes: int = 8 * MIB
    code_body_bytes: int = 16 * MIB + 65536
    #: Multipart uploads: how many files, and how large each may be (it must be smaller than this).
    upload_files: int = 20
    upload_file_bytes: int = MIB
    #: Downloads as archives: how many, and how large each may be.
    download_files: int = 5
    archive_bytes: int = 4 * MIB
    #: A piece of a file that comes as a raw body.
    piece_bytes: int = 16 * MIB
    #: Body that nobody wants is read on so far and so long, lest the client misses the reply.
    drain_bytes: int = 64 * MIB
    drain_seconds: float = 10
    #: A websocket whose client takes nothing for so long is cut.
    send_seconds: float = 60
    #: A websocket that must close now waits so long for its client.
    close_seconds: float = 2
    #: The first message of a websocket that begins with one.
    first_message_seconds: float = 30

    @property
    def multipart_bytes(self) -> int:
        """The body of a multipart upload, with room for what is around the files."""
        return self.upload_files * (self.upload_file_bytes + 8192) + 65536


@attrs.frozen
class Installed:
    """What an application was made with; it keeps it as its extension of this name."""

    services: ApiServices
    limits: Limits
    metrics: Metrics


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
