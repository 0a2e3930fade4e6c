"""With which keys an agent is spoken to, or that it must not be spoken to at all."""

from ..domain.addresses import leads_off_loopback
from ..domain.ids import AgentId
from ..domain.joining import KeyPair
from ..runtime.curve import CurveClient
from ..services.ports import AgentKeys, StoreUnavailable


class NotDialled(Exception):
    """The agent cannot be dialled safely; the message says why."""


class LinkKeys:
    """The managers' pair and the agents' public keys. Without them only agents on loopback are spoken to."""

    def __init__(self, own: KeyPair | None = None, agents: AgentKeys | None = None) -> None:
        self._own = own
        self._agents = agents
        #: Agents that are known keep their links while the database is away.
        self._known: dict[AgentId, str | None] = {}

    async def towards(self, agent_id: AgentId, addr: str) -> CurveClient | None:
        """The keys for dialling *addr*, looked up anew; None for plain, which is for loopback only."""
        key = await self._key(agent_id)
        if key is not None and self._own is not None:
            return CurveClient(public_key=self._own.public, secret_key=self._own.secret, server_key=key)
        if leads_off_loopback(addr):
            raise NotDialled(
                f"{addr} is on the network, and the agent has no key; it has to join with a token"
            )
        return None

    async def _key(self, agent_id: AgentId) -> str | None:
        if self._agents is None:
            return None
        try:
            key = await self._agents.agent_key(agent_id)
        except StoreUnavailable as error:
            if agent_id not in self._known:
                raise NotDialled(f"its key cannot be looked up: {error}") from error
            return self._known[agent_id]
        self._known[agent_id] = key
        return key
