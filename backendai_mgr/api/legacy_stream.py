"""``/stream/session/{ref}/execute``: the legacy websocket; the connection is the run (api-sessions §5.8)."""

import secrets
from contextlib import suppress
from functools import partial

import attrs
import trio
from quart import Blueprint

from ..domain.accounts import Caller
from ..domain.errors import InvalidParameters, Refusal
from ..wire.records import ConsoleFold
from ..wire.rpc import RunSpec
from .auth import authenticated
from .context import admit_work, limits, services
from .decoding import load_object
from .models.runs import NOT_SUPPORTED, execute_frame, parse_code
from .output import Intake
from .problems import problem_of
from .sockets import INTERNAL_ERROR, POLICY, Socket, current_socket, race, serve, stop_with_server

blueprint = Blueprint("legacy_stream", __name__)

FLUSH_SECONDS = 0.2
INTERRUPT_SECONDS = 10
RESTARTING = {"status": "server-restarting", "msg": "The server is being restarted."}


@attrs.frozen
class _Run:
    """The run of one connection; ``session`` is the full id, so that it stays the same session."""

    caller: Caller
    session: str
    id: str


@blueprint.websocket("/stream/session/<ref>/execute")
@authenticated
async def execute(caller: Caller, ref: str) -> None:
    """Run the code of the first frame and send what it prints. A client that closes interrupts its run; one
    that merely drops leaves it alone."""
    admit_work()
    session = await services().runs.attach_legacy(caller, ref)
    socket = current_socket()
    await socket.open()
    run = _Run(caller, str(session.id), secrets.token_hex(8))
    left = await serve(
        socket,
        partial(_execute, socket, run),
        partial(stop_with_server, socket, last=RESTARTING),
    )
    if left is not None and left.clean:
        await _interrupt(run)


async def _execute(socket: Socket, run: _Run) -> None:
    try:
        code = await _first_frame(socket)
        await services().runs.put(run.caller, run.session, run.id, RunSpec(code=code))
        await race(partial(_send_console, socket, run), partial(_notice_leaving, socket))
    except InvalidParameters as error:
        faults = "; ".join(f"{name}: {fault}" for name, fault in (error.data or {}).items())
        await _fail(socket, POLICY, f"Invalid API parameters: {error.message} ({faults})")
    except Refusal as error:
        problem = problem_of(error)
        await _fail(socket, INTERNAL_ERROR, f"BackendError: {problem.title} {problem.msg}".strip())


async def _first_frame(socket: Socket) -> str:
    """The code to run."""
    message: str | bytes = b""
    with trio.move_on_after(limits().first_message_seconds):
        message = await socket.receive_message()
    if not isinstance(message, str):
        raise InvalidParameters("The first frame is JSON text.", {"mode": "is required"})
    mode, code = parse_code(load_object(message.encode()), limits().code_bytes)
    if mode != "query":
        raise InvalidParameters("mode has an invalid value.", {"mode": f"{mode!r} {NOT_SUPPORTED}"})
    return code


async def _send_console(socket: Socket, run: _Run) -> None:
    async with services().runs.stream(run.caller, run.session, run.id, offset=0) as items:
        intake = Intake()
        await race(partial(intake.feed, items), partial(_send_steps, socket, intake))


async def _send_steps(socket: Socket, intake: Intake) -> None:
    fold = ConsoleFold()
    sent_at = trio.current_time() - FLUSH_SECONDS
    while True:
        batch = await intake.batch(until=sent_at + FLUSH_SECONDS)
        console = fold.fold(batch.records, final=batch.ended is not None)
        if console or batch.ended is not None:
            await socket.send_value(execute_frame(console, batch.ended))
            sent_at = trio.current_time()
        if batch.ended is not None:
            await socket.finish()
            return


async def _notice_leaving(socket: Socket) -> None:
    """Read what nobody asked for, so that the end of the connection is seen behind it."""
    while True:
        await socket.receive_message()


async def _fail(socket: Socket, code: int, text: str) -> None:
    await socket.close_now(code, text, last={"status": "error", "msg": text})


async def _interrupt(run: _Run) -> None:
    """The client has closed: what it started ends. There may be no run, or no agent any more."""
    with trio.move_on_after(INTERRUPT_SECONDS), suppress(Refusal):
        await services().runs.interrupt(run.caller, run.session, run.id)
