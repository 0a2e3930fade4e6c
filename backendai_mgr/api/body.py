"""Reading a request's parameters from its body or its query, and writing replies."""

import json
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import Any, TypeVar, cast
from urllib.parse import parse_qsl
from uuid import UUID

from quart import Response, request

from ..domain.errors import InvalidParameters, PayloadTooLarge
from .bodies import Body
from .context import current_message, limits
from .decoding import INVALID, LEGACY, QUERY, STRICT, decode, load_object

T = TypeVar("T")

MOST_QUERY_FIELDS = 100


async def raw_body(longest: int) -> bytes:
    """The whole body; `PayloadTooLarge` when it has more than *longest* bytes."""
    if request.content_length is None and request.http_version < "2" and not _is_chunked():
        return b""
    if (request.content_length or 0) > longest:
        raise PayloadTooLarge(f"The request body is larger than {longest} bytes.")
    body = cast(bytes, await request.get_data())
    if len(body) > longest:
        raise PayloadTooLarge(f"The request body is larger than {longest} bytes.")
    return body


def body_pieces() -> AsyncGenerator[bytes, None]:
    """The body as it comes, of any length; `RequestTimeout` when it stands still."""
    return cast(Body, request.body).pieces(limits().body_seconds)


def _is_chunked() -> bool:
    return "Transfer-Encoding" in request.headers


def query_members(*, unique: bool) -> dict[str, str]:
    """The query's parameters; of a repeated one the last counts, unless it has to be *unique*."""
    text = current_message().query_string.decode("ascii")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MOST_QUERY_FIELDS)
    except ValueError:
        raise InvalidParameters(INVALID, {"query": "is not UTF-8 or has too many parameters"}) from None
    members = dict(pairs)
    if unique and len(members) != len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidParameters(
            INVALID, {name: "is given twice" for name in members if names.count(name) > 1}
        )
    return members


async def legacy_parameters(model: type[T]) -> T:
    """Parameters by the original's rule: from the body if there is one, else from the query."""
    body = await raw_body(limits().json_bytes)
    return decode(model, load_object(body) if body else query_members(unique=False), LEGACY)


async def json_parameters(model: type[T], *, longest: int) -> T:
    """Strict parameters from a JSON body of at most *longest* bytes."""
    return decode(model, load_object(await raw_body(longest)), STRICT)


def query_parameters(model: type[T]) -> T:
    """Strict parameters from the query, each at most once."""
    return decode(model, query_members(unique=True), QUERY)


def _plain(value: Any) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not for JSON")


def to_json(value: Any) -> str:
    """Compact JSON; times are ISO 8601, UUIDs have dashes."""
    return json.dumps(value, separators=(",", ":"), default=_plain)


def reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON reply."""
    return Response(
        to_json(value),
        status=status,
        headers=None if headers is None else dict(headers),
        content_type="application/json",
    )
