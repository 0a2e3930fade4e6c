"""``GET /`` and the manager's announcement: public, needed before anything else."""

from quart import Blueprint, Response

from .auth import LATEST
from .body import reply
from .context import services

blueprint = Blueprint("root", __name__)


@blueprint.get("/")
async def version() -> Response:
    """Version of the API and of the manager, by which clients negotiate."""
    return reply({"version": LATEST, "manager": services().version})


@blueprint.get("/manager/announcement")
async def announcement() -> Response:
    """What clients show to their users; nothing can be announced yet."""
    return reply({"enabled": False, "message": ""})
