"""Messages on a stream socket: a length (4 bytes, big endian), then a JSON object in UTF-8.

Neither side of any of our sockets is trusted to keep to it: what cannot be read is a `BadMessage`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

MAX_MESSAGE = 16 << 20
_LENGTH = 4


class BadMessage(Exception):
    """The peer does not speak this protocol."""


def encode(message: dict[str, Any]) -> bytes:
    body = json.dumps(message, separators=(",", ":")).encode()
    return len(body).to_bytes(_LENGTH, "big") + body


class Decoder:
    """Cuts what arrives into messages; keeps at most one unfinished message of `max_message` bytes."""

    def __init__(self, max_message: int = MAX_MESSAGE) -> None:
        self._max_message = max_message
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Yield the messages completed by `data`.  Raises BadMessage; the decoder is useless after that."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH:
            length = int.from_bytes(self._buffer[:_LENGTH], "big")
            if length > self._max_message:
                raise BadMessage(f"message of {length} bytes")
            if len(self._buffer) < _LENGTH + length:
                return
            body = bytes(self._buffer[_LENGTH : _LENGTH + length])
            del self._buffer[: _LENGTH + length]
            yield _parse(body)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadMessage("not JSON") from error
    if not isinstance(message, dict):
        raise BadMessage("not an object")
    return message
