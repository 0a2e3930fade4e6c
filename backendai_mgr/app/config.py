"""Configuration of the manager: ``manager.toml``, read once at start and frozen (keys: conf/manager.toml)."""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from ..api.context import Limits
from ..runtime.config import (
    ConfigError,
    HostPort,
    ListenAddress,
    Seconds,
    find_config,
    load_toml,
    structure,
)
from ..runtime.logging import LoggingConfig

FILE_NAME = "manager.toml"

#: Published with the example fixture, so worthless as secrets: they count on loopback only.
EXAMPLE_KEYS = (
    "AKIAIOSFODNN7EXAMPLE",
    "AKIAHUKCHDEZGEXAMPLE",
    "AKIANABBDUSEREXAMPLE",
    "AKIANAMONITOREXAMPLE",
)


@attrs.frozen(kw_only=True)
class DatabaseConfig:
    """How to reach PostgreSQL: over TCP at ``addr``, or through the Unix socket in ``socket_dir`` if set."""

    addr: HostPort = HostPort("127.0.0.1", 5432)
    socket_dir: Path | None = None
    name: str = "backend"
    user: str = "postgres"
    password: str = attrs.field(default="", repr=False)

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
    id: str
    #: Kernels carry it; an agent's kernels with another cluster's id are left alone.
    cluster_id: str = "default"
    #: Where the HTTP API listens; port 0 takes any free one.
    service_addr: ListenAddress = ListenAddress("127.0.0.1", 8081)
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
    def tls(self) -> tuple[Path, Path] | None:
        """The files of certificate and key, None without TLS."""
        if not self.ssl_enabled or self.ssl_cert is None or self.ssl_privkey is None:
            return None
        return self.ssl_cert, self.ssl_privkey

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the API; the example keys count only then."""
        host = self.service_addr.host
        return host == "localhost" or host == "::1" or host.startswith("127.")


_TABLES = {"limits": Limits, "db": DatabaseConfig, "logging": LoggingConfig, "local": LocalConfig}


def parse_manager_config(document: Mapping[str, Any]) -> ManagerConfig:
    """The configuration in a parsed ``manager.toml``; `ConfigError` by the key's dotted name."""
    for unknown in document.keys() - {"manager", *_TABLES}:
        raise ConfigError(f"`{unknown}` is not a known table.")
    manager = document.get("manager", {})
    if not isinstance(manager, Mapping):
        raise ConfigError("`manager` must be a table.")
    for misplaced in manager.keys() & _TABLES.keys():
        raise ConfigError(f"`manager.{misplaced}` is not a known key.")
    # The tables are validated under their own names, the rest under "manager".
    tables: dict[str, Any] = {}
    for name, cls in _TABLES.items():
        if name in document:
            tables[name] = structure(cls, document[name], name)
    config = structure(ManagerConfig, {"id": _default_id(), **manager}, "manager")
    config = attrs.evolve(config, **tables)
    if config.heartbeat_timeout <= 0:
        raise ConfigError("`manager.heartbeat-timeout`: more than 0 seconds.")
    if config.shutdown_timeout < config.drain_timeout:
        raise ConfigError("`manager.shutdown-timeout`: not shorter than drain-timeout.")
    if config.ssl_enabled:
        for key in ("ssl-cert", "ssl-privkey"):
            if key not in manager:
                raise ConfigError(f"`manager.{key}` is missing; `ssl-enabled` needs it.")
    return config


def load_manager_config(path: Path | None = None) -> ManagerConfig:
    """From *path*, or from the first ``manager.toml`` found; defaults when there is none anywhere."""
    path = path or find_config(FILE_NAME)
    if path is None:
        return parse_manager_config({})
    try:
        return parse_manager_config(load_toml(path))
    except ConfigError as error:
        if str(error).startswith(str(path)):
            raise
        raise ConfigError(f"{path}: {error}") from error


def _default_id() -> str:
    return f"i-{socket.gethostname() or os.uname().nodename}"
