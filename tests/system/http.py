"""Signed requests to the running program, independent of our own client: a second reading of the rules."""

import hashlib
import hmac
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

VERSION = "v6.20220315"


class Http:
    """Requests as one caller. ``endpoint`` as in up.json."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.endpoint: str = said["endpoint"]
        self.access_key: str = said["access_key"]
        self.secret_key: str = said["secret_key"]
        self.host = urlsplit(self.endpoint).netloc
        self.client = httpx.Client(base_url=self.endpoint, timeout=30)

    def headers(
        self,
        method: str,
        target: str,
        *,
        content_type: str = "application/json",
        date: str | None = None,
        secret_key: str | None = None,
    ) -> dict[str, str]:
        """The headers of a signed request."""
        date = date or datetime.now(UTC).isoformat()
        text = "\n".join(
            [
                method,
                target,
                date,
                f"host:{self.host}",
                f"content-type:{content_type}",
                f"x-backendai-version:{VERSION}",
                hashlib.sha256(b"").hexdigest(),
            ]
        )
        key = (secret_key or self.secret_key).encode()
        for part in (date[:10].replace("-", ""), self.host):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.new(key, text.encode(), "sha256").hexdigest()
        return {
            "Authorization": f"BackendAI signMethod=HMAC-SHA256, credential={self.access_key}:{signature}",
            "Date": date,
            "X-BackendAI-Version": VERSION,
            "Content-Type": content_type,
        }

    def call(
        self,
        method: str,
        target: str,
        *,
        body: Any = None,
        raw: bytes | None = None,
        more: Mapping[str, str] = {},
    ) -> httpx.Response:
        """A signed request with a JSON body, or with these very bytes, and *more* headers."""
        headers = {**self.headers(method, target), **more}
        if raw is not None:
            return self.client.request(method, target, headers=headers, content=raw)
        if body is None:
            return self.client.request(method, target, headers=headers)
        return self.client.request(method, target, headers=headers, json=body)

    def close(self) -> None:
        self.client.close()


def send_raw(address: tuple[str, int], data: bytes, *, seconds: float = 5) -> bytes:
    """Send bytes on a connection of their own; whatever comes back before the peer closes or falls silent."""
    answer = b""
    with socket.create_connection(address, timeout=seconds) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                answer += piece
        except OSError:
            pass  # the peer hung up, or says nothing
    return answer
