"""The local mode: one command that runs PostgreSQL, a worker and an agent out of one data directory.

What is in ``DIR``: ``lock`` (held by the running `up`), ``cluster-id``, ``credentials.json`` (only when keys
were made here), ``etc`` (the children's configuration, written anew at each start), ``pg`` and ``postgres``
(`app.pgfiles`), ``up.json`` (how to reach what runs now), and whatever the agent keeps.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import string
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import trio

from ..domain.addresses import is_local_host
from ..runtime.config import HostPort
from ..runtime.logging import LoggingConfig
from .children import Child
from .config import EXAMPLE_KEYS
from .pgfiles import PostgresFiles
from .postgres import DATABASE, USER, local_postgres

DEFAULT_AGENT_PORT = 6001
#: The published key pair of the example administrator, for loopback only.
EXAMPLE_PAIR = (EXAMPLE_KEYS[0], "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
AGENT_ID = "i-local"
#: Sessions on one's own machine mostly idle; each would otherwise keep a whole processor for itself.
CPU_OVERCOMMIT = 4.0
UP_FILE = "up.json"

#: Seconds that the worker and then the agent get to end every session.
_END_WORKER = 11.0
_END_AGENT = 5.0
#: The same when the person at the keyboard is in a hurry.
_HURRY = 1.0


class LocalError(Exception):
    """The local mode cannot run like this; the message is one sentence for whoever started it."""


@attrs.frozen(kw_only=True)
class LocalOptions:
    """How `up` was called. Port 0 takes any free port; ``agent_port`` None prefers 6001. ``isolation`` and
    ``network`` are the agent's settings of these names."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8081
    agent_port: int | None = None
    allow_unisolated: bool = False
    isolation: str = "auto"
    network: bool = False
    #: Further settings of the children: (table, key) -> value; tables: ``agent``, ``manager``, ``limits``.
    settings: Mapping[tuple[str, str], Any] = attrs.Factory(dict)
    logging: LoggingConfig = LoggingConfig(level="WARNING")


@attrs.frozen(kw_only=True)
class Credentials:
    """The administrator's key pair."""

    access_key: str
    secret_key: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Running:
    """What runs now and how to reach it; the content of ``up.json``."""

    endpoint: str
    access_key: str
    secret_key: str = attrs.field(repr=False)
    pid: int
    isolated: bool


async def run_local(
    options: LocalOptions,
    *,
    announce: Callable[[Running], None],
    stop: Callable[[], Awaitable[None]],
    hurry: Callable[[], Awaitable[None]],
) -> None:
    """Run everything until *stop* returns, then end all sessions and every process.

    *announce* is called once, when requests are served. When *hurry* returns during the stop, less is waited
    for. Raises `LocalError`, `PostgresError` or `ChildError` (perhaps in a group) when it cannot start.
    """
    data_dir = prepare_data_dir(options.data_dir)
    with lock(data_dir):
        credentials = load_credentials(data_dir, options.host)
        files = _ChildFiles(data_dir, options, credentials, cluster_id(data_dir))
        agent, worker = (Child(command=c, options=[f"--data-dir={data_dir}"]) for c in ("agent", "worker"))
        async with trio.open_nursery() as nursery:
            files.write_agent(_agent_port(options.agent_port))
            nursery.start_soon(agent.keep_running)
            async with local_postgres(data_dir) as postgres:
                agent_is = await agent.ready()
                check_exposure(options, agent_is["missing"])
                agent_addr = HostPort.parse(agent_is["addr"].removeprefix("tcp://"))
                files.write_agent(agent_addr.port)
                files.write_worker(options.port, postgres, agent_addr)
                nursery.start_soon(worker.keep_running)
                endpoint: str = (await worker.ready())["endpoint"]
                files.write_worker(int(endpoint.rpartition(":")[2]), postgres, agent_addr)
                isolated = "isolation" not in agent_is["missing"]
                with _up_file(data_dir, endpoint, credentials, isolated) as running:
                    announce(running)
                    await stop()
                await _end(worker, _END_WORKER, hurry)
                await _end(agent, _END_AGENT, hurry)
            nursery.cancel_scope.cancel()


async def _end(child: Child, timeout: float, hurry: Callable[[], Awaitable[None]]) -> None:
    """End the child, within *timeout* seconds, or a short while after *hurry* returns."""
    async with trio.open_nursery() as nursery:

        async def cut_short() -> None:
            await hurry()
            await trio.sleep(_HURRY)
            nursery.cancel_scope.cancel()

        nursery.start_soon(cut_short)
        await child.end(timeout)
        nursery.cancel_scope.cancel()
    if child.pid is not None:
        await child.end(0)


# ---------------------------------------------------------------- the data directory


def check_exposure(options: LocalOptions, missing: Mapping[str, str]) -> None:
    """Refuse to serve others than this machine where kernels are not isolated from it."""
    if is_local_host(options.host) or options.allow_unisolated or "isolation" not in missing:
        return
    raise LocalError(
        f"{options.host} is refused: whoever could connect and has a key could do what your account"
        f" can. {missing['isolation']} Serve 127.0.0.1, or accept that with --allow-unisolated."
    )


def prepare_data_dir(path: Path) -> Path:
    """Make *path* (and its parents) if absent; its absolute form without symbolic links.

    Only we may list it. As root others may pass through it, since PostgreSQL and kernels have accounts of
    their own there.
    """
    try:
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        path = path.resolve(strict=True)
        if path.stat().st_uid == os.geteuid():
            path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "you may not write there")
        (path / "etc").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise LocalError(f"The data directory {path} cannot be used: {error.strerror}.") from error
    return path


@contextlib.contextmanager
def lock(data_dir: Path) -> Iterator[None]:
    """Hold the data directory for this process alone; `LocalError` names who else holds it.

    The kernel releases the lock when this process ends, however it ends; children do not inherit it.
    """
    fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            raise LocalError(f"{data_dir} is already in use by process {holder}.") from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def cluster_id(data_dir: Path) -> str:
    """The id by which kernels of this data directory are known as ours; made once."""
    path = data_dir / "cluster-id"
    if not path.exists():
        _write(path, str(uuid4()))
    return path.read_text().strip()


def load_credentials(data_dir: Path, host: str) -> Credentials:
    """The example pair where only this machine can connect; elsewhere a random pair, made once and kept."""
    if is_local_host(host):
        return Credentials(access_key=EXAMPLE_PAIR[0], secret_key=EXAMPLE_PAIR[1])
    path = data_dir / "credentials.json"
    if not path.exists():
        letters = string.ascii_uppercase + string.digits
        access_key = "AKIA" + "".join(secrets.choice(letters) for _ in range(16))
        _write(path, json.dumps({"access_key": access_key, "secret_key": secrets.token_urlsafe(30)}))
    return Credentials(**json.loads(path.read_text()))


@contextlib.contextmanager
def _up_file(data_dir: Path, endpoint: str, credentials: Credentials, isolated: bool) -> Iterator[Running]:
    """``up.json`` for as long as requests are served."""
    running = Running(
        endpoint=endpoint,
        access_key=credentials.access_key,
        secret_key=credentials.secret_key,
        pid=os.getpid(),
        isolated=isolated,
    )
    path = data_dir / UP_FILE
    _write(path, json.dumps(attrs.asdict(running)))
    try:
        yield running
    finally:
        path.unlink(missing_ok=True)


def _write(path: Path, text: str) -> None:
    """Write a private file (0600) so that readers see the old or the new text, never a part."""
    new = path.with_name(f".{path.name}.new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(text)
    new.rename(path)


def _agent_port(asked: int | None) -> int:
    """The port asked for, else 6001 if nobody listens there, else 0 for any."""
    if asked is not None:
        return asked
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", DEFAULT_AGENT_PORT))
        except OSError:
            return 0
    return DEFAULT_AGENT_PORT


# ---------------------------------------------------------------- the children's configuration


@attrs.frozen
class _ChildFiles:
    """Writes ``etc/agent.toml`` and ``etc/manager.toml``."""

    data_dir: Path
    options: LocalOptions
    credentials: Credentials
    cluster_id: str

    def write_agent(self, port: int) -> None:
        agent = {
            "id": AGENT_ID,
            "bind": f"127.0.0.1:{port}",
            "data-dir": str(self.data_dir),
            "cpu-overcommit": CPU_OVERCOMMIT,
            "isolation": self.options.isolation,
            "network": self.options.network,
        }
        self._write("agent", {"agent": agent})

    def write_worker(self, port: int, postgres: PostgresFiles, agent_addr: HostPort) -> None:
        manager = {
            "id": "local",
            "cluster-id": self.cluster_id,
            "service-addr": [self.options.host, port],
        }
        database = {"socket-dir": str(postgres.socket_dir), "name": DATABASE, "user": USER}
        local = {
            "agent-id": AGENT_ID,
            "agent-addr": str(agent_addr),
            "access-key": self.credentials.access_key,
            "secret-key": self.credentials.secret_key,
        }
        self._write("manager", {"manager": manager, "limits": {}, "db": database, "local": local})

    def _write(self, name: str, document: Mapping[str, Mapping[str, Any]]) -> None:
        lines = ["# Written by `backendai-mgr up` at each start; changes here are lost."]
        logging = {"level": self.options.logging.level, "format": self.options.logging.format}
        for table, values in {**document, "logging": logging}.items():
            values = dict(values)
            values |= {key: value for (where, key), value in self.options.settings.items() if where == table}
            lines.append(f"\n[{table}]")
            # JSON's text, numbers and lists are TOML's too.
            lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
        _write(self.data_dir / "etc" / f"{name}.toml", "\n".join(lines) + "\n")
