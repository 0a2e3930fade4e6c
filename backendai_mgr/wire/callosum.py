"""The RPC messages of the agent link: callosum 1.0 over msgpack, frames to values and back.

Every message is multipart. The first frame tells what follows: ``PING`` and ``PONG`` carry two frames that
are echoed, ``UPPER`` a header and a body. Header: ``{"type", "meth", "okey", "seq", "zip"}``. Body:
``{"meta": bytes, "body": bytes | nil}``, where ``meta`` is a packed array (empty bytes for none) and ``body``
the packed arguments ``{"args": […], "kwargs": {…}}`` or the packed result. Pure: no sockets, no clock.
"""

import enum
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import msgpack

PING = b"PING"
PONG = b"PONG"
UPPER = b"UPPER"

#: The largest body (packed, with its envelope) that is produced or taken, in bytes.
MAX_BODY = 10 * 1024 * 1024
MAX_HEADER = 4096
_MAX_SEQ = 2**32


class FrameError(ValueError):
    """The frames are not what the protocol says, or a value cannot travel (its type, its size)."""


class CompressedBody(FrameError):
    """A body says that it is compressed, which no known peer does. ``request`` can be answered."""

    def __init__(self, request: "Message") -> None:
        super().__init__("compressed bodies (zip = true) are not supported")
        self.request = request


class AgentError(Exception):
    """The agent broke at the call: an ERROR, a FAILURE that is no refusal, an answer of the wrong shape."""


class Kind(enum.IntEnum):
    """What an ``UPPER`` message is."""

    NULL = 0
    FUNCTION = 1
    RESULT = 2
    FAILURE = 3
    ERROR = 4
    CANCEL = 5
    CANCELLED = 6


_KINDS = frozenset(map(int, Kind))

#: A call in flight: (method, order key, sequence number), repeated by its answer.
Key = tuple[str, str | bytes, int]


@attrs.frozen(kw_only=True)
class Message:
    """An ``UPPER`` message. ``meta`` of FAILURE and ERROR is ``(exception's name, text, traceback)``.

    ``body`` is packed by `pack`; only FUNCTION and RESULT have one.
    """

    kind: Kind
    method: str
    seq: int
    okey: str | bytes = ""
    meta: tuple[Any, ...] = ()
    body: bytes | None = None

    @property
    def key(self) -> Key:
        return (self.method, self.okey, self.seq)


def pack(value: Any) -> bytes:
    """*value* as msgpack. Lone surrogates in text survive; `FrameError` for what cannot travel."""
    try:
        return bytes(msgpack.packb(value, unicode_errors="surrogatepass"))
    except (ValueError, TypeError, OverflowError) as error:
        raise FrameError(f"cannot be packed: {error}") from error


def unpack(data: bytes) -> Any:
    """The inverse of `pack`; map keys are text or bytes. `FrameError` for anything that is not one value."""
    try:
        return msgpack.unpackb(data, raw=False, unicode_errors="surrogatepass")
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise FrameError(f"not msgpack: {error}") from error


def encode(message: Message) -> list[bytes]:
    """``[UPPER, header, body]``; `FrameError` when the body is over `MAX_BODY`."""
    header = {
        "type": int(message.kind),
        "meth": message.method,
        "okey": message.okey,
        "seq": message.seq,
        "zip": False,
    }
    # A request has no metadata at all, everything else an array that may be empty.
    meta = b"" if message.kind is Kind.FUNCTION else pack(list(message.meta))
    body = pack({"meta": meta, "body": message.body})
    if len(body) > MAX_BODY:
        raise FrameError(f"the body of {message.method} has {len(body)} bytes, {MAX_BODY} may travel")
    return [UPPER, pack(header), body]


def decode(frames: Sequence[bytes]) -> Message:
    """The message in ``[UPPER, header, body]``.

    `CompressedBody` (with the request, without its body) when the body is compressed, else `FrameError`.
    """
    if len(frames) != 3 or frames[0] != UPPER:
        raise FrameError("not an UPPER message of three frames")
    if len(frames[1]) > MAX_HEADER or len(frames[2]) > MAX_BODY:
        raise FrameError("too large")
    message, compressed = _header(unpack(frames[1]))
    if compressed:
        raise CompressedBody(message)
    match unpack(frames[2]):
        case {"meta": bytes(meta), "body": bytes() | None as body}:
            return attrs.evolve(message, meta=_meta(meta), body=body)
    raise FrameError("not a callosum body")


def _header(header: Any) -> tuple[Message, bool]:
    """The message without its body, and whether that is compressed."""
    match header:
        case {
            "type": int(number),
            "meth": str(method),
            "okey": str() | bytes() as okey,
            "seq": int(seq),
            "zip": bool(compressed),
        } if 0 <= seq < _MAX_SEQ and number in _KINDS:
            return Message(kind=Kind(number), method=method, okey=okey, seq=seq), compressed
    raise FrameError("not a callosum header")


def _meta(packed: bytes) -> tuple[Any, ...]:
    if not packed:
        return ()
    meta = unpack(packed)
    if not isinstance(meta, list):
        raise FrameError("metadata is not an array")
    return tuple(meta)


# ---------------------------------------------------------------- the messages


def function(method: str, seq: int, kwargs: Mapping[str, Any]) -> Message:
    """A call of *method* with named arguments."""
    body = pack({"args": [], "kwargs": dict(kwargs)})
    return Message(kind=Kind.FUNCTION, method=method, seq=seq % _MAX_SEQ, body=body)


def result(request: Message, value: Any) -> Message:
    """The answer to *request*."""
    return _reply(request, Kind.RESULT, body=pack(value))


def failure(request: Message, name: str, text: str) -> Message:
    """The called function raised an exception of that name."""
    return _reply(request, Kind.FAILURE, meta=(name, text, ""))


def error(request: Message, name: str, text: str) -> Message:
    """The call could not be carried out, or broke."""
    return _reply(request, Kind.ERROR, meta=(name, text, ""))


def cancel(request: Message) -> Message:
    """The caller no longer waits for *request*."""
    return _reply(request, Kind.CANCEL)


def cancelled(request: Message) -> Message:
    """The called function was cancelled."""
    return _reply(request, Kind.CANCELLED)


def _reply(request: Message, kind: Kind, meta: tuple[Any, ...] = (), body: bytes | None = None) -> Message:
    return Message(kind=kind, method=request.method, okey=request.okey, seq=request.seq, meta=meta, body=body)


def arguments(request: Message) -> tuple[list[Any], dict[str, Any]]:
    """Positional and named arguments of a FUNCTION; `FrameError` when the body holds something else."""
    if request.body is None:
        return [], {}
    match unpack(request.body):
        case {"args": list(args), "kwargs": dict(kwargs)} if all(isinstance(name, str) for name in kwargs):
            return args, kwargs
    raise FrameError("not callosum arguments")


def value(reply: Message) -> Any:
    """The value of a RESULT (None without a body); `FrameError` when it is not msgpack."""
    return None if reply.body is None else unpack(reply.body)


def explanation(reply: Message) -> tuple[str, str]:
    """(exception's name, text) of a FAILURE or ERROR, however incomplete its metadata is."""
    name, text = (str(part) for part in (*reply.meta, "", "")[:2])
    return name, text
