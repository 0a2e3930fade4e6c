"""Links to agents (`services.agentports.Agents`): a connection for each address, dialled at first use."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio

from ..domain.ids import AgentId
from ..runtime.zmqsocket import SOCKETS_OF_DEALER, Context, open_context
from .connection import Connection
from .keys import LinkKeys
from .link import Link


@asynccontextmanager
async def open_links(
    *,
    keys: LinkKeys | None = None,
    report_interval: float = 3.0,
    silence: float = 15.0,
    restart: float = 10.0,
    max_agents: int = 4000,
) -> AsyncIterator["AgentLinks"]:
    """The links of one worker, all closed at the end; calls that are still under way are `AgentUnreachable`.

    Without *keys* only agents on loopback are spoken to, in plain. *report_interval* is the agents'
    (seconds): after two without a report a feed subscribes again. A stream's reader waits *silence* seconds
    for any sign of life. Calls wait for an agent that is away until *restart* seconds of that have passed,
    and then no longer than a moment. Errors of the body leave in an exception group.
    """
    sockets = SOCKETS_OF_DEALER * max_agents
    async with open_context(max_sockets=sockets) as context, trio.open_nursery() as nursery:
        try:
            yield AgentLinks(
                context,
                nursery,
                keys or LinkKeys(),
                report_interval=report_interval,
                silence=silence,
                restart=restart,
            )
        finally:
            nursery.cancel_scope.cancel()


class AgentLinks:
    """The connections, by agent and address. Made by `open_links`."""

    def __init__(
        self,
        context: Context,
        nursery: trio.Nursery,
        keys: LinkKeys,
        *,
        report_interval: float,
        silence: float,
        restart: float,
    ) -> None:
        self._context = context
        self._nursery = nursery
        self._keys = keys
        self._interval = report_interval
        self._silence = silence
        self._restart = restart
        self._connections: dict[tuple[AgentId, str], Connection] = {}

    def link(self, agent_id: AgentId, addr: str) -> Link:
        """The agent at *addr* (``tcp://host:port``). Connections to its other addresses end when unused."""
        for (agent, place), connection in list(self._connections.items()):
            if agent == agent_id and place != addr:
                connection.retire()
        return Link(self, agent_id, addr)

    def known(self, agent_id: AgentId, addr: str) -> Connection | None:
        """The connection if there is one."""
        connection = self._connections.get((agent_id, addr))
        return None if connection is None or connection.ended else connection

    def connection(self, agent_id: AgentId, addr: str) -> Connection:
        """The connection, dialled if need be."""
        connection = self.known(agent_id, addr)
        if connection is None:
            connection = Connection(
                addr,
                keys=partial(self._keys.towards, agent_id, addr),
                interval=self._interval,
                silence=self._silence,
                restart=self._restart,
            )
            self._connections[agent_id, addr] = connection
            self._nursery.start_soon(self._run, (agent_id, addr), connection)
        connection.revive()
        return connection

    async def _run(self, key: tuple[AgentId, str], connection: Connection) -> None:
        try:
            await connection.run(self._context)
        finally:
            if self._connections.get(key) is connection:
                del self._connections[key]
