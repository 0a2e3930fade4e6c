"""One server for a module's rows, in a thread of its own, so that rows may block on bare sockets."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import pytest
import trio

from backendai_mgr.api.limits import Limits

from ..harness import Server, serving
from .wire import Connection

#: Small enough to be overstepped cheaply.
LIMITS = Limits(code_bytes=1000, code_body_bytes=1 << 22, json_bytes=60_000, piece_bytes=100_000)


@attrs.frozen
class Shared:
    """A server that runs in another thread."""

    server: Server
    token: trio.lowlevel.TrioToken

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.server.port

    def connect(self) -> Connection:
        return Connection(self.address)

    def do(self, change: Callable[..., Any], *args: Any) -> Any:
        """Call something that belongs to the server's thread."""
        return trio.from_thread.run_sync(change, *args, trio_token=self.token)


@contextmanager
def server_thread(limits: Limits, **settings: Any) -> Iterator[Shared]:
    """A server until the block ends."""
    ready: queue.Queue[Shared] = queue.Queue()

    async def serve() -> None:
        async with serving(limits, **settings) as server:
            ready.put(Shared(server, trio.lowlevel.current_trio_token()))
            await server.stop.wait()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    shared = ready.get(timeout=20)
    try:
        yield shared
    finally:
        shared.do(shared.server.stop.set)
        thread.join(20)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with server_thread(LIMITS) as shared:
        yield shared


@pytest.fixture(autouse=True)
def no_failure_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No traceback, nor that a connection ended by what we do not expect."""
    yield
    for record in caplog.get_records("call") + caplog.get_records("teardown"):
        assert record.exc_info is None, record.getMessage()
        assert "failed" not in record.getMessage(), record.getMessage()
