"""``/stream/session/{name}/runs/{run_id}``: a run's output as it comes, from any offset."""

import json
from functools import partial
from typing import Any

from quart import Blueprint

from ..domain.accounts import Caller
from ..domain.errors import Conflict
from . import sharing
from .auth import authenticated
from .body import query_parameters
from .context import admit_work, services
from .decoding import clean_text
from .models.runs import LARGEST_INPUT, LARGEST_OFFSET, FollowOutput, check_within, end_reply
from .sharing import Follower
from .sockets import INVALID_DATA, POLICY, Socket, current_socket, serve, stop_with_server

blueprint = Blueprint("run_stream", __name__)


@blueprint.websocket("/stream/session/<name>/runs/<run_id>")
@authenticated
async def follow(caller: Caller, name: str, run_id: str) -> None:
    """Frames ``{"records", "next_offset"}``, at the end one with ``finished``.

    A client that comes back with the last ``next_offset`` misses nothing. ``{"interrupt": true}`` from it
    interrupts the run, ``{"input": text, "offset": number}`` answers the prompt at that offset (without one:
    whichever waits; null: the end of all input), and ``{"ack": offset}`` is taken without an effect. A frame
    ``{"error"}`` tells of an answer that nobody waits for.
    """
    admit_work()
    query = query_parameters(FollowOutput)
    session, run = await services().runs.get(caller, name, run_id)
    check_within(run, query.offset)
    socket = current_socket()
    await socket.open()
    with sharing.follow(caller, session, run_id, query.offset, query.streams) as follower:
        await serve(
            socket,
            follower.lead,
            partial(_send_output, socket, follower),
            partial(_obey, socket, caller, name, run_id),
            partial(stop_with_server, socket),
        )


async def _send_output(socket: Socket, follower: Follower) -> None:
    while True:
        frame = await follower.next()
        if frame.records:
            await socket.send_text(frame.text)
        if frame.ended is not None:
            await socket.send_value(end_reply(frame.ended))
            await socket.finish()
            return


async def _obey(socket: Socket, caller: Caller, name: str, run_id: str) -> None:
    """Do what the client's frames say; close on the first that says nothing."""
    while True:
        message = await socket.receive_message()
        try:
            command = json.loads(message) if isinstance(message, str) else None
        except (ValueError, RecursionError):
            command = None
        match command:
            case {"interrupt": True, **rest} if not rest:
                await services().runs.interrupt(caller, name, run_id)
            case {"input": _} if (given := _answer_in(command)) is not None:
                await _answer(socket, caller, name, run_id, *given)
            case {"ack": int(), **rest} if not rest:
                pass
            case None:
                await socket.close_now(INVALID_DATA, "Frames are JSON text.")
                return
            case _:
                await socket.close_now(
                    POLICY, "A command has one member: interrupt, input (and offset), or ack."
                )
                return


def _answer_in(command: Any) -> tuple[int | None, str | None] | None:
    """The offset and the text that a frame answers with; None when it is no answer."""
    text, offset = command["input"], command.get("offset")
    if not command.keys() <= {"input", "offset"} or not isinstance(text, str | None):
        return None
    if offset is not None and not (type(offset) is int and 0 <= offset <= LARGEST_OFFSET):
        return None
    try:
        fits = text is None or len(clean_text(text).encode()) <= LARGEST_INPUT
    except ValueError:
        return None
    return (offset, text) if fits else None


async def _answer(
    socket: Socket, caller: Caller, name: str, run_id: str, offset: int | None, text: str | None
) -> None:
    try:
        await services().runs.answer(caller, name, run_id, offset=offset, text=text)
    except Conflict as error:
        await socket.send_value({"error": error.message, "offset": offset})
