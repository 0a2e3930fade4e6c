"""Terminals: ``/stream/session/{ref}/pty`` (api-sessions §5.8). They outlive their connections."""

from contextlib import suppress
from functools import partial
from secrets import token_hex

import trio
from quart import Blueprint

from ..domain.accounts import Caller
from ..domain.errors import Conflict
from ..wire.calls import MAX_TYPED
from ..wire.rpc import RunStatus
from .auth import authenticated
from .body import query_parameters
from .context import admit_work, services
from .models.runs import check_within
from .models.terminals import (
    AttachTerminal,
    BadFrame,
    Resized,
    RestartAsked,
    Typed,
    ack_frame,
    attached_frame,
    exit_frame,
    out_frame,
    parse_frame,
)
from .output import BATCH_SECONDS, Intake
from .sockets import POLICY, Socket, current_socket, race, serve, stop_with_server

blueprint = Blueprint("terminals", __name__)

#: Who comes back without saying where it was sees so many bytes again.
REPEATED = 64 * 1024
#: Seconds until a terminal that had no room is asked again.
PAUSE = 0.2


@blueprint.websocket("/stream/session/<ref>/pty")
@authenticated
async def pty(caller: Caller, ref: str) -> None:
    """Frames stdin, resize, ping and restart from the client; out to it, from the last of the screen on.

    The terminal stays when the connection ends: the next one finds it, by the name ``terminal`` or as the
    session's default one. A client that gives a parameter is told more: ``attached`` first, ``ack`` after
    each stdin, ``next_offset`` with each out, and ``exit`` at the end.
    """
    admit_work()
    given = query_parameters(AttachTerminal)
    session, run = await services().terminals.open(caller, ref, given.terminal)
    check_within(run, given.offset or 0)
    attachment = _Attachment(current_socket(), caller, str(session.id), given)
    await attachment.begin(run, given.offset)
    await attachment.socket.open()
    await serve(
        attachment.socket,
        attachment.show,
        attachment.obey,
        partial(stop_with_server, attachment.socket),
    )


class _Attachment:
    """One connection to a terminal; to the next one too, when the session is started anew."""

    def __init__(self, socket: Socket, caller: Caller, session: str, given: AttachTerminal) -> None:
        self.socket = socket
        self._caller = caller
        self._session = session
        self._named = given.terminal is not None
        self._counted = given != AttachTerminal()
        self._writer = given.client or token_hex(8)
        self._run_id = ""
        self._offset = 0
        self._typed = 0
        #: While a restart that this client asked for is under way; set when the next terminal is there.
        self._restarted: trio.Event | None = None

    async def begin(self, run: RunStatus, offset: int | None) -> None:
        """From now on it is about this terminal."""
        self._run_id = run.run_id
        self._offset = max(0, run.end_offset - REPEATED) if offset is None else offset
        self._typed = 0
        with suppress(Conflict):  # it has ended
            await self._type(b"", None)

    # -- to the client

    async def show(self) -> None:
        """Send what the terminal shows until it has ended, then close."""
        while True:
            if self._counted:
                frame = attached_frame(self._session, self._run_id, self._offset, self._typed)
                await self.socket.send_value(frame)
            ended = await self._show_one()
            if self._restarted is None or self._named:
                break
            await self._restarted.wait()
            self._restarted = None
        if self._counted:
            await self.socket.send_value(exit_frame(ended))
        await self.socket.finish()

    async def _show_one(self) -> RunStatus:
        """Send what this terminal shows until it has ended."""
        ended: list[RunStatus] = []
        read = services().runs.stream(self._caller, self._session, self._run_id, offset=self._offset)
        async with read as items:
            intake = Intake()
            await race(partial(intake.feed, items), partial(self._send_batches, intake, ended))
        return ended[0]

    async def _send_batches(self, intake: Intake, ended: list[RunStatus]) -> None:
        sent_at = trio.current_time() - BATCH_SECONDS
        while not ended:
            batch = await intake.batch(until=sent_at + BATCH_SECONDS)
            if batch.records:
                await self.socket.send_value(out_frame(batch.records, counted=self._counted))
                sent_at = trio.current_time()
            if batch.ended is not None:
                ended.append(batch.ended)

    # -- from the client

    async def obey(self) -> None:
        """Do what the client's frames say, in their order; close on the first that says nothing."""
        while True:
            try:
                frame = parse_frame(await self.socket.receive_message())
            except BadFrame as error:
                await self.socket.close_now(POLICY, str(error))
                return
            match frame:
                case Typed(data=data, offset=offset):
                    await self._take_input(data, offset)
                case Resized(rows=rows, columns=columns):
                    with suppress(Conflict):  # it has ended, which is told apart
                        await services().terminals.resize(
                            self._caller, self._session, self._run_id, rows, columns
                        )
                case RestartAsked():
                    await self._restart()

    async def _take_input(self, data: bytes, offset: int | None) -> None:
        """Have all of it typed, however slowly the terminal reads; the client waits meanwhile."""
        begin = self._typed if offset is None else offset
        end = begin + len(data)
        with suppress(Conflict):  # it has ended, which is told apart
            while begin <= self._typed < end:
                before, done = self._typed, self._typed - begin
                await self._type(data[done : done + MAX_TYPED], self._typed)
                if self._typed == before:  # it was waited for room, or too many wait already
                    await trio.sleep(PAUSE)
        if self._counted:
            await self.socket.send_value(ack_frame(self._typed))

    async def _type(self, data: bytes, offset: int | None) -> None:
        self._typed = await services().terminals.type(
            self._caller, self._session, self._run_id, writer=self._writer, offset=offset, data=data
        )

    async def _restart(self) -> None:
        """Start the session anew, and go on with its next default terminal."""
        self._restarted = restarted = trio.Event()
        await services().sessions.restart(self._caller, self._session)
        if self._named:
            return
        _, run = await services().terminals.open(self._caller, self._session, None)
        await self.begin(run, 0)
        restarted.set()
