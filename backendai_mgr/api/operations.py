"""For operators: liveness, readiness, metrics. Public, and free of secrets."""

import trio
from prometheus_client import CONTENT_TYPE_LATEST
from quart import Blueprint, Response, request

from ..domain.errors import Unavailable
from .body import reply
from .context import services
from .metrics import exposition

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
    """Figures of this server, all of its workers, in Prometheus's text format."""
    # With many agents it takes a while; other requests go on meanwhile.
    text = await trio.to_thread.run_sync(exposition, services().registry)
    return Response(text, content_type=CONTENT_TYPE_LATEST)
