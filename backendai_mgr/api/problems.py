"""Every error as problem JSON (api-sessions §3): the one place where refusals become HTTP."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from quart import Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge, RequestTimeout
from werkzeug.exceptions import NotFound as UrlNotFound
from werkzeug.routing.exceptions import WebsocketMismatch

from ..domain import errors
from ..services.ports import StoreUnavailable

log = logging.getLogger(__name__)

PREFIX = "https://api.backend.ai/probs/"
CONTENT_TYPE = "application/problem+json"
#: Of every reply.
COMMON_HEADERS = [
    (b"server", b"BackendAI"),
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", b"*"),
]


@attrs.frozen(kw_only=True)
class Problem:
    """An error reply. ``extra`` are further members of its body."""

    status: int
    type: str
    title: str
    msg: str = ""
    data: Any = None
    headers: Mapping[str, str] = attrs.Factory(dict)
    extra: Mapping[str, Any] = attrs.Factory(dict)

    def value(self) -> dict[str, Any]:
        """The members of the body."""
        value: dict[str, Any] = {"type": PREFIX + self.type, "title": self.title}
        if self.msg:
            value["msg"] = self.msg
        if self.data is not None:
            value["data"] = self.data
        return value | dict(self.extra)

    def body(self) -> bytes:
        return json.dumps(self.value(), default=str).encode()

    def head(self) -> list[tuple[bytes, bytes]]:
        """The header fields, for where there is no `Response`."""
        fields = {"content-type": CONTENT_TYPE, "content-length": str(len(self.body())), **self.headers}
        return [(name.lower().encode(), value.encode()) for name, value in fields.items()]

    def response(self) -> Response:
        return Response(
            self.body(), status=self.status, headers=dict(self.headers), content_type=CONTENT_TYPE
        )


BAD_REQUEST = ("generic-bad-request", "Bad request.")
UNAVAILABLE = ("service-unavailable", "Serivce unavailable.")  # the spelling is the API's

#: Type, title and status of each refusal; the rest of the table is in the functions below.
_REFUSALS: Mapping[type[errors.Refusal], tuple[str, str, int]] = {
    errors.InvalidParameters: ("invalid-api-params", "Missing or invalid API parameters.", 400),
    errors.BadRequest: (*BAD_REQUEST, 400),
    errors.MalformedAuth: ("invalid-auth-params", "Missing or invalid authorization parameters.", 400),
    errors.NotAuthenticated: ("auth-failed", "Credential/signature mismatch.", 401),
    errors.Forbidden: ("generic-forbidden", "Forbidden operation.", 403),
    errors.InsufficientPrivilege: ("insufficient-privilege", "Insufficient privilege.", 403),
    errors.TooManyMatches: ("too-many-sessions-matched", "Too many sessions matched.", 404),
    errors.SessionExists: (
        "session-already-exists",
        "The session already exists but you requested not to reuse existing one.",
        400,
    ),
    errors.RunConflict: ("run-already-exists", "The run ID was used with another request.", 409),
    errors.Conflict: ("conflict", "The present state does not allow this operation.", 409),
    errors.PreconditionFailed: (
        "precondition-failed",
        "The object's present state is not the one that was asked for.",
        412,
    ),
    errors.NotSatisfiable: ("range-not-satisfiable", "There is no such part of the object.", 416),
    errors.NoRoom: ("insufficient-storage", "The session's machine has no room left.", 507),
    errors.QuotaExceeded: ("quota-exceeded", "You have reached your resource limit.", 412),
    errors.PayloadTooLarge: (*BAD_REQUEST, 413),
    errors.Unavailable: (*UNAVAILABLE, 503),
}
_AGENT_OPERATIONS: Mapping[str, tuple[str, str]] = {
    "create": ("kernel-creation-failed", "Kernel creation has failed."),
    "destroy": ("kernel-destruction-failed", "Kernel destruction has failed."),
    "restart": ("kernel-restart-failed", "Kernel restart has failed."),
    "execute": ("kernel-execution-failed", "Executing user code in the kernel has failed."),
}
INTERNAL = Problem(status=500, type="internal-server-error", title="Internal server error.")


#: What the server refuses before there is a request.
_OF_PROTOCOL: Mapping[int, str] = {
    400: "The request is not HTTP.",
    408: "The request's head did not come in time.",
    431: "The request's line and headers are too long.",
    501: "The request uses a part of HTTP that is not spoken here.",
    503: "Too many clients are connected.",
    505: "The request's version of HTTP is not spoken here.",
}


def protocol_problem(status: int) -> Problem:
    """The problem of a request that breaks the rules of HTTP or a limit of the server."""
    status = status if status in _OF_PROTOCOL else 400
    kind, title = UNAVAILABLE if status == 503 else BAD_REQUEST
    headers = {"Retry-After": "1"} if status == 503 else {}
    return Problem(status=status, type=kind, title=title, msg=_OF_PROTOCOL[status], headers=headers)


def handshake_problem(status: int) -> Problem:
    """The problem of a websocket that cannot be opened: 500 for a fault of ours, else 400."""
    if status == 500:
        return INTERNAL
    message = "The websocket's handshake is wrong: there has to be a key, and the version is 13."
    headers = {"Sec-WebSocket-Version": "13"}
    return Problem(status=400, type=BAD_REQUEST[0], title=BAD_REQUEST[1], msg=message, headers=headers)


def problem_of(error: BaseException, path: str = "") -> Problem:
    """The problem that tells of *error*. What is none of ours is logged, and told without its details."""
    match error:
        case errors.Refusal():
            return _of_refusal(error)
        case StoreUnavailable():
            return Problem(
                status=503,
                type=UNAVAILABLE[0],
                title=UNAVAILABLE[1],
                msg="The database cannot be reached.",
                headers={"Retry-After": "2"},
            )
        case HTTPException():
            return _of_framework(error, path)
        case BaseExceptionGroup():
            return _of_group(error.exceptions, path)
    log.error("unexpected error in a request", exc_info=error)
    return INTERNAL


def _of_refusal(refusal: errors.Refusal) -> Problem:
    match refusal:
        case errors.AgentFailed():
            return _of_agent(refusal)
        case errors.ServiceFailed():
            return attrs.evolve(INTERNAL, msg="Failed to launch the app service", data=refusal.message)
        case errors.NotFound():
            kind, title, status = "object-not-found", f"No such {refusal.kind}.", 404
        case _:
            row = next((_REFUSALS[cls] for cls in type(refusal).__mro__ if cls in _REFUSALS), None)
            kind, title, status = row or (*BAD_REQUEST, 400)
    headers = {}
    if isinstance(refusal, errors.Unavailable):
        headers = {"Retry-After": str(refusal.retry_after)}
    elif isinstance(refusal, errors.NotSatisfiable):
        headers = {"Content-Range": f"bytes */{refusal.size}"}
    return Problem(
        status=status, type=kind, title=title, msg=refusal.message, data=refusal.data, headers=headers
    )


def _of_agent(failure: errors.AgentFailed) -> Problem:
    kind, title = _AGENT_OPERATIONS[failure.operation]
    details: dict[str, Any] = {
        "type": PREFIX + ("agent-timeout" if failure.timeout else "agent-failure"),
        "title": None if failure.timeout else "Agent-side exception occurred.",
    }
    if failure.message:
        details["exception"] = failure.message
    return Problem(status=500, type=kind, title=title, extra={"agent-details": details})


def _of_framework(error: HTTPException, path: str) -> Problem:
    match error:
        case UrlNotFound():
            return Problem(status=404, type="url-not-found", title="Unknown URL path.", data=path)
        case MethodNotAllowed():
            return Problem(
                status=405,
                type="method-not-allowed",
                title="HTTP Method Not Allowed.",
                headers={"Allow": ", ".join(sorted(error.valid_methods or ()))},
            )
        case WebsocketMismatch():
            return _of_refusal(errors.BadRequest("Websockets and other requests have different URLs."))
        case RequestEntityTooLarge():
            return _of_refusal(errors.PayloadTooLarge("The request body is too large."))
        case RequestTimeout():
            return Problem(
                status=408, type=BAD_REQUEST[0], title=BAD_REQUEST[1], msg="The request body did not come."
            )
    if error.code is not None and error.code < 500:
        return _of_refusal(errors.BadRequest(error.description or ""))
    log.error("unexpected error in a request", exc_info=error)
    return INTERNAL


def _of_group(members: Sequence[BaseException], path: str) -> Problem:
    """The gravest of several errors; each unexpected one is logged on the way."""
    return max((problem_of(member, path) for member in members), key=lambda problem: problem.status)
