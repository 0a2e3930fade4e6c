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
from ..runtime.config import ByteSize, Seconds
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
#: Most bytes of the headers of a file in a multipart upload.
PART_HEAD_BYTES = 8192

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
    files: FileService
    joining: JoinService
    health: Health
    registry: CollectorRegistry
    now: Callable[[], datetime]
    version: str = "22.03.3"


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds of what clients may do to one worker; the ``[limits]`` table of manager.toml."""

    #: Connections of clients that are open at once. At the limit an idle one gives way, else the newest is
    #: answered with 503.
    connections: int = 4096
    #: Requests under way at once, and websockets that are open; one more is answered with 503.
    requests: int = 1024
    websockets: int = 1024
    #: Requests and websockets at once on a connection of HTTP/2.
    streams: int = 100
    #: A request's line and headers: how long (else 431), and how soon they must be complete (else 408).
    head_bytes: ByteSize = ByteSize(64 << 10)
    head_seconds: Seconds = Seconds(20)
    #: A request's body must be complete within this time (else 408).
    body_seconds: Seconds = Seconds(60)
    #: A connection without a request is closed after this time.
    keep_alive_seconds: Seconds = Seconds(75)
    #: A client that takes nothing for so long is cut.
    send_seconds: Seconds = Seconds(60)
    #: An open websocket is pinged so often; a client that was silent for three times as long is cut.
    ping_seconds: Seconds = Seconds(30)
    #: A websocket that must close now waits so long for its client.
    close_seconds: Seconds = Seconds(2)
    #: The first message of a websocket that begins with one.
    first_message_seconds: Seconds = Seconds(30)
    #: A message that comes by websocket (else closed with 1009).
    message_bytes: ByteSize = ByteSize(16 * MIB + 65536)
    #: A body of JSON that carries no code (else 413).
    json_bytes: ByteSize = ByteSize(MIB)
    #: Code of a run, as UTF-8; and the body that carries it, in which JSON may escape each byte.
    code_bytes: ByteSize = ByteSize(8 * MIB)
    code_body_bytes: ByteSize = ByteSize(16 * MIB + 65536)
    #: Multipart uploads: how many files, and how large each may be (it must be smaller than this).
    upload_files: int = 20
    upload_file_bytes: ByteSize = ByteSize(MIB)
    #: Downloads as archives: how many, and how large each may be.
    download_files: int = 5
    archive_bytes: ByteSize = ByteSize(4 * MIB)
    #: A piece of a file that comes as a raw body.
    piece_bytes: ByteSize = ByteSize(16 * MIB)
    #: Body that nobody wants is read on so far and so long, lest the client misses the reply.
    drain_bytes: ByteSize = ByteSize(64 * MIB)
    drain_seconds: Seconds = Seconds(10)

    def __attrs_post_init__(self) -> None:
        for name, value in attrs.asdict(self).items():
            if value <= 0:
                raise ValueError(f"{name.replace('_', '-')} must be more than 0")

    @property
    def multipart_bytes(self) -> int:
        """The body of a multipart upload, with room for what is around the files."""
        return self.upload_files * (self.upload_file_bytes + PART_HEAD_BYTES) + 65536


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
