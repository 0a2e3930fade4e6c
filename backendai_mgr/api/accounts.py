"""``/auth``: whether a credential works."""

from quart import Blueprint, Response

from ..domain.accounts import Caller
from .auth import authenticated
from .body import legacy_parameters, reply
from .models.accounts import Echo

blueprint = Blueprint("accounts", __name__)


@blueprint.route("/auth", methods=["GET", "POST"])
@blueprint.route("/auth/test", methods=["GET", "POST"])
@authenticated
async def test_credential(caller: Caller) -> Response:
    """Echo a text to a client whose credential is right."""
    parameters = await legacy_parameters(Echo)
    return reply({"authorized": "yes", "echo": parameters.echo})
