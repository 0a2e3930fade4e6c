"""Settings of an agent: ``agent.toml``, read once at start and frozen (keys: conf/agent.toml)."""

import ipaddress
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs

from ..domain.addresses import is_local_host
from ..domain.joining import check_agent_id
from ..runtime.config import ByteSize, HostPort, ListenAddress, Seconds
from ..runtime.configfile import Schema, read
from ..runtime.logging import LoggingConfig, logging_cautions, logging_contradictions
from ..runtime.paths import default_data_dir
from .portpool import parse_ports

_RESERVED_MEM = ByteSize(256 << 20)
_REPORT_INTERVAL = Seconds(3.0)
_RUN_OUTPUT = ByteSize(64 << 20)
_SESSION_OUTPUT = ByteSize(1 << 30)
_TOTAL_OUTPUT = ByteSize(10 << 30)
_RUN_RETENTION = Seconds(86400.0)
_UPLOAD_SIZE = ByteSize(1 << 30)
_NO_LIMIT = Seconds(0.0)
_LEASH = Seconds(3600.0)
#: Where the link listens unless it is told otherwise.
DEFAULT_BIND = ListenAddress("127.0.0.1", 6001)


def _agent_id(_: Any, field: "attrs.Attribute[str]", value: str) -> None:
    try:
        check_agent_id(value)
    except ValueError as error:
        raise ValueError(f"{_key(field)} {error}") from None


def _absolute(_: Any, field: "attrs.Attribute[Path]", value: Path | None) -> None:
    if value is not None and not value.is_absolute():
        raise ValueError(f"{_key(field)} must be an absolute path, not {str(value)!r}")


def _between(least: float, most: float) -> Any:
    def validate(_: Any, field: "attrs.Attribute[float]", value: float) -> None:
        if not least <= value <= most:
            raise ValueError(f"{_key(field)} must be from {least:g} to {most:g}, not {value:g}")

    return validate


def _bind(value: str | ListenAddress | None) -> ListenAddress | None:
    return ListenAddress.parse(value) if isinstance(value, str) else value


def _advertised(value: str | HostPort | None) -> HostPort | None:
    return HostPort.parse(value) if isinstance(value, str) else value


def _numeric(_: Any, field: "attrs.Attribute[Any]", value: HostPort | None) -> None:
    if value is None:
        return
    try:
        ipaddress.ip_address(value.host)
    except ValueError:
        raise ValueError(
            f"{_key(field)} must be a numeric address of this machine, not {value.host!r}"
        ) from None


def _one_machine(_: Any, field: "attrs.Attribute[Any]", value: HostPort | None) -> None:
    if value is not None and is_any(value.host):
        raise ValueError(f"{_key(field)} must be an address of one machine, not {value.host!r}")


def is_any(host: str) -> bool:
    """Whether a server that listens on *host* listens on all addresses of its machine."""
    return ipaddress.ip_address(host).is_unspecified


def _ports(_: Any, field: "attrs.Attribute[str]", value: str) -> None:
    try:
        parse_ports(value)
    except ValueError as error:
        raise ValueError(f"{_key(field)} {error}") from None


def _url(_: Any, field: "attrs.Attribute[str]", value: str) -> None:
    if not value:
        return
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError(f"{_key(field)} must be a URL such as https://HOST:8081, not {value!r}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError(f"{_key(field)} must be a URL such as https://HOST:8081, not {value!r}")
    if parts.username is not None:
        raise ValueError(f"{_key(field)} must not hold a name or a password")
    if parts.scheme == "http" and not is_local_host(parts.hostname):
        raise ValueError(f"{_key(field)} must begin with https:// unless the manager is on this machine")


def _key(field: "attrs.Attribute[Any]") -> str:
    return field.name.replace("_", "-")


def _own_id() -> str:
    name = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node().partition(".")[0])
    return f"i-{name or 'agent'}"[:64]


@attrs.frozen(kw_only=True)
class AgentConfig:
    """What an agent is told when it starts. Keys of the file have dashes instead of underscores."""

    #: Identity of the agent in the cluster; stays the same over restarts.
    id: str = attrs.field(factory=_own_id, validator=_agent_id)
    #: Where the agent link listens; port 0 takes any free one. Text is parsed. None: where it listened when
    #: it joined, or the address that leads to the manager that it is to join, or else `DEFAULT_BIND`.
    bind: ListenAddress | None = attrs.field(default=None, converter=_bind, validator=_numeric)
    #: Where managers reach it, if that is not `bind`.
    advertised_addr: HostPort | None = attrs.field(
        default=None, converter=_advertised, validator=[_numeric, _one_machine]
    )
    #: The manager whose cluster is joined; empty for none.
    manager_url: str = attrs.field(default="", validator=_url)
    #: What lets it join; not needed any more when it has joined.
    join_token: str = attrs.field(default="", repr=False)
    #: Certificates (PEM) that sign the manager's; None for those that the system trusts.
    manager_ca: Path | None = attrs.field(default=None, validator=_absolute)
    #: Kernels, their output and what must survive a restart.
    data_dir: Path = attrs.field(factory=default_data_dir, validator=_absolute)
    #: Between two reports to the manager; changes are reported at once.
    report_interval: Seconds = attrs.field(default=_REPORT_INTERVAL, validator=_between(0.05, 60))
    #: Processors offered for each one that the machine has.
    cpu_overcommit: float = attrs.field(default=1.0, validator=_between(0.01, 1000))
    #: Memory kept for the system and not offered to kernels.
    reserved_mem: ByteSize = _RESERVED_MEM
    #: The largest file that may be uploaded to a session.
    upload_size: ByteSize = _UPLOAD_SIZE
    #: A session ends so long after its kernel was started; 0 for no limit.
    session_lifetime: Seconds = _NO_LIMIT
    #: A kernel that no agent looks after for so long ends itself.
    leash: Seconds = attrs.field(default=_LEASH, validator=_between(1, 30 * 86400))
    #: Folder of image manifests; None for those that come with the package.
    images_dir: Path | None = attrs.field(default=None, validator=_absolute)
    #: Kernels of each Python image that are kept ready; 0 for none.
    pool_size: int = attrs.field(default=2, validator=_between(0, 64))
    #: "auto": enclose kernels if that can be done here; "required": do not start without; "none": do not.
    isolation: Literal["auto", "required", "none"] = "auto"
    #: Kernels have the machine's network; else none.
    network: bool = False
    #: The public numbers of kernels' ports, from the first to the last.
    service_ports: str = attrs.field(default="30000-31000", validator=_ports)
    #: Processes and threads of one kernel.
    kernel_processes: int = attrs.field(default=512, validator=_between(16, 1_000_000))
    #: Bytes of output that are kept of one run: its beginning and its end.
    run_output: ByteSize = _RUN_OUTPUT
    #: Bytes of output that are kept of all runs of a session, and of all runs of all sessions.
    session_output: ByteSize = _SESSION_OUTPUT
    total_output: ByteSize = _TOTAL_OUTPUT
    #: How long after a session's end its runs can be read.
    run_retention: Seconds = attrs.field(default=_RUN_RETENTION, validator=_between(0, 10 * 365 * 86400))
    #: Runs that name no limit of their own are interrupted after so long; 0 for never.
    run_timeout: Seconds = _NO_LIMIT
    #: Listen on an address that is not loopback even where kernels are not isolated.
    allow_unisolated: bool = False
    logging: LoggingConfig = LoggingConfig()


SCHEMA = Schema(
    file_name="agent.toml",
    main="agent",
    cls=AgentConfig,
    elsewhere=frozenset({"manager", "limits", "db", "local"}),
    contradictions=lambda config: logging_contradictions(config.logging),
    cautions=lambda config: logging_cautions(config.logging),
)


def parse_agent_config(document: Mapping[str, Any]) -> AgentConfig:
    """The settings in a parsed ``agent.toml`` alone; what it leaves out has its default. `ConfigError`."""
    return read(SCHEMA, document).checked()
