"""Parameters and frames of terminals (api-sessions §5.8)."""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Annotated, Any

import attrs

from ...domain.errors import InvalidParameters
from ...domain.ids import is_run_id
from ...wire.calls import MAX_SIDE
from ...wire.records import GAP, STDOUT, Record
from ...wire.rpc import RunStatus
from ..decoding import INVALID, Param
from .runs import LARGEST_OFFSET


def _name(text: str) -> None:
    if not is_run_id(text):
        raise ValueError("value is not 1 to 64 letters, digits, dots, underscores and dashes")


def _offset(offset: int) -> None:
    if not 0 <= offset <= LARGEST_OFFSET:
        raise ValueError("value is not an offset")


@attrs.frozen(kw_only=True)
class AttachTerminal:
    """The query of the terminal websocket. A client that gives none of these is a legacy one."""

    terminal: Annotated[str | None, Param("terminal", check=_name)] = None
    offset: Annotated[int | None, Param("offset", check=_offset)] = None
    #: Whose input it is: counted under this name, over connections.
    client: Annotated[str | None, Param("client", check=_name)] = None

    def __attrs_post_init__(self) -> None:
        if self.offset is not None and self.terminal is None:
            raise InvalidParameters(INVALID, {"offset": "is for a terminal that is named"})


# ---------------------------------------------------------------- from the client


@attrs.frozen(kw_only=True)
class Typed:
    """``offset``: the position of the data in all that the client types; None where it does not count."""

    data: bytes
    offset: int | None


@attrs.frozen(kw_only=True)
class Resized:
    rows: int
    columns: int


class Pinged:
    """A sign of life."""


class RestartAsked:
    """The session shall be started anew."""


class BadFrame(Exception):
    """The frame says nothing; the message tells why."""


def parse_frame(message: str | bytes) -> Typed | Resized | Pinged | RestartAsked:
    """What the client's frame says. `BadFrame`."""
    try:
        frame = json.loads(message) if isinstance(message, str) else None
    except (ValueError, RecursionError):
        frame = None
    match frame:
        case {"type": "stdin", "chars": str(chars), **rest} if rest.keys() <= {"offset"}:
            return Typed(data=_bytes(chars), offset=_position(rest.get("offset")))
        case {"type": "stdin"}:
            raise BadFrame("stdin has chars (base64), and may have an offset.")
        case {"type": "resize", "rows": rows, "cols": columns, **rest} if not rest:
            if not (_is_side(rows) and _is_side(columns)):
                raise BadFrame(f"rows and cols are integers from 1 to {MAX_SIDE}.")
            return Resized(rows=rows, columns=columns)
        case {"type": "resize"}:
            raise BadFrame("resize has rows and cols.")
        case {"type": "ping"}:
            return Pinged()
        case {"type": "restart"}:
            return RestartAsked()
        case dict():
            raise BadFrame("type is one of stdin, resize, ping, restart.")
    raise BadFrame("Frames are JSON objects, as text.")


def _bytes(chars: str) -> bytes:
    try:
        return base64.b64decode(chars, validate=True)
    except (binascii.Error, ValueError):
        raise BadFrame("chars is not base64.") from None


def _position(offset: Any) -> int | None:
    if offset is None or (type(offset) is int and 0 <= offset <= LARGEST_OFFSET):
        return offset
    raise BadFrame("offset is an integer from 0.")


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_SIDE


# ---------------------------------------------------------------- to the client


def out_frame(records: Sequence[Record], *, counted: bool) -> dict[str, Any]:
    """What the terminal shows; with ``next_offset`` for clients that come back there."""
    frame = {"type": "out", "data": base64.b64encode(b"".join(map(_shown, records))).decode()}
    return frame | {"next_offset": records[-1].end} if counted else frame


def _shown(record: Record) -> bytes:
    if record.stream == GAP:
        return f"\r\n[{record.gap} bytes of output were dropped here]\r\n".encode()
    return record.data if record.stream == STDOUT else b""


def attached_frame(session_id: str, run_id: str, offset: int, typed: int) -> dict[str, Any]:
    """The first frame: which terminal it is, where its output begins, what it has taken of the client."""
    return {
        "type": "attached",
        "session_id": session_id,
        "terminal": run_id,
        "offset": offset,
        "input": typed,
    }


def ack_frame(typed: int) -> dict[str, Any]:
    """So many bytes of the client's input were taken in all."""
    return {"type": "ack", "input": typed}


def exit_frame(run: RunStatus) -> dict[str, Any]:
    """The last frame."""
    return {"type": "exit", "state": str(run.state), "exit_code": run.exit_code, "reason": run.reason}
