"""``/stream/session/{ref}/execute``: the legacy websocket; the connection is the run (api-sessions §5.8)."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import attrs
import trio
from quart import Blueprint

from ..domain.accounts import Caller
from ..domain.errors import Conflict, InvalidParameters, Refusal
from ..services.runs import legacy_step
from ..wire.records import PROMPT, STEP, ConsoleFold, Record
from ..wire.rpc import Prompt, RunSpec
from .auth import authenticated
from .context import admit_work, limits, services
from .decoding import load_object
from .models.runs import LARGEST_INPUT, execute_frame, parse_code
from .output import Intake
from .problems import problem_of
from .sockets import INTERNAL_ERROR, POLICY, Socket, current_socket, race, serve, stop_with_server

blueprint = Blueprint("legacy_stream", __name__)

FLUSH_SECONDS = 0.2
LEAVE_SECONDS = 10
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
    """Run the code of the first frame and send what it prints. A client that closes interrupts its run; that
    of one that merely drops is interrupted after a minute unless somebody reads it."""
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
    if left is not None:
        await _leave(run, clean=left.clean)


async def _execute(socket: Socket, run: _Run) -> None:
    try:
        spec = await _first_frame(socket)
        prompts = _Prompts()
        await race(
            partial(_send_console, socket, run, spec, prompts), partial(_pass_answers, socket, run, prompts)
        )
    except InvalidParameters as error:
        faults = "; ".join(f"{name}: {fault}" for name, fault in (error.data or {}).items())
        await _fail(socket, POLICY, f"Invalid API parameters: {error.message} ({faults})")
    except Refusal as error:
        problem = problem_of(error)
        await _fail(socket, INTERNAL_ERROR, f"BackendError: {problem.title} {problem.msg}".strip())


async def _first_frame(socket: Socket) -> RunSpec:
    """What to run."""
    message: str | bytes = b""
    with trio.move_on_after(limits().first_message_seconds):
        message = await socket.receive_message()
    if not isinstance(message, str):
        raise InvalidParameters("The first frame is JSON text.", {"mode": "is required"})
    mode, spec = parse_code(load_object(message.encode()), limits().code_bytes)
    if mode not in ("query", "batch"):
        raise InvalidParameters("mode has an invalid value.", {"mode": f"{mode!r} does not begin a run"})
    return spec


async def _send_console(socket: Socket, run: _Run, spec: RunSpec, prompts: "_Prompts") -> None:
    async with services().runs.stream(run.caller, run.session, run.id, offset=0, start=spec) as items:
        intake = Intake()
        await race(partial(intake.feed, items), partial(_send_steps, socket, run, prompts, intake))


async def _send_steps(socket: Socket, run: _Run, prompts: "_Prompts", intake: Intake) -> None:
    fold = ConsoleFold()
    sent_at = trio.current_time() - FLUSH_SECONDS
    while True:
        batch = await intake.batch(until=sent_at + FLUSH_SECONDS)
        held: list[list[Any]] = []
        for records in _cut_after_events(batch.records):
            console = fold.fold(records)
            asks = None if fold.prompt is None else await _asks(run, fold.prompt)
            if asks is not None:
                prompts.waiting = asks.offset
            if batch.ended is not None and fold.step_end is None:
                held += console  # goes out with the end
            elif console or asks is not None or fold.step_end is not None:
                await socket.send_value(execute_frame(held + console, *legacy_step(fold, None, asks)))
                held = []
                sent_at = trio.current_time()
        if batch.ended is not None:
            rest = held + fold.fold([], final=True)
            await socket.send_value(execute_frame(rest, *legacy_step(fold, batch.ended, None)))
            await socket.finish()
            return


def _cut_after_events(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """The records, cut after each that ends a step or asks for input: a frame tells of one such thing."""
    begin = 0
    for end, record in enumerate(records, 1):
        if record.stream in (STEP, PROMPT):
            yield records[begin:end]
            begin = end
    if begin < len(records):
        yield records[begin:]


async def _asks(run: _Run, offset: int) -> Prompt | None:
    """The prompt at this offset, if it has not been answered by somebody else."""
    _, status = await services().runs.get(run.caller, run.session, run.id)
    return status.prompt if status.prompt is not None and status.prompt.offset == offset else None


@attrs.define
class _Prompts:
    """The prompt that this connection was told of and has not answered."""

    waiting: int | None = None


async def _pass_answers(socket: Socket, run: _Run, prompts: _Prompts) -> None:
    """A text frame answers the prompt that waits. What nobody asked for is read all the same, so that the end
    of the connection is seen behind it."""
    while True:
        message = await socket.receive_message()
        if prompts.waiting is None or not isinstance(message, str):
            continue
        offset, prompts.waiting = prompts.waiting, None
        if len(message.encode(errors="replace")) > LARGEST_INPUT:
            raise InvalidParameters("The input is too large.", {"input": f"more than {LARGEST_INPUT} bytes"})
        with suppress(Conflict):  # somebody else has answered
            await services().runs.answer(run.caller, run.session, run.id, offset=offset, text=message)


async def _fail(socket: Socket, code: int, text: str) -> None:
    await socket.close_now(code, text, last={"status": "error", "msg": text})


async def _leave(run: _Run, *, clean: bool) -> None:
    """The client has gone: what it started ends. There may be no run, or no agent any more."""
    runs = services().runs
    with trio.move_on_after(LEAVE_SECONDS), suppress(Refusal):
        await (runs.interrupt if clean else runs.abandon)(run.caller, run.session, run.id)
