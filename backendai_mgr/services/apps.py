"""Use cases of services in sessions: what their images offer, and ports that their users open."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import NoReturn

import attrs

from ..domain.accounts import Caller
from ..domain.errors import InvalidParameters, NotFound, ServiceFailed, Unavailable
from ..domain.requests import invalid
from ..domain.sessions import PlacedSession
from .agentports import AgentLink, Agents, Tunnel
from .agentwords import Refusals, told_by_agent
from .directory import Directory
from .runs import RUN_REFUSALS


class NobodyListens(Unavailable):
    """Nothing listens at the service's port at the moment."""


@attrs.frozen(kw_only=True)
class StartApp:
    """Which service, at which of its ports (None: the first), and what it is given if it is started."""

    service: str
    port: int | None = None
    arguments: Mapping[str, Sequence[str]] = attrs.Factory(dict)
    envs: Mapping[str, str] = attrs.Factory(dict)


@attrs.frozen
class App:
    """A service that listens at ``port`` inside of this session."""

    session: PlacedSession
    port: int


class AppService:
    """Services of the caller's own sessions."""

    def __init__(self, directory: Directory, agents: Agents) -> None:
        self._directory = directory
        self._agents = agents

    async def publish(self, caller: Caller, reference: str, request: StartApp) -> NoReturn:
        """Start a service for an app proxy. There are none: `Unavailable`, if the session was found."""
        await self._directory.find(caller.access_key, reference, exact=False)
        raise Unavailable(
            "No app proxy serves this scaling group; services are reached by the websockets"
            " /stream/session/NAME/httpproxy and tcpproxy.",
            retry_after=3600,
        )

    async def start(self, caller: Caller, reference: str, request: StartApp) -> App:
        """Have a service run and listen. `NotFound`, `InvalidParameters`, `ServiceFailed`."""
        live = await self._directory.find(caller.access_key, reference, exact=False)
        with told_by_agent(_refusals(reference, request)):
            started = await self._link(live).start_service(
                live.kernel_id,
                request.service,
                port=request.port,
                arguments=request.arguments,
                envs=request.envs,
            )
        return App(live, started.port)

    async def shut_down(self, caller: Caller, reference: str, service: str) -> None:
        """Ask a service to end, if it runs."""
        live = await self._directory.find(caller.access_key, reference, exact=False)
        with told_by_agent(_refusals(reference, StartApp(service=service))):
            await self._link(live).shut_down_service(live.kernel_id, service)

    @asynccontextmanager
    async def connect(self, app: App) -> AsyncIterator[Tunnel]:
        """A connection to a service that was started. `NobodyListens` when it has stopped since."""
        with told_by_agent(_refusals(app.session.name, StartApp(service=""))):
            async with self._link(app.session).tunnel(app.session.kernel_id, app.port) as tunnel:
                yield tunnel

    def _link(self, live: PlacedSession) -> AgentLink:
        return self._agents.link(live.agent_id, live.agent_addr)


def _refusals(reference: str, request: StartApp) -> Refusals:
    return {
        **RUN_REFUSALS,
        "no-such-service": lambda _: NotFound("app service", f"{reference}:{request.service}"),
        "no-such-port": lambda message: invalid("port", message),
        "bad-request": _wrong_parameters,
        "service-failed": ServiceFailed,
        "connection-refused": lambda _: NobodyListens("Nothing listens at the service's port."),
    }


def _wrong_parameters(message: str) -> Exception:
    """What is not allowed begins with the parameter's name."""
    name, colon, rest = message.partition(": ")
    field, fault = (name, rest) if colon and name in ("envs", "arguments") else ("app", message)
    return InvalidParameters("The service cannot be started like this.", {field: fault})
