"""``/agents``: agents join the cluster. Their token is their only credential."""

import attrs
from quart import Blueprint, Response

from .body import json_parameters, reply
from .context import admit_work, current_message, services
from .models.agents import Join

blueprint = Blueprint("agents", __name__)

#: The longest body of a join, bytes.
JOIN_BYTES = 8192


@blueprint.post("/agents/join")
async def join() -> Response:
    """Take an agent into the cluster; it learns the managers' public key and the cluster's id."""
    scope = current_message().scope
    peer = _peer(scope.get("client"))
    joining = services().joining
    joining.admit(scheme=scope["scheme"], peer=peer)
    admit_work()
    parameters = await json_parameters(Join, longest=JOIN_BYTES)
    joined = await joining.join(parameters.token, parameters.request(), peer=peer)
    return reply(attrs.asdict(joined))


def _peer(client: object) -> str | None:
    """The address of whoever sent the request, without its port."""
    match client:
        case [str(host), *_]:
            return host
    return None
