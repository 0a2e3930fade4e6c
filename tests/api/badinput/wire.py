"""Requests as values and connections as bare sockets: nothing here corrects what a test gets wrong."""

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any

import attrs

from tests.fakes.services import SECRET_KEY

from ..harness import signed_headers

PROBLEM = "application/problem+json"
TYPES = "https://api.backend.ai/probs/"


@attrs.frozen(kw_only=True)
class Request:
    """A request before it is signed. ``headers`` are sent beside those of the signature, or instead of them
    (None: left out); ``signed`` changes what the signature is about."""

    method: str
    target: str
    body: bytes | None = None
    #: Bytes of a body of no meaning.
    padding: int = 0
    content_type: str | None = None
    headers: Mapping[str, str | None] = attrs.Factory(dict)
    signed: Mapping[str, Any] = attrs.Factory(dict)

    def head_fields(self, host: str) -> dict[str, str]:
        """All header fields but those that frame the body."""
        about = {"method": self.method, "target": self.target, "content_type": self.content_type}
        about |= {"host": host, "secret": SECRET_KEY} | dict(self.signed)
        if about["content_type"] is not None:
            about["content_type"] = about["content_type"].partition(";")[0].strip().lower()
        if callable(date := about.get("date")):
            about["date"] = date()
        fields: dict[str, str | None] = {"Host": host, **signed_headers(**about)}
        if self.content_type is not None:
            fields["Content-Type"] = self.content_type
        fields |= self.headers
        return {name: value for name, value in fields.items() if value is not None}

    def encode(self, host: str) -> bytes:
        """The bytes of HTTP/1.1."""
        fields = self.head_fields(host)
        body = b"x" * self.padding if self.body is None and self.padding else self.body
        if body is not None:
            fields.setdefault("Content-Length", str(len(body)))
        return head(f"{self.method} {self.target} HTTP/1.1", fields) + (body or b"")


def head(line: str, fields: Mapping[str, str]) -> bytes:
    """A request's line and header fields."""
    lines = [line, *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


@attrs.frozen(kw_only=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def problem(self) -> dict[str, Any]:
        """The problem that the reply tells of."""
        assert self.headers["content-type"] == PROBLEM, self
        assert self.status >= 400
        problem = json.loads(self.body)
        assert problem["type"].startswith(TYPES)
        assert problem["title"]
        return problem


class Connection:
    """One connection of HTTP/1.1, which stays open from one request to the next."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.host = "{}:{}".format(*address)
        self.socket = socket.create_connection(address, timeout=5)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, request: Request) -> Reply:
        return self.exchange(request.encode(self.host), request.method)

    def exchange(self, data: bytes, method: str = "GET") -> Reply:
        """Send these bytes; the reply."""
        self.send(data)
        return self.reply(method)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self, method: str = "GET") -> Reply:
        response = http.client.HTTPResponse(self.socket, method=method)
        with response:
            response.begin()
            body = response.read()
        return Reply(
            status=response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
            body=body,
        )

    def rest(self) -> bytes:
        """All that comes until the server closes."""
        received = b""
        try:
            while piece := self.socket.recv(65536):
                received += piece
        except ConnectionResetError:
            pass  # it did not read all that was sent
        return received
