"""Services behind `services.apps.AppService`; what listens is the test."""

from contextlib import asynccontextmanager
from math import inf

import trio

from backendai_mgr.domain.accounts import Caller
from backendai_mgr.domain.errors import Unavailable
from backendai_mgr.services.apps import App, NobodyListens, StartApp

from .services import FakeRuns


class FakeTunnel:
    """A connection to a service: the test sends and receives at its other end."""

    def __init__(self) -> None:
        self._to_client, self._from_service = trio.open_memory_channel[bytes | Exception](inf)
        self.received = b""
        self.closed = trio.Event()
        #: While it is not set the service does not read.
        self.reads = trio.Event()
        self.reads.set()
        self._changed = trio.Event()

    def say(self, data: bytes | Exception) -> None:
        """The service sends; nothing: it hangs up."""
        self._to_client.send_nowait(data)

    async def until(self, condition) -> None:
        with trio.fail_after(20):
            while not condition():
                await self._changed.wait()

    async def send(self, data: bytes) -> None:
        await self.reads.wait()
        self.received += data
        self._changed.set()
        self._changed = trio.Event()
        await trio.lowlevel.checkpoint()

    async def receive(self) -> bytes:
        data = await self._from_service.receive()
        if isinstance(data, Exception):
            raise data
        return data


class FakeApps:
    """``started`` is what was asked for; ``refusal`` what the next call raises; ``listening`` whether anybody
    listens."""

    def __init__(self, runs: FakeRuns) -> None:
        self._runs = runs
        self.started: list[StartApp] = []
        self.stopped: list[str] = []
        self.refusal: Exception | None = None
        self.listening = True
        self.tunnels: list[FakeTunnel] = []
        self._dialled = trio.Event()

    async def tunnel(self) -> FakeTunnel:
        """The first connection, once it is there."""
        with trio.fail_after(20):
            await self._dialled.wait()
        return self.tunnels[0]

    def _enter(self, reference: str):
        live = self._runs._enter(reference)
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        return live

    async def publish(self, caller: Caller, reference: str, request: StartApp) -> None:
        self._enter(reference)
        raise Unavailable("no app proxy")

    async def start(self, caller: Caller, reference: str, request: StartApp) -> App:
        live = self._enter(reference)
        self.started.append(request)
        return App(live, request.port or 8000)

    async def shut_down(self, caller: Caller, reference: str, service: str) -> None:
        self._enter(reference)
        self.stopped.append(service)

    @asynccontextmanager
    async def connect(self, app: App):
        if not self.listening:
            raise NobodyListens("Nothing listens at the service's port.")
        tunnel = FakeTunnel()
        self.tunnels.append(tunnel)
        self._dialled.set()
        try:
            yield tunnel
        finally:
            tunnel.closed.set()
