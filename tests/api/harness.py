"""A real server on loopback with scripted services, and clients that sign."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import attrs
import httpx
import trio
import trio_websocket
from prometheus_client import CollectorRegistry

from backendai_mgr.api.app import ApiServices, create_app
from backendai_mgr.api.limits import Limits
from backendai_mgr.api.server.serving import open_listener, serve_http
from backendai_mgr.domain.signing import SignedParts, sign
from backendai_mgr.services.joining import JoinService
from tests.fakes.apps import FakeApps
from tests.fakes.files import FakeFiles
from tests.fakes.joining import CLUSTER, MANAGER_KEY, FakeJoinStore
from tests.fakes.services import ACCESS_KEY, SECRET_KEY, FakeHealth, FakeKeys, FakeRuns, FakeSessions
from tests.fakes.terminals import FakeTerminals

VERSION = "v6.20220315"


def signed_headers(
    method: str,
    target: str,
    host: str,
    content_type: str | None = None,
    *,
    secret: str = SECRET_KEY,
    hash_name: str = "sha256",
    date: str | None = None,
    version: str = VERSION,
) -> dict[str, str]:
    """The headers that authenticate a request."""
    date = date or datetime.now(UTC).isoformat()
    parts = SignedParts(
        method=method,
        target=target,
        date=date,
        host=host,
        content_type=content_type or "application/octet-stream",
        version=version,
    )
    signature = sign(parts, secret, datetime.fromisoformat(date), hash_name)
    method = f"HMAC-{hash_name.upper()}"
    return {
        "Authorization": f"BackendAI signMethod={method}, credential={ACCESS_KEY}:{signature}",
        "Date": date,
        "X-BackendAI-Version": version,
    }


class Signer(httpx.Auth):
    """Signs the requests of an httpx client."""

    def auth_flow(self, request):
        content_type = request.headers.get("content-type")
        headers = signed_headers(
            request.method,
            request.url.raw_path.decode(),
            request.headers["host"],
            content_type.partition(";")[0].lower() if content_type else None,
        )
        request.headers.update(headers)
        yield request


@attrs.frozen(kw_only=True)
class Server:
    """A running server, its scripted services, and the event that stops it."""

    host: str
    keys: FakeKeys
    sessions: FakeSessions
    runs: FakeRuns
    terminals: FakeTerminals
    apps: FakeApps
    files: FakeFiles
    joins: FakeJoinStore
    health: FakeHealth
    registry: CollectorRegistry
    stop: trio.Event
    url: str

    @property
    def port(self) -> int:
        return int(self.host.rpartition(":")[2])

    def client(self, **settings: Any) -> httpx.AsyncClient:
        """A client that signs (unless ``auth=None`` is given)."""
        return httpx.AsyncClient(
            **({"base_url": self.url, "auth": Signer(), "timeout": 30, "trust_env": False} | settings)
        )

    @asynccontextmanager
    async def websocket(
        self, target: str, **changes: Any
    ) -> AsyncIterator[trio_websocket.WebSocketConnection]:
        """A signed websocket."""
        headers = signed_headers("GET", target, self.host, **changes)
        async with trio_websocket.open_websocket_url(
            f"ws://{self.host}{target}",
            extra_headers=[(name, value) for name, value in headers.items()],
            max_message_size=32 << 20,
            disconnect_timeout=5,
        ) as socket:
            try:
                yield socket
            finally:
                # The library leaves the stream open when it was the server that closed the websocket.
                await socket.aclose()
                await trio.aclose_forcefully(socket._stream)


@asynccontextmanager
async def serving(
    limits: Limits | None = None,
    *,
    address: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Server]:
    """Serve scripted services until the block ends."""
    limits = limits or Limits()
    keys, sessions, health, registry = FakeKeys(), FakeSessions(), FakeHealth(), CollectorRegistry()
    runs, files = FakeRuns(sessions), FakeFiles(sessions)
    terminals, apps, joins = FakeTerminals(runs), FakeApps(runs), FakeJoinStore()
    joining = JoinService(joins, cluster_id=CLUSTER, public_key=MANAGER_KEY, now=lambda: datetime.now(UTC))
    services = ApiServices(
        keys=keys, sessions=sessions, runs=runs, terminals=terminals, apps=apps, files=files, joining=joining,
        health=health, registry=registry, now=lambda: datetime.now(UTC),
    )  # fmt: skip
    listener = open_listener(address, port)
    host = f"{address}:{listener.getsockname()[1]}"
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        app = create_app(services, limits)
        serve = partial(serve_http, app, listener, limits=limits, stop=stop, tls=tls, drain_timeout=2)
        await nursery.start(serve)
        yield Server(
            host=host, url=f"{'http' if tls is None else 'https'}://{host}", keys=keys, sessions=sessions,
            runs=runs, terminals=terminals, apps=apps, files=files, joins=joins, health=health,
            registry=registry, stop=stop,
        )  # fmt: skip
        stop.set()
