"""Bytes that are no good HTTP/1.1: how bodies are framed, heads, and what is something else altogether.

Each is refused in words or hung up on, never answered as two requests; another connection works.
"""

import random
import socket
from contextlib import suppress

import pytest

from .conftest import Shared
from .endpoints import FORM, HANDSHAKE
from .wire import PROBLEM, Request

NOISE = random.Random(11).randbytes
ECHO = b'{"echo": "good"}'


def body(framing: str, sent: bytes, version: str = "1.1", target: str = "/auth") -> bytes:
    return f"POST {target} HTTP/{version}\r\nHost: x\r\n{framing}\r\n\r\n".encode("latin-1") + sent


def get(*lines: str, start: str = "GET / HTTP/1.1") -> bytes:
    return "\r\n".join([start, *lines, "", ""]).encode("latin-1")


CHUNKED = "Transfer-Encoding: chunked"
SMUGGLED = get("Host: smuggled")
#: name: what is sent. Each is one request at most, so that a second reply would be to a smuggled one.
FRAMING = {
    "a length below zero": body("Content-Length: -5", ECHO),
    "a length with a sign": body("Content-Length: +16", ECHO),
    "a length that is a word": body("Content-Length: all", ECHO),
    "a length in hex": body("Content-Length: 0x10", ECHO),
    "a length in other digits": body("Content-Length: \xb2", ECHO),
    "a length that is empty": body("Content-Length: ", ECHO),
    "a length beyond all": body("Content-Length: " + "9" * 30, ECHO),
    "two lengths": body("Content-Length: 0\r\nContent-Length: 16", SMUGGLED),
    "two lengths in one": body("Content-Length: 0, 16", SMUGGLED),
    "a length and chunks": body(f"Content-Length: 16\r\n{CHUNKED}", b"0\r\n\r\n" + SMUGGLED),
    "chunks and a length": body(f"{CHUNKED}\r\nContent-Length: 0", b"0\r\n\r\n" + SMUGGLED),
    "chunks in HTTP/1.0": body(CHUNKED, b"0\r\n\r\n" + SMUGGLED, "1.0"),
    "chunks twice": body("Transfer-Encoding: chunked, chunked", b"0\r\n\r\n" + SMUGGLED),
    "chunks and another coding": body("Transfer-Encoding: gzip, chunked", b"0\r\n\r\n" + SMUGGLED),
    "another coding after chunks": body("Transfer-Encoding: chunked, identity", b"0\r\n\r\n" + SMUGGLED),
    "another coding": body("Transfer-Encoding: xchunked", SMUGGLED),
    "two codings": body(f"{CHUNKED}\r\nTransfer-Encoding: identity", b"0\r\n\r\n" + SMUGGLED),
    "a coding after a tab": body("Transfer-Encoding:\x0bchunked", b"0\r\n\r\n" + SMUGGLED),
    "a space before the colon": body("Transfer-Encoding : chunked", b"0\r\n\r\n" + SMUGGLED),
    "a length after a space": body("Content-Length : 16", ECHO),
    "a folded coding": body("Transfer-Encoding:\r\n chunked\r\nContent-Length: 0", SMUGGLED),
    "a chunk of no size": body(CHUNKED, b"zz\r\n" + ECHO),
    "a chunk below zero": body(CHUNKED, b"-1\r\n" + ECHO),
    "a chunk of a huge size": body(CHUNKED, b"f" * 30 + b"\r\n" + ECHO),
    "a chunk's size with a prefix": body(CHUNKED, b"0x10\r\n" + ECHO),
    "a chunk longer than its size": body(CHUNKED, b"1\r\nabc\r\n0\r\n\r\n"),
    "a chunk without its end": body(CHUNKED, b"10\r\n" + ECHO + b"0\r\n\r\n"),
    "a chunk's extension without end": body(CHUNKED, b"1;" + b"a" * 100_000),
    "trailers without end": body(CHUNKED, b"0\r\n" + b"A: b\r\n" * 20_000),
    "a trailer that is none": body(CHUNKED, b"0\r\n a\r\n\r\n"),
}
HEADS = {
    "no host": get(),
    "two hosts": get("Host: a", "Host: b"),
    "no version": b"GET /\r\n\r\n",
    "HTTP/0.9": b"GET / HTTP/0.9\r\n\r\n",
    "HTTP/9.9": get("Host: x", start="GET / HTTP/9.9"),
    "HTTP/2 without a preface": get("Host: x", start="GET / HTTP/2.0"),
    "a word for a version": get("Host: x", start="GET / HTTPS"),
    "spaces in the line": get("Host: x", start="GET  / HTTP/1.1"),
    "spaces in the target": get("Host: x", start="GET /a b HTTP/1.1"),
    "no target": get("Host: x", start="GET HTTP/1.1"),
    "a NUL in the target": get("Host: x", start="GET /\0 HTTP/1.1"),
    "bytes in the target": get("Host: x", start="GET /\xe4 HTTP/1.1"),
    "a method with a NUL": get("Host: x", start="G\0T / HTTP/1.1"),
    "a method with a slash": get("Host: x", start="G/T / HTTP/1.1"),
    "a field without a colon": get("Host: x", "Nonsense"),
    "a field without a name": get("Host: x", ": value"),
    "a name with a space": get("Host: x", "A b: c"),
    "a name with bytes": get("Host: x", "\xe4: c"),
    "a value with a NUL": get("Host: x", "A: b\0c"),
    "a value with a return": get("Host: x", "A: b\rX-Injected: yes"),
    "a continued first field": b"GET / HTTP/1.1\r\n A: b\r\nHost: x\r\n\r\n",
    "a line without end": b"GET /" + b"x" * 200_000,
    "a target that is too long": get("Host: x", start=f"GET /{'x' * 100_000} HTTP/1.1"),
    "a field that is too long": get("Host: x", "A: " + "x" * 100_000),
    "a name that is too long": get("Host: x", "A" * 100_000 + ": x"),
    "thousands of fields": get("Host: x", *["A: b"] * 30_000),
    "a cookie of all sizes": get("Host: x", "Cookie: " + "; ".join(f"a{n}=b" for n in range(9000))),
}
OTHERS = {
    "zeros": bytes(5000),
    "noise": NOISE(5000),
    "a greeting of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + NOISE(500),
    "a greeting of SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a greeting of SMTP": b"EHLO example.com\r\n",
    "a question to Redis": b"*1\r\n$4\r\nPING\r\n",
    "a question to PostgreSQL": b"\0\0\0\x08\x04\xd2\x16\x2f",
    "a greeting of ZeroMQ": b"\xff" + bytes(8) + b"\x01\x7f\x03\0NULL" + bytes(48),
    "a proxy's preface": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n" + SMUGGLED,
    "a proxy's binary preface": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + NOISE(12),
    "line feeds": b"\n" * 100_000,
}
ROWS = FRAMING | HEADS | OTHERS


@pytest.fixture
def other_connection_works(shared: Shared):
    yield
    with shared.connect() as connection:
        reply = connection.ask(Request(method="GET", target="/auth?echo=good"))
    assert reply.status == 200


@pytest.mark.parametrize("data", ROWS.values(), ids=ROWS)
def test_what_is_no_request(shared, other_connection_works, data):
    with shared.connect() as connection:
        received = answer_to(connection, data)
    if received:
        lines, _, rest = received.partition(b"\r\n\r\n")
        status = int(lines.split()[1])
        assert status in (400, 408, 413, 431, 501, 505), received
        assert b"content-type: " + PROBLEM.encode() in lines.lower()
        assert b"connection: close" in lines.lower() or status == 431  # after a head that was whole
        assert b"x-injected" not in lines.lower()
        assert b"HTTP/1.1 " not in rest


def answer_to(connection, data):
    """All that the server says to these bytes, and to the end after them if it waits for more."""
    received = b""
    with suppress(OSError):  # it has hung up
        connection.send(data)
        connection.socket.settimeout(0.3)
        with suppress(TimeoutError):
            received = connection.socket.recv(65536)
        connection.socket.shutdown(socket.SHUT_WR)
    connection.socket.settimeout(5)
    return received + connection.rest()


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("length", [len(ECHO) - 3, 0])
def test_a_length_that_is_too_short(shared, other_connection_works, length, pieces):
    """The rest is no request; what came with it was answered for what it was."""
    request = Request(
        method="POST",
        target="/auth",
        body=ECHO + b"\r\n\r\n",
        content_type="application/json",
        headers={"Content-Length": str(length)},
    )
    data = request.encode("{}:{}".format(*shared.address))
    with shared.connect() as connection:
        for at in range(0, len(data), step := -(-len(data) // pieces)):
            connection.send(data[at : at + step])
        received = connection.rest()
    assert [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]] == [400, 400]


@pytest.mark.parametrize("framing", ["Content-Length: 50", CHUNKED])
@pytest.mark.parametrize("target", ["/auth", "/session/my-session/upload", "/nowhere", "/"])
def test_a_body_that_breaks_off(shared, other_connection_works, target, framing):
    with shared.connect() as connection:
        received = answer_to(
            connection, body(framing, b"5\r\nabc" if framing == CHUNKED else ECHO, target=target)
        )
    assert received == b"" or received.startswith(b"HTTP/1.1 4")


# ---------------------------------------------------------------- forms

PART = b'--b\r\nContent-Disposition: form-data; name="src"; filename="%s"\r\n\r\nx\r\n'
END = b"--b--\r\n"
BOUNDARY = "multipart/form-data; boundary="


def with_head(more: bytes) -> bytes:
    """A form whose one file has this behind its first header."""
    return PART.replace(b"\r\n\r\n", b"\r\n" + more + b"\r\n") % b"f" + END


#: name: (body, its type, the field or None for a body that is malformed).
FORMS = {
    "no boundary": (FORM, "multipart/form-data", "body"),
    "an empty boundary": (FORM, BOUNDARY, "body"),
    "another boundary": (FORM, BOUNDARY + "c", None),
    "a boundary in bytes": (FORM, BOUNDARY + "\xff", None),
    "a boundary that is too long": (FORM, BOUNDARY + "b" * 20_000, None),
    "a boundary of another kind": (FORM, BOUNDARY + '"(.*)+$"', None),
    "another type": (FORM, "application/json", "body"),
    "no type": (FORM, None, "body"),
    "mixed": (FORM, "multipart/mixed; boundary=b", "body"),
    "nothing": (b"", BOUNDARY + "b", None),
    "noise": (NOISE(5000), BOUNDARY + "b", None),
    "thousands of parts": (PART % b"f" * 5000 + END, BOUNDARY + "b", "body"),
    "one file too many": (PART % b"f" * 21 + END, BOUNDARY + "b", "body"),
    "a field": (PART.replace(b'; filename="%s"', b"") + END, BOUNDARY + "b", "src"),
    "a file without a name": (PART % b"" + END, BOUNDARY + "b", "filename"),
    "NUL in a name": (PART % b"%00" + END, BOUNDARY + "b", "filename"),
    "a part without a header": (b"--b\r\n\r\nx\r\n" + END, BOUNDARY + "b", None),
    "a part with a huge header": (with_head(b"A: " + b"x" * 200_000 + b"\r\n"), BOUNDARY + "b", "body"),
    "a part with thousands of headers": (with_head(b"A: b\r\n" * 30_000), BOUNDARY + "b", "body"),
    "a header in bytes": (PART.replace(b"src", b"\xff") % b"f" + END, BOUNDARY + "b", None),
    "a file that is too large": (with_head(b"\r\n" + b"x" * (1 << 20)), BOUNDARY + "b", "f"),
    **{f"cut off after {n}": (FORM[:n], BOUNDARY + "b", None) for n in (1, 4, 40, 70, len(FORM) - 4)},
}  # fmt: skip


@pytest.mark.parametrize(("content", "kind", "field"), FORMS.values(), ids=FORMS)
def test_what_is_no_form(shared, content, kind, field):
    request = Request(method="POST", target="/session/my-session/upload", body=content, content_type=kind)
    files = dict(shared.server.files.files)
    with shared.connect() as connection:
        reply = connection.ask(request)
        problem = reply.problem()
        assert reply.status == 400
        assert field is None or list(problem["data"]) == [field]
        assert shared.server.files.files == files
        assert connection.ask(Request(method="GET", target="/auth?echo=good")).status == 200


# ---------------------------------------------------------------- upgrades

UPGRADES = {
    "another version": {"Sec-WebSocket-Version": "12"},
    "no version": {"Sec-WebSocket-Version": None},
    "a version that is none": {"Sec-WebSocket-Version": "\xff"},
    "no key": {"Sec-WebSocket-Key": None},
    "no connection": {"Connection": None},
    "another protocol": {"Upgrade": "websocket2"},
    "a body": {"Content-Length": "5"},
    "chunks": {"Transfer-Encoding": "chunked"},
}


@pytest.mark.parametrize("wrong", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize(
    "target", ["/stream/session/my-session/execute", "/stream/session/my-session/runs/r1", "/nowhere"]
)
def test_an_upgrade_that_is_wrong(shared, other_connection_works, target, wrong):
    request = Request(method="GET", target=target, headers=HANDSHAKE | wrong)
    with shared.connect() as connection:
        reply = connection.ask(request)
        reply.problem()
        assert reply.status in (400, 404, 426)
        connection.socket.settimeout(5)
        if reply.headers.get("connection") == "close":
            assert connection.rest() == b""
