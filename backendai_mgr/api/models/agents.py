"""Parameters of ``/agents``."""

from typing import Annotated

import attrs

from ...domain.ids import AgentId
from ...domain.joining import JoinRequest, check_address, check_agent_id, check_architecture, check_key
from ..decoding import Param


@attrs.frozen(kw_only=True)
class Join:
    """Body of ``POST /agents/join``."""

    id: Annotated[str, Param(check=check_agent_id)]
    addr: Annotated[str, Param(check=check_address)]
    public_key: Annotated[str, Param(check=check_key)]
    architecture: Annotated[str, Param(check=check_architecture)]
    token: str = attrs.field(repr=False)

    def request(self) -> JoinRequest:
        """The same without the token."""
        return JoinRequest(
            id=AgentId(self.id),
            addr=self.addr,
            public_key=self.public_key,
            architecture=self.architecture,
        )
