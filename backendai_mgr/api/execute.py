"""The legacy calls that run code (api-sessions §5.5)."""

from collections.abc import Mapping
from typing import Any

from quart import Blueprint, Response

from ..domain.accounts import Caller
from .auth import authenticated
from .body import raw_body, reply
from .context import admit_work, limits, services
from .decoding import load_object
from .models.runs import execute_reply, parse_completion, parse_execute

blueprint = Blueprint("execute", __name__)


@blueprint.post("/session/<ref>")
@authenticated
async def execute(caller: Caller, ref: str) -> Response:
    """Start a run, or go on with one; the reply comes at its end or after two seconds."""
    body = load_object(await raw_body(limits().code_body_bytes))
    asked = parse_execute(body, limits().code_bytes)
    if asked.mode == "complete":
        return await _completions(caller, ref, body)
    if asked.mode in ("query", "batch"):
        admit_work()
    result = await services().runs.execute(caller, ref, mode=asked.mode, run_id=asked.run_id, spec=asked.spec)
    return reply(execute_reply(result))


@blueprint.post("/session/<ref>/complete")
@authenticated
async def complete(caller: Caller, ref: str) -> Response:
    """How the code may go on at the cursor; nothing while the session is busy."""
    return await _completions(caller, ref, load_object(await raw_body(limits().code_body_bytes)))


async def _completions(caller: Caller, ref: str, body: Mapping[str, Any]) -> Response:
    code, cursor = parse_completion(body, limits().code_bytes)
    matches = await services().runs.complete(caller, ref, code, cursor)
    return reply({"result": {"status": "finished", "completions": list(matches)}})


@blueprint.post("/session/<ref>/interrupt")
@authenticated
async def interrupt(caller: Caller, ref: str) -> Response:
    """Interrupt whatever runs in the session now."""
    await services().runs.interrupt_session(caller, ref)
    return Response(b"", status=204)
