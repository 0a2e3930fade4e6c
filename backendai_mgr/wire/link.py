"""What the agent link carries beside RPC: reports (``EVENTS``), output (``STREAM``) and connections to
services (``TUNNEL``), and how it is framed.

Two frames each: the type, and a msgpack map with the key ``op`` and the attributes of one of the classes
here. A peer that speaks plain callosum ignores these types.

*Cost* is what output counts against credit: its payload plus `RECORD_COST` for each record, so that a flood
of tiny records cannot take more memory than was granted. Credit and cost are in bytes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from uuid import UUID

import attrs
from attrs.validators import ge, le, max_len

from .call import from_wire, to_wire
from .callosum import MAX_BODY, FrameError, pack, unpack
from .records import Record
from .reports import Report
from .rpc import RunOrder, RunStatus

EVENTS = b"EVENTS"
STREAM = b"STREAM"
TUNNEL = b"TUNNEL"

#: What a record costs beside its payload.
RECORD_COST = 64
#: Most cost of one `Data` message, so that nothing behind it waits for long.
MAX_DATA = 256 * 1024
#: Most credit of one stream, and of all streams of a link together.
STREAM_CREDIT = 1024 * 1024
LINK_CREDIT = 4 * 1024 * 1024
#: Bytes of a tunnel that may be on their way or wait, in one direction; and those of one message.
TUNNEL_CREDIT = 256 * 1024
MAX_PIECE = 64 * 1024


@attrs.frozen(kw_only=True)
class LinkMessage:
    """``frame`` and ``op`` say which message it is."""

    frame: ClassVar[bytes]
    op: ClassVar[str]


# ---------------------------------------------------------------- reports


@attrs.frozen(kw_only=True)
class Subscribe(LinkMessage):
    """Manager: send me reports, and no longer to those of lower epochs. Repeating it is harmless."""

    frame, op = EVENTS, "subscribe"
    epoch: int
    owner: str


@attrs.frozen(kw_only=True)
class Ack(LinkMessage):
    """Manager: the report ``seq`` is stored, and with it the end of these [kernel id, incarnation]."""

    frame, op = EVENTS, "ack"
    epoch: int
    seq: int
    ended: list[tuple[UUID, int]]


@attrs.frozen(kw_only=True)
class Refused(LinkMessage):
    """Agent: somebody subscribed under the higher ``epoch``."""

    frame, op = EVENTS, "refused"
    epoch: int


@attrs.frozen(kw_only=True)
class Reported(LinkMessage):
    """Agent: this is my state."""

    frame, op = EVENTS, "report"
    report: Report


# ---------------------------------------------------------------- output


@attrs.frozen(kw_only=True)
class Open(LinkMessage):
    """Manager: send the run's output from ``offset`` on, as far as ``credit`` reaches; start the run before
    if there is an ``order``."""

    frame, op = STREAM, "open"
    sid: int
    kernel_id: UUID
    run_id: str
    offset: int = attrs.field(validator=ge(0))
    credit: int = attrs.field(validator=ge(0))
    order: RunOrder | None = None


@attrs.frozen(kw_only=True)
class Credit(LinkMessage):
    """Manager: so many ``bytes`` more. Zero asks whether the stream is there still (`Failed` says no)."""

    frame, op = STREAM, "credit"
    sid: int
    bytes: int = attrs.field(validator=ge(0))


@attrs.frozen(kw_only=True)
class Close(LinkMessage):
    """Manager: no more of this stream."""

    frame, op = STREAM, "close"
    sid: int


@attrs.frozen(kw_only=True)
class Data(LinkMessage):
    """Agent: the next records; what follows them is at ``next``."""

    frame, op = STREAM, "data"
    sid: int
    records: list[Record]
    next: int = attrs.field(validator=ge(0))


@attrs.frozen(kw_only=True)
class End(LinkMessage):
    """Agent: the run has ended like this and all its output was sent. The stream is gone."""

    frame, op = STREAM, "end"
    sid: int
    run: RunStatus


@attrs.frozen(kw_only=True)
class Failed(LinkMessage):
    """Agent: the stream is gone. ``code`` as in `AgentRefusal`, or one of the following two."""

    frame, op = STREAM, "error"
    sid: int
    code: str
    message: str


#: The agent does not know that stream: it restarted, or gave the peer up. Opening it again helps.
NO_SUCH_STREAM = "no-such-stream"
#: The agent broke while reading.
INTERNAL = "internal"

# ---------------------------------------------------------------- tunnels


@attrs.frozen(kw_only=True)
class Dial(LinkMessage):
    """Manager: connect to this port inside of the kernel. Answered by `Dialled` or `Hangup`."""

    frame, op = TUNNEL, "dial"
    sid: int
    kernel_id: UUID
    port: int = attrs.field(validator=[ge(1), le(65535)])


@attrs.frozen(kw_only=True)
class Dialled(LinkMessage):
    """Agent: the tunnel is there. Each side may send `TUNNEL_CREDIT` bytes."""

    frame, op = TUNNEL, "dialled"
    sid: int


@attrs.frozen(kw_only=True)
class Piece(LinkMessage):
    """Either: the bytes at ``offset`` of this direction; none of them is its end."""

    frame, op = TUNNEL, "piece"
    sid: int
    offset: int = attrs.field(validator=ge(0))
    data: bytes = attrs.field(validator=max_len(MAX_PIECE))


@attrs.frozen(kw_only=True)
class Taken(LinkMessage):
    """Either: all before ``offset`` was taken on; as much again may be sent. Repeated as a sign of life."""

    frame, op = TUNNEL, "taken"
    sid: int
    offset: int = attrs.field(validator=ge(0))


@attrs.frozen(kw_only=True)
class Hangup(LinkMessage):
    """Either: the tunnel is gone. ``code``: one of those below, or as in `AgentRefusal`."""

    frame, op = TUNNEL, "hangup"
    sid: int
    code: str
    message: str = ""


#: Why a tunnel ends: its user left, or both directions have ended; nothing listens there; it broke.
CLOSED, CONNECTION_REFUSED, BROKEN = "closed", "connection-refused", "broken"

_MESSAGES: Mapping[tuple[bytes, str], type[LinkMessage]] = {
    (kind.frame, kind.op): kind
    for kind in (
        *(Subscribe, Ack, Refused, Reported, Open, Credit, Close, Data, End, Failed),
        *(Dial, Dialled, Piece, Taken, Hangup),
    )
}


def encode(message: LinkMessage) -> list[bytes]:
    """The message's two frames; `FrameError` when it is too large."""
    if isinstance(message, Data):
        members = {
            "sid": message.sid,
            "records": [record.pack() for record in message.records],
            "next": message.next,
        }
    else:
        members = to_wire(message)
    body = pack({"op": message.op, **members})
    if len(body) > MAX_BODY:
        raise FrameError(f"{message.op} has {len(body)} bytes, {MAX_BODY} may travel")
    return [message.frame, body]


def decode(frames: Sequence[bytes]) -> LinkMessage:
    """The inverse of `encode`; `FrameError` for anything else."""
    if len(frames) != 2 or len(frames[1]) > MAX_BODY:
        raise FrameError("not a message of two frames of the allowed size")
    members = unpack(frames[1])
    op = members.get("op") if isinstance(members, dict) else None
    kind = _MESSAGES.get((frames[0], op)) if isinstance(op, str) else None
    if kind is None:
        raise FrameError("unknown type or op")
    if kind is Data:
        return _data(members)
    return from_wire(members, kind)


def _data(members: dict[str, Any]) -> Data:
    match members:
        case {"sid": int(sid), "records": list(records), "next": int(after)}:
            try:
                return Data(sid=sid, records=[Record.unpack(record) for record in records], next=after)
            except ValueError as error:
                raise FrameError(f"data: {error}") from error
    raise FrameError("not a data message")


# ---------------------------------------------------------------- credit


def cost(record: Record) -> int:
    """What *record* counts against credit."""
    return len(record.data) + RECORD_COST


def take(records: Sequence[Record], credit: int) -> tuple[list[Record], list[Record]]:
    """(as many of *records* as *credit* pays for, the rest). The last one taken may be a part."""
    for index, record in enumerate(records):
        if cost(record) <= credit:
            credit -= cost(record)
            continue
        taken, rest = list(records[:index]), list(records[index:])
        payload = credit - RECORD_COST
        if payload > 0:  # only a record with data can cost that much
            taken.append(attrs.evolve(record, data=record.data[:payload]))
            rest[0] = attrs.evolve(record, offset=record.offset + payload, data=record.data[payload:])
        return taken, rest
    return list(records), []


def merge(records: Sequence[Record]) -> list[Record]:
    """The same output in as few records as possible; a merged record has the time of its first piece."""
    merged: list[Record] = []
    pieces: list[bytes] = []
    for record in records:
        last = merged[-1] if merged else None
        joins = (
            last is not None
            and record.stream == last.stream
            and not (last.gap or record.gap)
            and record.offset == last.offset + sum(map(len, pieces))
        )
        if not joins:
            _settle(merged, pieces)
            merged.append(record)
        pieces.append(record.data)
    _settle(merged, pieces)
    return merged


def _settle(merged: list[Record], pieces: list[bytes]) -> None:
    if len(pieces) > 1:
        merged[-1] = attrs.evolve(merged[-1], data=b"".join(pieces))
    pieces.clear()
