"""What a kernel offers to those who connect: the services of its image, and the ports that its user opens."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import attrs

from ..wire.reports import ServicePort
from ..wire.rpc import AgentRefusal

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
#: In a command: the port at which it is to listen.
PORT = "{port}"
PREOPEN = "preopen"
LOWEST, HIGHEST = 1024, 65535


def _name(_: object, __: object, value: str) -> None:
    if not _NAME.match(value):
        raise ValueError("`services.name`: a letter, then up to 39 letters, digits, dashes and underscores")


def _port(_: object, __: object, value: int) -> None:
    if not LOWEST <= value <= HIGHEST:
        raise ValueError(f"`services.port`: must be from {LOWEST} to {HIGHEST}, not {value}")


def _command(_: object, __: object, value: str) -> None:
    if PORT not in value:
        raise ValueError(f"`services.command`: must say where {PORT}, at which it listens, belongs")


@attrs.frozen(kw_only=True)
class Service:
    """A service of an image. ``command`` is a line for ``/bin/sh``; it listens at ``{port}`` of 127.0.0.1."""

    name: str = attrs.field(validator=_name)
    protocol: Literal["http", "tcp"]
    port: int = attrs.field(validator=_port)
    command: str = attrs.field(validator=_command)
    #: Variables and options that whoever starts it may give.
    allowed_envs: tuple[str, ...] = ()
    allowed_arguments: tuple[str, ...] = ()

    def line(self, port: int, arguments: Mapping[str, Sequence[str]], envs: Mapping[str, str]) -> str:
        """The command line that starts it. `AgentRefusal` for what is not allowed."""
        for kind, given, allowed in (
            ("envs", envs, self.allowed_envs),
            ("arguments", arguments, self.allowed_arguments),
        ):
            for name in given:
                if name not in allowed:
                    raise AgentRefusal("bad-request", f"{kind}: {name!r} is not allowed for {self.name}")
        if not all(map(_VARIABLE.match, envs)):
            raise AgentRefusal("bad-request", "envs: not the name of a variable")
        variables = "".join(f"export {name}={shlex.quote(value)}; " for name, value in envs.items())
        words = [word for name, values in arguments.items() for word in (name, *values)]
        return variables + " ".join([self.command.replace(PORT, str(port)), *map(shlex.quote, words)])


def check_services(services: Iterable[Service]) -> None:
    """Names and ports are each service's own. Raises ValueError."""
    known = list(services)
    for key in ("name", "port"):
        values = [getattr(service, key) for service in known]
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"`services.{key}`: {value!r} occurs twice")


def services_label(services: Iterable[Service]) -> str:
    """The services as the label of an image tells them."""
    return ",".join(f"{service.name}:{service.protocol}:{service.port}" for service in services)


def ports_of(services: Sequence[Service], preopen: Sequence[int]) -> list[int]:
    """The ports inside of a kernel, each once: of its services first, then what its user opens."""
    return list(dict.fromkeys([*(service.port for service in services), *preopen]))


def service_ports(
    services: Sequence[Service], preopen: Sequence[int], host_ports: Mapping[str, int]
) -> list[ServicePort]:
    """What is told of them. A port that a service has and the user opens too is told as both."""
    found = [
        ServicePort(
            name=service.name,
            protocol=service.protocol,
            container_ports=[service.port],
            host_ports=[host_ports[str(service.port)]],
            allowed_envs=list(service.allowed_envs),
            allowed_arguments=list(service.allowed_arguments),
        )
        for service in services
        if str(service.port) in host_ports
    ]
    opened = [
        ServicePort(
            name=str(port), protocol=PREOPEN, container_ports=[port], host_ports=[host_ports[str(port)]]
        )
        for port in dict.fromkeys(preopen)
        if str(port) in host_ports
    ]
    return found + opened
