"""`terminal`: be at a shell inside of a session."""

import base64
import fcntl
import os
import signal
import struct
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import click
import trio

from ..runtime.supervise import Backoff
from . import options
from .client import PATIENCE, Client, find_target, open_client
from .errors import ApiError, Away, told
from .frames import Frames
from .runstream import RunEnd, exit_code_of

#: Ctrl-]: leaves, wherever it is typed.
_LEAVE = b"\x1d"
#: What a terminal takes for the end of its input.
_END = b"\x04"
#: Bytes that were typed and are not known to have arrived; more is not read.
_MOST_UNSURE = 64 * 1024
_PIECE = 16 * 1024


@click.command()
@options.data_dir
@click.option("--terminal", "terminal_id", metavar="ID", help="Another one than the session's default.")
@click.argument("name")
def terminal(data_dir: Path | None, terminal_id: str | None, name: str) -> Any:
    """Open a shell in the session NAME, or come back to the one that is open there.

    Ctrl-] leaves; the shell goes on, with all that it runs, and the next `terminal` shows its screen again.
    `exit` ends it, and this command exits with its exit code. A connection that breaks is opened again.
    """
    return partial(_terminal, data_dir, name, terminal_id)


async def _terminal(data_dir: Path | None, name: str, terminal_id: str | None) -> int:
    with told():
        async with open_client(find_target(data_dir)) as client, trio.open_nursery() as nursery:
            attachment = _Attachment(client, name, terminal_id)
            with _raw(sys.stdin.fileno()):
                nursery.start_soon(_watch_signals, attachment, nursery.cancel_scope)
                nursery.start_soon(_read_input, attachment, nursery.cancel_scope)
                await attachment.stay()
                nursery.cancel_scope.cancel()
    if attachment.end is not None:
        return exit_code_of(attachment.end)
    if sys.stdin.isatty():
        click.echo(f"The terminal stays; come back with `backendai-mgr terminal {name}`.", err=True)
    return attachment.left_with


class _Attachment:
    """A terminal that we are at, over as many connections as that takes. Input is counted: what may have been
    lost with a connection is sent again, and the terminal passes over what it has."""

    def __init__(self, client: Client, name: str, terminal_id: str | None) -> None:
        #: How the terminal has ended.
        self.end: RunEnd | None = None
        #: The exit code of whoever leaves before that.
        self.left_with = 0
        self._client = client
        self._session = quote(name, safe="")
        self._query: dict[str, Any] = {"client": uuid4().hex}
        if terminal_id is not None:
            self._query["terminal"] = terminal_id
        self._attached = False
        self._unsure = bytearray()
        self._sure = 0  # position of the first byte of that
        self._resized = False
        self._changed = trio.Event()

    def resize(self) -> None:
        """Our own terminal may have another size."""
        self._resized = True
        self._wake()

    async def type(self, data: bytes) -> None:
        """Have this typed; returns when there is room for more."""
        self._unsure += data
        self._wake()
        while len(self._unsure) >= _MOST_UNSURE:
            await self._changed.wait()

    async def stay(self) -> None:
        """Be there until the terminal ends. `Away` after a minute without a connection."""
        heard = trio.current_time()
        backoff = Backoff(first=0.1, longest=2.0, quiet=5.0)
        while self.end is None:
            opened = trio.current_time()
            try:
                async with self._client.frames(
                    f"/stream/session/{self._session}/pty", **self._query
                ) as frames:
                    await self._converse(frames)
                    heard = trio.current_time()
            except (Away, ApiError) as error:
                passing = self._attached and (isinstance(error, Away) or error.status == 503)
                if not passing or trio.current_time() > heard + PATIENCE:
                    raise
            if self.end is None:
                await trio.sleep(backoff.after(trio.current_time() - opened))

    async def _converse(self, frames: Frames) -> None:
        """Be at the terminal over one connection."""
        async with trio.open_nursery() as nursery:
            while self.end is None and (frame := await frames.receive()) is not None:
                match frame:
                    case {"type": "attached"}:
                        self._session = frame["session_id"]
                        self._query |= {"terminal": frame["terminal"], "offset": frame["offset"]}
                        self._attached = self._resized = True
                        self._know(frame["input"])
                        nursery.start_soon(self._send, frames)
                    case {"type": "out"}:
                        data = base64.b64decode(frame["data"])
                        await trio.to_thread.run_sync(_show, data, abandon_on_cancel=True)
                        self._query["offset"] = frame["next_offset"]
                    case {"type": "ack"}:
                        self._know(frame["input"])
                    case {"type": "exit"}:
                        self.end = RunEnd(frame["state"], frame["exit_code"], frame["reason"])
            nursery.cancel_scope.cancel()

    async def _send(self, frames: Frames) -> None:
        """Send our size and what is typed, from what the terminal has on."""
        sent = self._sure
        while True:
            sent = max(sent, self._sure)
            if self._resized and (size := _size_of(sys.stdout.fileno())) is not None:
                await frames.send({"type": "resize", "rows": size[0], "cols": size[1]})
            self._resized = False
            piece = bytes(self._unsure[sent - self._sure :][:_PIECE])
            if piece:
                chars = base64.b64encode(piece).decode()
                await frames.send({"type": "stdin", "chars": chars, "offset": sent})
                sent += len(piece)
            else:
                await self._changed.wait()

    def _know(self, position: int) -> None:
        """The terminal has all that was typed before this position."""
        known = max(0, position - self._sure)
        del self._unsure[:known]
        self._sure += known
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


async def _watch_signals(attachment: _Attachment, leave: trio.CancelScope) -> None:
    numbers = signal.SIGWINCH, signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    with trio.open_signal_receiver(*numbers) as signals:
        async for number in signals:
            if number == signal.SIGWINCH:
                attachment.resize()
            else:
                attachment.left_with = 128 + number
                leave.cancel()


async def _read_input(attachment: _Attachment, leave: trio.CancelScope) -> None:
    """Pass on what is typed, until its end or Ctrl-]."""
    at_terminal = sys.stdin.isatty()
    while True:
        data = await trio.to_thread.run_sync(_read_some, abandon_on_cancel=True)
        before, key, _ = data.partition(_LEAVE) if at_terminal else (data, b"", b"")
        if before or not data:
            await attachment.type(before or _END)
        if key:
            leave.cancel()
        if key or not data:
            return


def _read_some() -> bytes:
    try:
        return os.read(sys.stdin.fileno(), _PIECE)
    except OSError:  # our terminal has gone
        return b""


def _show(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _size_of(fd: int) -> tuple[int, int] | None:
    """Rows and columns of a terminal; None where there is none, or it does not know."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    """A terminal hands each key over as it is, and shows nothing by itself."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)  # what was typed already counts
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
