"""Configuration of the manager: ``manager.toml``, read once at start and frozen (keys: conf/manager.toml)."""

import os
import socket
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from ..api.limits import Limits
from ..domain.addresses import is_local_host
from ..runtime.config import HostPort, ListenAddress, Problem, Seconds
from ..runtime.configfile import Reading, Schema, read, read_file
from ..runtime.logging import LoggingConfig, logging_cautions, logging_contradictions
from . import foreign

FILE_NAME = "manager.toml"
DEFAULT_ADDR = ListenAddress("127.0.0.1", 8081)

MOST_WORKERS = 1024
#: Connections of one worker's pool, at least and at most.
SMALLEST_POOL, LARGEST_POOL = 2, 16

#: Published with the example fixture, so worthless as secrets: they count on loopback only.
EXAMPLE_KEYS = (
    "AKIAIOSFODNN7EXAMPLE",
    "AKIAHUKCHDEZGEXAMPLE",
    "AKIANABBDUSEREXAMPLE",
    "AKIANAMONITOREXAMPLE",
)


def _default_id() -> str:
    return f"i-{socket.gethostname() or os.uname().nodename}"


@attrs.frozen(kw_only=True)
class DatabaseConfig:
    """How to reach PostgreSQL: over TCP at ``addr``, or through the Unix socket in ``socket_dir`` if set."""

    addr: HostPort = HostPort("127.0.0.1", 5432)
    socket_dir: Path | None = None
    name: str = "backend"
    user: str = "postgres"
    password: str = attrs.field(default="", repr=False)
    #: The most that the workers of a server open together, beside two for each.
    connections: int = 64

    @property
    def host(self) -> str:
        """A host name, or the absolute path of a socket's directory: what drivers take as "host"."""
        return self.addr.host if self.socket_dir is None else str(self.socket_dir)

    @property
    def port(self) -> int:
        return self.addr.port

    @property
    def parameters(self) -> dict[str, Any]:
        """What `db.pool.open_database` takes."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password or None,
            "database": self.name,
        }


@attrs.frozen(kw_only=True)
class LocalConfig:
    """What `up` adds: the one agent beside this manager, and the key pair of the administrator.

    The example fixture is populated at start. When ``access_key`` is not an example key, the pair
    (access_key, secret_key) is the administrator's as well.
    """

    agent_id: str
    agent_addr: HostPort
    access_key: str
    secret_key: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class ManagerConfig:
    """The whole configuration of one manager worker. Durations in seconds."""

    #: Names this worker in leases and logs.
    id: str = attrs.field(factory=_default_id)
    #: Kernels carry it; an agent's kernels with another cluster's id are left alone.
    cluster_id: str = "default"
    #: Where the HTTP API listens; port 0 takes any free one.
    service_addr: ListenAddress = DEFAULT_ADDR
    #: Workers that `start-server` runs: as many as there are processors, unless told otherwise.
    num_proc: int = attrs.field(factory=lambda: min(len(os.sched_getaffinity(0)), MOST_WORKERS))
    #: `start-server` keeps its process id there.
    pid_file: Path | None = None
    #: Silence after which an agent is LOST.
    heartbeat_timeout: Seconds = Seconds(10.0)
    #: Sessions on an agent that stays LOST for so long have ended.
    lost_timeout: Seconds = Seconds(600.0)
    #: A graceful stop lets requests finish for so long …
    drain_timeout: Seconds = Seconds(5.0)
    #: … and the process is gone after so long, whatever hangs.
    shutdown_timeout: Seconds = Seconds(10.0)
    #: Whether TLS is spoken, with the certificate (and its chain) and the key of these PEM files.
    ssl_enabled: bool = False
    ssl_cert: Path | None = None
    ssl_privkey: Path | None = None
    limits: Limits = Limits()
    db: DatabaseConfig = DatabaseConfig()
    logging: LoggingConfig = LoggingConfig()
    local: LocalConfig | None = None

    @property
    def pool_size(self) -> int:
        """One worker's share of the connections to the database."""
        return max(SMALLEST_POOL, min(LARGEST_POOL, self.db.connections // self.num_proc))

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """The files of certificate and key, None without TLS."""
        if not self.ssl_enabled or self.ssl_cert is None or self.ssl_privkey is None:
            return None
        return self.ssl_cert, self.ssl_privkey

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the API; the example keys count only then."""
        return is_local_host(self.service_addr.host)


def _contradictions(config: ManagerConfig) -> Iterator[Problem]:
    if not 1 <= config.num_proc <= MOST_WORKERS:
        yield Problem(("manager", "num-proc"), f": 1 to {MOST_WORKERS}, not {config.num_proc}")
    if config.db.connections < SMALLEST_POOL:
        yield Problem(("db", "connections"), f": at least {SMALLEST_POOL}, not {config.db.connections}")
    if config.heartbeat_timeout <= 0:
        yield Problem(("manager", "heartbeat-timeout"), ": more than 0 seconds")
    if config.shutdown_timeout < config.drain_timeout:
        yield Problem(("manager", "shutdown-timeout"), ": not shorter than drain-timeout")
    if config.ssl_enabled:
        for key, value in (("ssl-cert", config.ssl_cert), ("ssl-privkey", config.ssl_privkey)):
            if value is None:
                yield Problem(("manager", key), " is missing; `ssl-enabled` needs it")
    yield from logging_contradictions(config.logging)


def _cautions(config: ManagerConfig) -> Iterator[Problem]:
    if not config.ssl_enabled and (config.ssl_cert or config.ssl_privkey):
        key = "ssl-cert" if config.ssl_cert else "ssl-privkey"
        yield Problem(("manager", key), " has no effect while `manager.ssl-enabled` is false")
    yield from logging_cautions(config.logging)


SCHEMA = Schema(
    file_name=FILE_NAME,
    main="manager",
    cls=ManagerConfig,
    elsewhere=frozenset({"agent"}),
    foreign=foreign.KEYS,
    moved=foreign.MOVED,
    variables=partial(foreign.settings, default_addr=(DEFAULT_ADDR.host, DEFAULT_ADDR.port)),
    foreign_variables=foreign.VARIABLES_WITHOUT_EFFECT,
    contradictions=_contradictions,
    cautions=_cautions,
)


def parse_manager_config(document: Mapping[str, Any]) -> ManagerConfig:
    """The configuration in a parsed ``manager.toml`` alone; `ConfigError` by the key's dotted name."""
    return read(SCHEMA, document).checked()


def read_manager_config(
    path: Path | None = None, environ: Mapping[str, str] = os.environ
) -> Reading[ManagerConfig]:
    """What is in *path*, or in the first ``manager.toml`` found, and in the environment: the configuration,
    what is wrong with it, and what is to be told."""
    return read_file(SCHEMA, path, environ=environ)


def load_manager_config(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> ManagerConfig:
    """The same as a value alone; defaults when there is no file anywhere. `ConfigError`."""
    return read_manager_config(path, environ).checked()
