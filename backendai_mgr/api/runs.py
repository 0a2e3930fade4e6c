"""``/session/{name}/runs``: start, look at, interrupt, read."""

from typing import Any

import trio
from quart import Blueprint, Response

from ..domain.accounts import Caller
from ..domain.sessions import PlacedSession
from ..wire.records import Record
from ..wire.rpc import Output, RunStatus
from . import run_events
from .auth import authenticated
from .body import json_parameters, query_parameters, reply
from .context import admit_work, limits, services
from .models.runs import AnswerRun, ListRuns, PutRun, ReadOutput, check_within, records_reply, run_reply
from .output import Joiner, of_streams

blueprint = Blueprint("runs", __name__)


@blueprint.put("/session/<name>/runs/<run_id>")
@authenticated
async def put(caller: Caller, name: str, run_id: str) -> Response:
    """Start a run under an id that the client chose; the same request again attaches to it."""
    admit_work()
    parameters = await json_parameters(PutRun, longest=limits().code_body_bytes)
    spec = parameters.spec(limits().code_bytes)
    session, started = await services().runs.put(caller, name, run_id, spec)
    answer = _run_reply(session, started.run) | {"created": started.created}
    return reply(answer, 201 if started.created else 200, {"Location": answer["url"]})


@blueprint.get("/session/<name>/runs/<run_id>")
@authenticated
async def get(caller: Caller, name: str, run_id: str) -> Response:
    """The state of a run."""
    return reply(_run_reply(*await services().runs.get(caller, name, run_id)))


@blueprint.get("/session/<name>/runs")
@authenticated
async def list_runs(caller: Caller, name: str) -> Response:
    """The session's runs, newest first; ``next`` is what ``after`` must be for the page that follows."""
    query = query_parameters(ListRuns)
    session, runs, after = await services().runs.list(caller, name, limit=query.limit, after=query.after)
    return reply({"runs": [_run_reply(session, run) for run in runs], "next": after})


@blueprint.delete("/session/<name>/runs/<run_id>")
@authenticated
async def delete(caller: Caller, name: str, run_id: str) -> Response:
    """Delete a run that has ended, with its output. Its id stays used."""
    await services().runs.delete(caller, name, run_id)
    return Response(b"", status=204)


@blueprint.post("/session/<name>/runs/<run_id>/input")
@authenticated
async def answer(caller: Caller, name: str, run_id: str) -> Response:
    """Answer what a run asks for; the answer is its state then."""
    given = await json_parameters(AnswerRun, longest=limits().code_body_bytes)
    return reply(
        _run_reply(*await services().runs.answer(caller, name, run_id, offset=given.offset, text=given.text))
    )


@blueprint.post("/session/<name>/runs/<run_id>/interrupt")
@authenticated
async def interrupt(caller: Caller, name: str, run_id: str) -> Response:
    """Interrupt a run, or take it out of the queue; the answer is its state then."""
    return reply(_run_reply(*await services().runs.interrupt(caller, name, run_id)))


@blueprint.get("/session/<name>/runs/<run_id>/output")
@authenticated
async def output(caller: Caller, name: str, run_id: str) -> Response:
    """Output from an offset on, waiting for some if asked to.

    ``finished`` says that ``next_offset`` is the end of all output. With ``Accept: text/event-stream`` the
    answer is a stream of events (`run_events`) that ends with the run.
    """
    query = query_parameters(ReadOutput)
    if run_events.wanted():
        admit_work()
        return await run_events.events(caller, name, run_id, query)
    return reply(await _read(caller, name, run_id, query))


async def _read(caller: Caller, name: str, run_id: str, query: ReadOutput) -> dict[str, Any]:
    """Read until there is a whole character to hand out, the run's output ends, or the wait is over."""
    joiner = Joiner()
    end, deadline = query.offset, trio.current_time() + query.wait
    while True:
        wait = max(0.0, deadline - trio.current_time())
        piece = await services().runs.output(
            caller, name, run_id, offset=end, wait=wait, max_bytes=query.max_bytes
        )
        check_within(piece.run, query.offset)
        end = piece.next_offset
        over = _drained(piece)
        records = joiner.join(of_streams(map(Record.unpack, piece.records), query.streams), final=over)
        if records or over or not piece.records or trio.current_time() >= deadline:
            break
    return records_reply(records, joiner.next_offset(end)) | {
        "finished": over,
        "state": str(piece.run.state),
        "exit_code": piece.run.exit_code,
    }


def _run_reply(session: PlacedSession, run: RunStatus) -> dict[str, Any]:
    """The run, and the address under which it is found although the session's name may change hands."""
    url = f"/session/{session.id}/runs/{run.run_id}"
    return run_reply(run) | {"session_id": str(session.id), "url": url}


def _drained(piece: Output) -> bool:
    return piece.run.ended and piece.next_offset >= piece.run.end_offset
