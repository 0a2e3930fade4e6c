"""Frames that are no good HTTP/2 (RFC 9113): the stream is refused or the connection is, within bounds, and a
new connection works."""

import random
import socket
import struct
from contextlib import suppress

import attrs
import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from h2.errors import ErrorCodes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..harness import signed_headers
from .conftest import LIMITS, Shared, server_thread
from .wire import PROBLEM, head

NOISE = random.Random(13).randbytes
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 32
GET = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")]


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0, length: int = -1) -> bytes:
    length = len(payload) if length < 0 else length
    return struct.pack("!I", length)[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload


def block(fields) -> bytes:
    """A block of header fields, written plainly."""
    encoder = hpack.Encoder()
    return encoder.encode(fields, huffman=False)


def asking(fields=GET, *, stream: int = 1, flags: int = END_STREAM) -> bytes:
    return frame(HEADERS, block(fields), flags=flags | END_HEADERS, stream=stream)


def without(name: str):
    return [field for field in GET if field[0] != name]


def number(value: int) -> bytes:
    return struct.pack("!I", value)


def setting(code: int, value: int) -> bytes:
    return struct.pack("!HI", code, value)


def headers(block: bytes, *, flags: int = END_STREAM | END_HEADERS) -> bytes:
    return frame(HEADERS, block, flags=flags, stream=1)


HELLO = PREFACE + frame(SETTINGS)
BEGUN = HELLO + frame(HEADERS, block(GET), stream=1)
OPEN = asking(flags=0)
RESET = frame(RST, number(8), stream=1)
TUNNEL = [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:]]


def saying(length: int) -> bytes:
    """A request with so much body to come."""
    return asking([*GET, ("content-length", str(length))], flags=0)


#: Refused with the connection.
OF_CONNECTION = {
    "a preface that breaks off": PREFACE[:-3],
    "another preface": PREFACE[:-4] + b"XX\r\n" + frame(SETTINGS),
    "a preface and noise": PREFACE + NOISE(500),
    "no settings": PREFACE + frame(PING, bytes(8)),
    "a frame that is too long": HELLO + frame(DATA, bytes(20_000), stream=1),
    "a frame that says it is too long": HELLO + frame(DATA, b"x", stream=1, length=(1 << 24) - 1),
    "settings of odd length": HELLO + frame(SETTINGS, b"x"),
    "settings of a stream": HELLO + frame(SETTINGS, stream=1),
    "an acknowledgement with settings": HELLO + frame(SETTINGS, setting(3, 1), flags=ACK),
    "a window that is too large": HELLO + frame(SETTINGS, setting(4, 1 << 31)),
    "frames that are too small": HELLO + frame(SETTINGS, setting(5, 1)),
    "a push that is neither on nor off": HELLO + frame(SETTINGS, setting(2, 2)),
    "a ping of wrong length": HELLO + frame(PING, b"x"),
    "a ping of a stream": HELLO + frame(PING, bytes(8), stream=1),
    "a farewell": HELLO + frame(GOAWAY, number(0) + number(0)),
    "a farewell of wrong length": HELLO + frame(GOAWAY, b"x"),
    "a window that opens by nothing": HELLO + frame(WINDOW, number(0)),
    "a window that opens too far": HELLO + frame(WINDOW, number((1 << 31) - 1)) * 2,
    "a window of wrong length": HELLO + frame(WINDOW, b"x"),
    "headers of no stream": HELLO + asking(stream=0),
    "headers of an even stream": HELLO + asking(stream=2),
    "headers of a stream that is past": HELLO + asking(stream=5) + asking(stream=3),
    "data of no stream": HELLO + frame(DATA, b"x"),
    "data of a stream that is not open": HELLO + frame(DATA, b"x", stream=1),
    "a reset of no stream": HELLO + frame(RST, number(8)),
    "a reset of a stream that is not open": HELLO + frame(RST, number(8), stream=7),
    "a reset of wrong length": HELLO + asking(flags=0) + frame(RST, b"x", stream=1),
    "a promise": HELLO + asking(flags=0) + frame(PUSH, number(2) + block(GET), flags=END_HEADERS, stream=1),
    "a continuation of nothing": HELLO + frame(CONTINUATION, block(GET), flags=END_HEADERS, stream=1),
    "another frame within headers": BEGUN + frame(PING, bytes(8)),
    "continuations without end": BEGUN + frame(CONTINUATION, stream=1) * 5000,
    "large continuations without end": BEGUN + frame(CONTINUATION, block([("a", "x" * 9000)]), stream=1) * 60,
    "padding beyond the frame": HELLO + frame(HEADERS, b"\xff" + block(GET), flags=13, stream=1),
    "a block that is none": HELLO + frame(HEADERS, b"\xff" * 50, flags=5, stream=1),
    "a table that is too large": HELLO + headers(b"\x3f\xff\xff\xff\x0f" + block(GET)),
    "fields that grow": HELLO + frame(
        HEADERS, block(GET) + block([("a", "x" * 4000)]) + b"\xbe" * 10_000, flags=5, stream=1),
    "a field that is too long": HELLO + frame(HEADERS, block([*GET, ("a", "x" * 100_000)])[:16_000], stream=1)
    + frame(CONTINUATION, b"x" * 16_000, stream=1) * 7,
    "a dependence of wrong length": HELLO + frame(PRIORITY, b"x", stream=1),
    "a dependence of no stream": HELLO + frame(PRIORITY, number(3) + b"x"),
}  # fmt: skip
#: Refused for their stream (or, where h2 sees to it, with the connection).
OF_STREAM = {
    "no method": asking(without(":method")),
    "no scheme": asking(without(":scheme")),
    "no path": asking(without(":path")),
    "an empty path": asking([*without(":path"), (":path", "")]),
    "two paths": asking([*GET, (":path", "/x")]),
    "an unknown pseudo-field": asking([*GET, (":nonsense", "x")]),
    "a pseudo-field of replies": asking([*GET, (":status", "200")]),
    "a pseudo-field behind others": asking([("a", "b"), *GET]),
    "no fields": asking([]),
    "a name in capitals": asking([*GET, ("Upper", "x")]),
    "an empty name": asking([*GET, ("", "x")]),
    "a name with a colon": asking([*GET, ("a:b", "x")]),
    "a name with a space": asking([*GET, ("a b", "x")]),
    "a name in bytes": asking([*GET, (b"\xff", "x")]),
    "a value with a line feed": asking([*GET, ("a", "b\r\nx-injected: yes")]),
    "a value with a NUL": asking([*GET, ("a", "b\0c")]),
    "a value with spaces around": asking([*GET, ("a", " b ")]),
    "a field of HTTP/1": asking([*GET, ("connection", "close")]),
    "chunks": asking([*GET, ("transfer-encoding", "chunked")]),
    "an upgrade": asking([*GET, ("upgrade", "websocket")]),
    "other trailers": asking([*GET, ("te", "gzip")]),
    "another host": asking([*GET, ("host", "y")]),
    "a path in bytes": asking([*without(":path"), (":path", b"/\xe4")]),
    "a path with a space": asking([*without(":path"), (":path", "/a b")]),
    "a path without a slash": asking([*without(":path"), (":path", "x")]),
    "a path that is a star": asking([*without(":path"), (":path", "*")]),
    "a method in bytes": asking([*without(":method"), (":method", b"\xff")]),
    "an empty method": asking([*without(":method"), (":method", "")]),
    "a method with a space": asking([*without(":method"), (":method", "GET /x")]),
    "a tunnel": asking([(":method", "CONNECT"), (":authority", "example.com:1")]),
    "an unknown protocol": asking([(":method", "CONNECT"), (":protocol", "x"), *GET[1:]], flags=0),
    "a protocol without a tunnel": asking([*GET, (":protocol", "websocket")]),
    "a websocket without its version": asking(TUNNEL, flags=0),
    "a length that is a word": asking([*GET, ("content-length", "many")]),
    "two lengths": asking([*GET, ("content-length", "1"), ("content-length", "2")]),
    "a length that is too long": asking([*GET, ("content-length", "5")]),
    "more data than said": saying(1) + frame(DATA, b"xxxx", flags=1, stream=1),
    "less data than said": saying(9) + frame(DATA, b"xxxx", flags=1, stream=1),
    "data behind the end": asking() + frame(DATA, b"x", stream=1),
    "data behind a reset": OPEN + RESET + frame(DATA, b"x" * 900, stream=1) * 9,
    "headers behind a reset": OPEN + RESET + asking(),
    "headers twice": asking(flags=0) + asking(),
    "trailers that do not end": OPEN + headers(block([("a", "b")]), flags=END_HEADERS),
    "trailers with a path": asking(flags=0) + asking([(":path", "/x")]),
    "a stream that depends on itself": frame(
        HEADERS, number(1) + b"\0" + block(GET), flags=WITH_PRIORITY | 5, stream=1),
    "a window that opens too far": asking(flags=0) + frame(WINDOW, number((1 << 31) - 1), stream=1),
    "a window that opens by nothing": asking(flags=0) + frame(WINDOW, number(0), stream=1),
    "padding beyond the frame": asking(flags=0) + frame(DATA, b"\xffx", flags=PADDED, stream=1),
    "frames of unknown kind": frame(77, b"x" * 100, stream=3) * 100 + asking(without(":path")),
}  # fmt: skip


class Client:
    """A connection whose frames are bytes, and what it says read by h2."""

    def __init__(self, shared: Shared) -> None:
        self.host = shared.server.host
        self.socket = socket.create_connection(shared.address, timeout=5)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data: bytes) -> None:
        with suppress(OSError):  # it has heard enough
            self.socket.sendall(data)

    def frames(self):
        """(kind, flags, stream, payload) of all that comes."""
        received = b""
        while True:
            while len(received) >= 9 and len(received) >= (end := 9 + int.from_bytes(received[:3])):
                yield received[3], received[4], int.from_bytes(received[5:9]), received[9:end]
                received = received[end:]
            try:
                piece = self.socket.recv(65536)
            except ConnectionResetError:
                return
            if not piece:
                return
            received += piece

    def until(self, *kinds: int, stream: int = 0):
        """The first frame of one of these kinds; None at the end."""
        return next((f for f in self.frames() if f[0] in kinds and f[2] == stream), None)


def works(shared: Shared) -> bool:
    """Whether a new connection is served: one that does all right."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    fields = signed_headers("GET", "/auth?echo=good", shared.server.host)
    fields = {
        ":method": "GET",
        ":scheme": "http",
        ":path": "/auth?echo=good",
        ":authority": shared.server.host,
    } | {name.lower(): value for name, value in fields.items()}
    connection.send_headers(1, list(fields.items()), end_stream=True)
    with Client(shared) as client:
        client.send(connection.data_to_send())
        while True:
            for event in connection.receive_data(client.socket.recv(65536)):
                if isinstance(event, h2.events.ResponseReceived):
                    return dict(event.headers)[":status"] == "200"


@pytest.fixture(autouse=True)
def new_connections_work(shared):
    yield
    assert works(shared)


@pytest.mark.parametrize("sent", OF_CONNECTION.values(), ids=OF_CONNECTION)
def test_a_connection_is_refused(shared, sent):
    with Client(shared) as client:
        client.send(sent)
        client.socket.shutdown(socket.SHUT_WR)
        kinds = [kind for kind, *_ in client.frames()]
    assert HEADERS not in kinds


@pytest.mark.parametrize("sent", OF_STREAM.values(), ids=OF_STREAM)
def test_a_stream_is_refused(shared, sent):
    with Client(shared) as client:
        client.send(HELLO + sent)
        kind, _, stream, payload = next(f for f in client.frames() if f[0] in (HEADERS, RST, GOAWAY))
        if kind == HEADERS:
            fields = dict(hpack.Decoder().decode(payload))
            assert "x-injected" not in fields
            assert fields[":status"] in ("400", "501")
        assert stream == (0 if kind == GOAWAY else 1)


ANSWERED = {
    "a tunnel": (OF_STREAM["a tunnel"], "501"),
    "a path in bytes": (OF_STREAM["a path in bytes"], "400"),
    "a method in bytes": (OF_STREAM["a method in bytes"], "400"),
    "a path without a slash": (OF_STREAM["a path without a slash"], "400"),
    "a websocket without its version": (OF_STREAM["a websocket without its version"], "400"),
    "an unknown protocol": (OF_STREAM["an unknown protocol"], "501"),
}


@pytest.mark.parametrize(("sent", "status"), ANSWERED.values(), ids=ANSWERED)
def test_a_stream_is_refused_in_words_and_the_next_is_served(shared, sent, status):
    with Client(shared) as client:
        client.send(HELLO + sent)
        decoder = hpack.Decoder()
        fields, ended = None, False
        for kind, flags, stream, payload in client.frames():
            if kind == HEADERS and stream == 1:
                fields = dict(decoder.decode(payload))
            ended = ended or (kind in (DATA, HEADERS) and stream == 1 and flags & END_STREAM)
            if ended:
                break
        assert fields[":status"] == status
        assert fields["content-type"] == PROBLEM
        client.send(asking(stream=3))
        assert client.until(HEADERS, stream=3) is not None


FLOODS = {
    "requests that are reset": b"".join(
        asking(stream=n, flags=0) + frame(RST, number(8), stream=n) for n in range(1, 20_001, 2)
    ),
    "data of no length": asking(flags=0) + frame(DATA, stream=1) * 20_000,
    "settings": frame(SETTINGS, setting(4, 65535)) * 20_000,
    "pings": frame(PING, bytes(8)) * 20_000,
    "dependences": b"".join(frame(PRIORITY, number(0) + b"x", stream=n) for n in range(1, 40_001, 2)),
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_is_told_to_calm_down(shared, flood):
    with Client(shared) as client:
        client.send(HELLO + flood)
        farewell = client.until(GOAWAY)
    assert farewell is None or int.from_bytes(farewell[3][4:8]) == ErrorCodes.ENHANCE_YOUR_CALM


def test_a_client_that_cancels_now_and_then_is_left_alone(shared):
    with Client(shared) as client:
        client.send(HELLO)
        for n in range(1, 200, 2):
            client.send(asking(stream=n, flags=0) + frame(RST, number(8), stream=n))
        client.send(asking(stream=201))
        assert client.until(HEADERS, stream=201) is not None


H2C = {"Host": "x", "Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": ""}
UPGRADES = {
    "settings that are none": ("GET / HTTP/1.1", H2C | {"HTTP2-Settings": "!!!"}),
    "settings of odd length": ("GET / HTTP/1.1", H2C | {"HTTP2-Settings": "AAMA"}),
    "settings out of range": ("GET / HTTP/1.1", H2C | {"HTTP2-Settings": "AAT_____"}),
    "settings in bytes": ("GET / HTTP/1.1", H2C | {"HTTP2-Settings": "\xff"}),
    "a tunnel": ("CONNECT x:1 HTTP/1.1", H2C),
    "a target that is no path": ("GET x HTTP/1.1", H2C),
    "a star": ("OPTIONS * HTTP/1.1", H2C),
    "a name in bytes": ("GET / HTTP/1.1", H2C | {"A": "\xff"}),
}


@pytest.mark.parametrize(("line", "fields"), UPGRADES.values(), ids=UPGRADES)
def test_an_upgrade_that_is_wrong(shared, line, fields):
    with Client(shared) as client:
        client.send(head(line, fields))
        client.socket.shutdown(socket.SHUT_WR)
        received = b""
        while piece := client.socket.recv(65536):
            received += piece
    assert received.startswith((b"HTTP/1.1 101", b"HTTP/1.1 4", b"HTTP/1.1 5", b"HTTP/1.1 200"))
    assert not received.startswith(b"HTTP/1.1 500")


FRAME = st.builds(
    frame,
    st.integers(0, 11),
    st.one_of(st.binary(max_size=40), st.just(block(GET)), st.integers(0, 2**32 - 1).map(number)),
    flags=st.sampled_from([0, 1, 4, 5, 8, 13, 32, 37, 255]),
    stream=st.sampled_from([0, 1, 1, 2, 3, 5, 2**31 - 1, 2**31]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(FRAME, max_size=12))
def test_any_frames(shared, frames):
    with Client(shared) as client:
        client.send(HELLO + b"".join(frames))
        client.socket.shutdown(socket.SHUT_WR)
        for _ in client.frames():
            pass


@pytest.mark.parametrize("wrong", [OF_STREAM["a tunnel"], OF_STREAM["a websocket without its version"]])
def test_a_refused_stream_leaves_its_connection_idle(wrong):
    """An idle connection is closed in time; one that was taken for busy would stay for good."""
    with server_thread(attrs.evolve(LIMITS, keep_alive_seconds=0.2)) as shared, Client(shared) as client:
        client.send(HELLO + wrong)
        for _ in client.frames():
            pass  # ends when the server closes
        assert works(shared)
