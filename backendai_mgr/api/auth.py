"""Who calls: the version that a request speaks and the signature that it carries (api-sessions §1.4, §2)."""

import functools
from collections.abc import Awaitable, Callable
from typing import Concatenate, ParamSpec, TypeVar

from werkzeug.datastructures import Headers

from ..domain.accounts import Caller
from ..domain.errors import BadRequest, MalformedAuth, NotAuthenticated
from ..domain.ids import AccessKey
from ..domain.signing import (
    SignedParts,
    check_date,
    parse_authorization,
    signed_content_type,
    verify,
)
from .context import current_message, services
from .dates import parse_date

P = ParamSpec("P")
R = TypeVar("R")

#: What ``GET /`` announces; newer clients come down to it.
LATEST = "v6.20220315"
ACCEPTED = frozenset(
    {
        "v4.20181215",
        "v4.20190115",
        "v4.20190315",
        "v4.20190615",
        "v5.20191215",
        "v6.20200815",
        "v6.20210815",
        LATEST,
    }
)
#: Header names, the standard one before those of old clients.
VERSION_HEADERS = ("X-BackendAI-Version", "X-Sorna-Version")
DATE_HEADERS = ("Date", "X-BackendAI-Date", "X-Sorna-Date")
LONGEST_ACCESS_KEY = 64


def check_version(headers: Headers) -> None:
    """Refuse a request that names a version of the API which is not spoken here."""
    _, version = _first(headers, VERSION_HEADERS)
    if version is not None and version not in ACCEPTED:
        raise BadRequest("Unsupported API version.")


def authenticated(
    handler: Callable[Concatenate[Caller, P], Awaitable[R]],
) -> Callable[P, Awaitable[R]]:
    """A handler, of a request or a websocket, that gets the authenticated caller as its first argument."""

    @functools.wraps(handler)
    async def with_caller(*args: P.args, **kwargs: P.kwargs) -> R:
        return await handler(await authenticate(), *args, **kwargs)

    return with_caller


async def authenticate() -> Caller:
    """The caller of the request at hand.

    `MalformedAuth` for a bad date or header, `NotAuthenticated` for no, an unknown or a wrong credential; the
    order of the checks is the API's (§2.4). A handshake over HTTP/2 is signed as GET, as it is over HTTP/1.1.
    """
    api = services()
    message = current_message()
    headers = message.headers
    _, date = _first(headers, DATE_HEADERS)
    if not date:
        raise MalformedAuth("Date/time sync error")
    now = api.now()
    moment = parse_date(date, now)
    check_date(moment, now)
    header = headers.get("Authorization")
    if not header:
        raise NotAuthenticated("Unauthorized access")
    authorization = parse_authorization(header)
    access_key = authorization.access_key
    plausible = len(access_key) <= LONGEST_ACCESS_KEY and access_key.isascii() and access_key.isprintable()
    credential = await api.keys.credential(AccessKey(access_key)) if plausible else None
    if credential is None:
        raise NotAuthenticated("Access key not found")
    hash_name = authorization.hash_name
    version_header, version = _first(headers, VERSION_HEADERS)
    if version is None:
        raise MalformedAuth("API version missing in request headers")
    scope = message.scope
    query = scope["query_string"]
    target = scope["raw_path"] + (b"?" + query if query else b"")
    parts = SignedParts(
        method=message.method,
        target=target.decode("latin-1"),
        date=date,
        host=headers.get("Host") or headers.get(":Authority") or "",
        content_type=signed_content_type(headers.get("Content-Type")),
        version=version,
        version_header=version_header.lower(),
    )
    verify(parts, credential.secret_key, moment, authorization, hash_name)
    return credential.caller


def _first(headers: Headers, names: tuple[str, ...]) -> tuple[str, str | None]:
    """The first of the named headers that is there and not empty."""
    return next(((name, value) for name in names if (value := headers.get(name))), (names[0], None))
