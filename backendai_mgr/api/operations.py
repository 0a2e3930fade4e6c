"""For operators: liveness, readiness, metrics. Public, and free of secrets."""

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from quart import Blueprint, Response, request

from ..domain.errors import Unavailable
from .body import reply
from .context import services

blueprint = Blueprint("operations", __name__)


@blueprint.get("/livez")
async def live() -> Response:
    """The process serves requests."""
    return reply({"live": True})


@blueprint.get("/readyz")
async def ready() -> Response:
    """Everything that requests need is there; if not, 503 says what is missing. ``?verbose`` tells more."""
    health = services().health
    details = {"details": health.details()} if "verbose" in request.args else {}
    if problems := health.problems():
        raise Unavailable(" ".join(problems.values()), data={"problems": problems, **details})
    return reply({"ready": True, **details})


@blueprint.get("/metrics")
async def metrics() -> Response:
    """The registry in Prometheus's text format."""
    return Response(generate_latest(services().registry), content_type=CONTENT_TYPE_LATEST)
