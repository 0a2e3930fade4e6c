"""A run's output where it belongs: our standard output and error."""

import os
import signal
import sys
from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any

import click
import trio

from ..wire.records import GAP, JSON_STREAMS, STDERR, STDOUT, JsonLines, Record

#: Goes back to the beginning of the line and clears it.
_ANEW = "\r\x1b[K"


class Screen:
    """Shows records, and between them a status line on a terminal. ``prompted`` is set by each prompt.

    *raw*: of these streams the bytes and nothing else, what is gone told on standard error.
    """

    def __init__(self, raw: Collection[str] | None = None) -> None:
        self.prompted = trio.Event()
        self._raw = raw
        self._lines = JsonLines()
        #: The last that was written ended within a line.
        self._mid_line = False
        self._has_status = False

    async def show(self, records: Sequence[Record]) -> None:
        """Write output where it belongs. Blocks in a thread, so that a slow reader leaves Ctrl-C working."""
        self.end_status()
        for stream, group in groupby(records, key=lambda record: record.stream):
            pieces = list(group)
            if stream == GAP:
                self._lines.items(pieces[-1])
                gone = sum(piece.gap for piece in pieces)
                click.echo(f"[{gone} bytes of output were dropped here]", err=True)
            elif self._raw is not None and stream not in self._raw:
                pass
            elif stream in JSON_STREAMS:
                self._take_items(stream, pieces)
            else:
                data = b"".join(piece.data for piece in pieces)
                file = sys.stderr.buffer if stream == STDERR else sys.stdout.buffer
                await trio.to_thread.run_sync(_write, file, data, abandon_on_cancel=True)
                self._mid_line = not data.endswith(b"\n")

    def put_status(self, text: str) -> None:
        """Show *text* on a line of its own, in place of the status before."""
        click.echo(
            ("" if self._has_status or not self._mid_line else "\n") + _ANEW + text, nl=False, err=True
        )
        self._has_status, self._mid_line = True, False

    def end_status(self, text: str | None = None) -> None:
        """Leave the status line, if there is one, with *text* in its place."""
        if self._has_status:
            click.echo("" if text is None else _ANEW + text, err=True)
            self._has_status = False

    def _take_items(self, stream: str, pieces: Sequence[Record]) -> None:
        for item in (item for piece in pieces for item in self._lines.items(piece)):
            match stream, item:
                case "media", [str(kind), str(data)]:
                    click.echo(f"[{_printable(kind)}, {_size(len(data) * 3 // 4)}]")
                case "html", str(markup):
                    click.echo(f"[text/html, {_size(len(markup.encode()))}]")
                case "prompt", _:
                    self.prompted.set()


#: The streams of a program's own output.
OWN = (STDOUT, STDERR)


def stop_writing() -> int:
    """Whoever read our output has gone: nothing more may be written, not even at exit. The exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def _printable(kind: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in kind[:100])


def _size(count: int) -> str:
    return f"{count} bytes" if count < 1000 else f"{round(count / 1000)} kB"


def _write(file: Any, data: bytes) -> None:
    file.write(data)
    file.flush()
