"""Being at a run: its output shown as it comes, its prompts answered from our standard input."""

import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio

from .client import PATIENCE, Client
from .contact import show_contact
from .errors import ApiError
from .runstream import RunEnd, follow_run
from .showing import Screen

_CONFLICT = 409


class Follower:
    """One run; `interrupt` is set when it shall be interrupted."""

    def __init__(self, client: Client, session_id: str, run_id: str) -> None:
        self.interrupt = trio.Event()
        self._client = client
        self._session_id = session_id
        self._run_id = run_id
        self._path = f"/session/{session_id}/runs/{run_id}"
        self._screen = Screen()
        self._input = _Input()
        #: A line that was read for a prompt which somebody else answered.
        self._unused: list[str | None] = []

    async def follow(self, *, offset: int = 0) -> RunEnd:
        """Show the run's output from *offset* on, until it has ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._interrupt_when_asked)
            nursery.start_soon(self._answer_prompts)
            if sys.stderr.isatty():
                endpoint = self._client.target.endpoint
                nursery.start_soon(show_contact, self._client.contact, endpoint, self._screen)
            end = await follow_run(
                self._client, self._session_id, self._run_id, self._screen.show, offset=offset
            )
            nursery.cancel_scope.cancel()
        return end

    def look_for_prompt(self) -> None:
        """The run may be waiting for input already."""
        self._screen.prompted.set()

    async def _interrupt_when_asked(self) -> None:
        await self.interrupt.wait()
        await self._client.call("POST", f"{self._path}/interrupt", patience=PATIENCE)

    async def _answer_prompts(self) -> None:
        while True:
            await self._screen.prompted.wait()
            self._screen.prompted = trio.Event()
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
        """Whether the text was taken: not when somebody else has given another answer.

        The prompt's offset goes along, so that a lost request may be sent again: the same answer to the same
        prompt is taken once.
        """
        body = {"text": text, "offset": offset}
        try:
            await self._client.call("POST", f"{self._path}/input", body=body, patience=PATIENCE)
        except ApiError as error:
            if error.status != _CONFLICT:
                raise
            return False
        return True


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
