"""Bytes that are no good frames of a websocket (RFC 6455): each ends it with the code that tells why."""

import os
import struct

import attrs
import pytest

from backendai_mgr.wire.rpc import RunSpec
from tests.fakes.services import FakeRun

from .conftest import LIMITS, Shared, server_thread
from .endpoints import HANDSHAKE
from .wire import Connection, Request

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
MOST = 100_000


@pytest.fixture(scope="module")
def shared():
    with server_thread(attrs.evolve(LIMITS, message_bytes=MOST)) as shared:
        shared.server.runs.runs["r1"] = FakeRun("r1", RunSpec(code="1"))
        yield shared


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    length: int = -1,
) -> bytes:
    """A frame; ``length`` is what it says of its payload."""
    length = len(payload) if length < 0 else length
    head = bytes([fin << 7 | reserved << 4 | opcode])
    mask = masked << 7
    if length < 126:
        head += bytes([mask | length])
    elif length < 1 << 16:
        head += bytes([mask | 126]) + struct.pack("!H", length)
    else:
        head += bytes([mask | 127]) + struct.pack("!Q", length)
    if not masked:
        return head + payload
    key = b"\x01\x02\x03\x04"
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


BEGUN = frame(TEXT, b"x" * 999, fin=False)
GOOD = frame(TEXT, b'{"ack": 1}')
#: name: (what is sent, the code that it is closed with).
FRAMES = {
    "a frame without a mask": (frame(TEXT, b"x", masked=False), 1002),
    "the first reserved bit": (frame(TEXT, b"x", reserved=4), 1002),
    "the second reserved bit": (frame(TEXT, b"x", reserved=2), 1002),
    "the third reserved bit": (frame(TEXT, b"x", reserved=1), 1002),
    "a reserved opcode": (frame(3, b"x"), 1002),
    "a reserved opcode of control": (frame(11, b"x"), 1002),
    "a continuation of nothing": (frame(0, b"x"), 1002),
    "a message within another": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"x"), 1002),
    "a ping in pieces": (frame(PING, b"x", fin=False), 1002),
    "a ping that is too long": (frame(PING, b"x" * 126), 1002),
    "a pong that is too long": (frame(PONG, b"x" * 126), 1002),
    "a length beyond 63 bits": (frame(BINARY, length=1 << 63), 1002),
    "a length written too long": (b"\x81\xff" + struct.pack("!Q", 1) + b"\1\2\3\4x", 1002),
    "a length written a little too long": (b"\x81\xfe\x00\x01" + b"\1\2\3\4x", 1002),
    "text that is not UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "text that breaks off in a character": (frame(TEXT, b"\xe2\x82"), 1007),
    "text with a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "text that is wrong in a later piece": (frame(TEXT, b"\xe2", fin=False) + frame(0, b"x"), 1007),
    "a close code below all": (closing(999), 1002),
    "a close code that means none": (closing(1005), 1002),
    "a close code that means a drop": (closing(1006), 1002),
    "a reserved close code": (closing(1004), 1002),
    "an unassigned close code": (closing(2999), 1002),
    "a close code above all": (closing(5000), 1002),
    "a close frame of one byte": (frame(CLOSE, b"x"), 1002),
    "a close reason that is not UTF-8": (closing(1000, b"\xff"), 1007),
    "a close frame that is too long": (frame(CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "a message that is too long": (frame(TEXT, b"x" * (MOST + 1)), 1009),
    "pieces that are too many": (BEGUN + frame(0, b"x" * 999, fin=False) * 200, 1009),
    "a good close": (closing(1000), 1000),
    "a close of one's own": (closing(4999), 4999),
    "a close without a code": (frame(CLOSE), 1005),
    "a frame after a close": (closing(1000) + GOOD + frame(TEXT, b"\xff") + frame(PING), 1000),
    "two closes": (closing(1000) + closing(1000), 1000),
    "noise": (b"\xf5" + os.urandom(1000), 1002),
    "another protocol": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
}  # fmt: skip
TARGETS = [
    "/stream/session/my-session/execute",
    "/stream/session/my-session/runs/r1",
    "/stream/session/my-session/pty",
]


def upgraded(shared: Shared, target: str, **headers: str) -> Connection:
    connection = shared.connect()
    request = Request(method="GET", target=target, headers=HANDSHAKE | headers)
    reply = connection.ask(request)
    assert reply.status == 101
    assert "sec-websocket-extensions" not in reply.headers
    return connection


def frames_in(data: bytes):
    """(opcode, payload) of the server's frames; they are whole and have no mask."""
    while data:
        opcode, length = data[0] & 15, data[1]
        assert data[0] & 0xF0 == 0x80
        at = 2
        if length == 126:
            (length,), at = struct.unpack("!H", data[2:4]), 4
        assert length < 126 or at == 4
        yield opcode, data[at : at + length]
        data = data[at + length :]


def code_of(received: bytes) -> int:
    """The code of the close frame, which is the last."""
    *_, (opcode, payload) = frames_in(received)
    assert opcode == CLOSE
    return struct.unpack("!H", payload[:2])[0] if payload else 1005


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("sent", "code"), FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("pieces", [1, 3], ids=["at once", "in pieces"])
def test_frames(shared, target, sent, code, pieces):
    with upgraded(shared, target) as connection:
        for at in range(0, len(sent), step := -(-len(sent) // pieces)):
            try:
                connection.send(sent[at : at + step])
            except OSError:
                break  # it has said enough
        assert code_of(connection.rest()) == code
    assert shared.server.runs.runs["r1"].interrupts == 0
    with upgraded(shared, TARGETS[1]) as connection:
        connection.send(GOOD + closing(1000))
        assert code_of(connection.rest()) == 1000


def test_compression_is_not_agreed_to(shared):
    """Else a few bytes would become a thousand times as many before they could be refused."""
    offer = "permessage-deflate; client_max_window_bits"
    with upgraded(shared, TARGETS[1], **{"Sec-WebSocket-Extensions": offer}) as connection:
        connection.send(frame(TEXT, b"\xaa\x00", reserved=4))
        assert code_of(connection.rest()) == 1002


def test_what_follows_a_message_that_is_too_long_is_not_kept(shared):
    with upgraded(shared, TARGETS[1]) as connection:
        connection.send(frame(TEXT, b"x" * MOST, fin=False))
        piece = frame(0, b"x" * 60_000, fin=False)
        with pytest.raises(OSError):  # noqa: PT011 - how it is hung up on depends on the moment
            connection.send(piece * 1000)
