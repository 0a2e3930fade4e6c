"""The store of agents that join, in memory; it decides by the domain's rule as the real one does."""

import attrs
import trio

from backendai_mgr.domain.joining import KeyPair, KnownAgent, StoredToken, TokenText, decide
from backendai_mgr.domain.status import AgentStatus
from backendai_mgr.runtime.curve import new_key_pair
from backendai_mgr.services.ports import StoreUnavailable

CLUSTER = "cluster-1"
MANAGER = KeyPair(**dict(zip(("public", "secret"), new_key_pair(), strict=True)))
MANAGER_KEY = MANAGER.public


class FakeJoinStore:
    """``agents`` maps ids to what is known, ``requests`` lists those that were let in."""

    def __init__(self) -> None:
        self.tokens: dict[str, StoredToken] = {}
        self.agents: dict[str, KnownAgent] = {}
        self.requests: list = []
        self.away = False
        #: Set when somebody was told that it is away.
        self.asked = trio.Event()

    def add_token(self, number: int, *, expires_at, uses: int = 1) -> TokenText:
        token = TokenText.make(bytes([number] * 6), bytes([number] * 24))
        self.tokens[token.id] = StoredToken(
            id=token.id, digest=token.digest(), scaling_group="default", expires_at=expires_at, uses=uses
        )
        return token

    async def agent_key(self, agent_id):
        """As `services.ports.AgentKeys` asks it."""
        await trio.lowlevel.checkpoint()
        return self.agents[agent_id].public_key if agent_id in self.agents else None

    async def join(self, token, request, *, now):
        await trio.lowlevel.checkpoint()
        if self.away:
            self.asked.set()
            raise StoreUnavailable("away")
        stored = None if token is None else self.tokens.get(token.id)
        known = [
            agent
            for agent in self.agents.values()
            if agent.id == request.id or agent.public_key == request.public_key
        ]
        outcome = decide(token, stored, request, known, now)
        assert stored is not None
        if outcome == "new":
            self.tokens[stored.id] = attrs.evolve(stored, uses=stored.uses - 1)
        self.agents[request.id] = KnownAgent(
            id=request.id, status=AgentStatus.LOST, public_key=request.public_key, joined_with=stored.id
        )
        self.requests.append(request)
        return outcome, stored
