"""Being at a run: its output shown as it comes, its prompts answered from our standard input."""

import os
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import click
import trio

from ..wire.records import GAP, HTML, MEDIA, PROMPT, STDERR, STEP, JsonLines, Record
from .client import PATIENCE, ApiError, Client, RunEnd, follow_run

_CONFLICT = 409


class Follower:
    """One run; `interrupt` is set when it shall be interrupted."""

    def __init__(self, client: Client, session_id: str, run_id: str) -> None:
        self.interrupt = trio.Event()
        self._client = client
        self._session_id = session_id
        self._run_id = run_id
        self._path = f"/session/{session_id}/runs/{run_id}"
        self._lines = JsonLines()
        self._asked = trio.Event()
        self._input = _Input()
        #: A line that was read for a prompt which somebody else answered.
        self._unused: list[str | None] = []

    async def follow(self, *, offset: int = 0) -> RunEnd:
        """Show the run's output from *offset* on, until it has ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._interrupt_when_asked)
            nursery.start_soon(self._answer_prompts)
            end = await follow_run(self._client, self._session_id, self._run_id, self._show, offset=offset)
            nursery.cancel_scope.cancel()
        return end

    def look_for_prompt(self) -> None:
        """The run may be waiting for input already."""
        self._asked.set()

    async def _interrupt_when_asked(self) -> None:
        await self.interrupt.wait()
        await self._client.call("POST", f"{self._path}/interrupt", patience=PATIENCE)

    async def _answer_prompts(self) -> None:
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            while (prompt := await self._prompt()) is not None:
                if not self._unused:
                    self._unused.append(await self._input.line(hidden=prompt["is_password"]))
                if await self._answer(prompt["offset"], self._unused[0]):
                    self._unused.clear()

    async def _prompt(self) -> dict[str, Any] | None:
        """What the run asks for now."""
        _, run = await self._client.call("GET", self._path, patience=PATIENCE)
        prompt: dict[str, Any] | None = run["prompt"]
        return prompt

    async def _answer(self, offset: int, text: str | None) -> bool:
        """Whether the text was taken: not when somebody else has answered.

        The prompt's offset goes along, so that a lost request may be sent again.
        """
        body = {"text": text, "offset": offset}
        try:
            await self._client.call("POST", f"{self._path}/input", body=body, patience=PATIENCE)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
            return False
        return True

    async def _show(self, records: Sequence[Record]) -> None:
        """Write output where it belongs. Blocks in a thread, so that a slow reader leaves Ctrl-C working."""
        for stream, group in groupby(records, key=lambda record: record.stream):
            pieces = list(group)
            if stream == GAP:
                gone = sum(piece.gap for piece in pieces)
                click.echo(f"[{gone} bytes of output were dropped here]", err=True)
            elif stream in (MEDIA, HTML, STEP, PROMPT):
                self._take_items(stream, pieces)
            else:
                data = b"".join(piece.data for piece in pieces)
                file = sys.stderr.buffer if stream == STDERR else sys.stdout.buffer
                await trio.to_thread.run_sync(_write, file, data, abandon_on_cancel=True)

    def _take_items(self, stream: str, pieces: Sequence[Record]) -> None:
        for item in (item for piece in pieces for item in self._lines.items(piece)):
            match stream, item:
                case "media", [str(kind), str(data)]:
                    click.echo(f"[{_printable(kind)}, {_size(len(data) * 3 // 4)}]")
                case "html", str(markup):
                    click.echo(f"[text/html, {_size(len(markup.encode()))}]")
                case "prompt", _:
                    self._asked.set()


def _printable(kind: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in kind[:100])


def _size(count: int) -> str:
    return f"{count} bytes" if count < 1000 else f"{round(count / 1000)} kB"


def _write(file: Any, data: bytes) -> None:
    file.write(data)
    file.flush()


class _Input:
    """The lines of our standard input. Read by its descriptor: a thread that is left in a read of the file
    object would hold its lock at the interpreter's end."""

    def __init__(self) -> None:
        self._read = b""

    async def line(self, *, hidden: bool) -> str | None:
        """The next line, without its end; None at the end of it all."""
        with _no_echo() if hidden and sys.stdin.isatty() else _as_it_is():
            while b"\n" not in self._read:
                more = await trio.to_thread.run_sync(_read_some, abandon_on_cancel=True)
                if not more:
                    break
                self._read += more
        line, newline, self._read = self._read.partition(b"\n")
        return line.decode(errors="replace").replace("\0", "") if line or newline else None


def _read_some() -> bytes:
    try:
        return os.read(sys.stdin.fileno(), 65536)
    except (OSError, ValueError, AttributeError):  # closed
        return b""


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield


@contextmanager
def _no_echo() -> Iterator[None]:
    """The terminal shows nothing of what is typed, but for the end of the line."""
    before = termios.tcgetattr(sys.stdin)
    changed = termios.tcgetattr(sys.stdin)
    changed[3] = (changed[3] & ~termios.ECHO) | termios.ECHONL
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def exit_code_of(end: RunEnd) -> int:
    """The code's own exit code. A sentence on standard error says what an exit code cannot."""
    if end.state == "timeout":
        click.echo("The code was interrupted: it ran longer than --timeout allows.", err=True)
    if end.exit_code is not None:
        return end.exit_code
    click.echo(f"The run was lost: {end.reason or 'its session ended'}.", err=True)
    return 1
