"""The output record, the one shape of output on every hop, and its folds.

An *offset* is the number of payload bytes, of all streams, before a record in its run. A gap record has no
data; it says that the ``gap`` bytes from its offset on are gone.
"""

import base64
import codecs
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import attrs

STDOUT = "stdout"
STDERR = "stderr"
MEDIA = "media"
HTML = "html"
STEP = "step"
PROMPT = "prompt"
GAP = "gap"
#: Streams of JSON, an item per line; a line may be split between records.
JSON_STREAMS = frozenset({MEDIA, HTML, STEP, PROMPT})
#: Streams whose bytes are UTF-8 text; a character may be split between two records.
TEXT_STREAMS = frozenset({STDOUT, STDERR, "log"}) | JSON_STREAMS


@attrs.frozen
class Record:
    """A piece of output: ``offset`` and ``gap`` in bytes, ``time_ns`` since the epoch."""

    offset: int
    time_ns: int
    stream: str
    data: bytes = b""
    gap: int = 0

    @property
    def end(self) -> int:
        """Offset of whatever follows this record."""
        return self.offset + len(self.data) + self.gap

    def pack(self) -> list[Any]:
        """The form on the agent link: ``[offset, time_ns, stream, data, gap]``."""
        return [self.offset, self.time_ns, self.stream, self.data, self.gap]

    @classmethod
    def unpack(cls, packed: Sequence[Any]) -> "Record":
        """The inverse of `pack`; ValueError when the peer sent something else."""
        match packed:
            case [int(offset), int(time_ns), str(stream), bytes(data), int(gap)] if offset >= 0 and gap >= 0:
                return cls(offset, time_ns, stream, data, gap)
        raise ValueError("not an output record")


def to_json(record: Record) -> dict[str, Any]:
    """``{"offset", "time", "stream", "data" | "base64" | "gap"}``; ``time`` in seconds since the epoch.

    Text that is valid UTF-8 is ``data``, anything else ``base64``, so a reader gets every byte back.
    """
    out: dict[str, Any] = {
        "offset": record.offset,
        "time": record.time_ns / 1e9,
        "stream": record.stream,
    }
    if record.stream == GAP:
        out["gap"] = record.gap
        return out
    try:
        out["data"] = record.data.decode()
    except UnicodeDecodeError:
        out["base64"] = base64.b64encode(record.data).decode()
    return out


def from_json(value: dict[str, Any]) -> Record:
    """The inverse of `to_json`, for our client."""
    data = base64.b64decode(value["base64"]) if "base64" in value else value.get("data", "").encode()
    return Record(value["offset"], round(value["time"] * 1e9), value["stream"], data, value.get("gap", 0))


class JsonLines:
    """The items of the streams of JSON lines. An item of which a part was lost is passed over."""

    def __init__(self) -> None:
        self._begun: dict[str, bytes] = {}

    def items(self, record: Record) -> list[Any]:
        """The items that end in *record*, which is of such a stream, or is a gap."""
        if record.stream == GAP:
            self._begun.clear()
            return []
        *lines, rest = (self._begun.pop(record.stream, b"") + record.data).split(b"\n")
        if rest:
            self._begun[record.stream] = rest
        items = []
        for line in lines:
            with suppress(ValueError):
                items.append(json.loads(line))
        return items


class ConsoleFold:
    """Folds records into the legacy console list ``[[type, text], …]`` (api-sessions §5.5).

    Neighbours of one stream are merged. A character that is split between records is held back until its
    rest arrives; ``final=True`` lets a broken rest out as U+FFFD. The ends of steps and prompts do not show.
    """

    def __init__(self) -> None:
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = {stream: make(errors="replace") for stream in (STDOUT, STDERR)}
        self._lines = JsonLines()
        #: The end of a step, and the offset of a prompt, that the last fold came by last.
        self.step_end: dict[str, Any] | None = None
        self.prompt: int | None = None

    def fold(self, records: Iterable[Record], *, final: bool = False) -> list[list[Any]]:
        """The console items for *records*, which follow those of the call before."""
        console: list[list[Any]] = []
        self.step_end = self.prompt = None
        for record in records:
            if record.stream == GAP:
                self._lines.items(record)
                self._add(console, STDERR, f"\n[{record.gap} bytes of output were dropped here]\n")
            elif record.stream in self._decoders:
                self._add(console, record.stream, self._decoders[record.stream].decode(record.data))
            elif record.stream in JSON_STREAMS:
                self._add_items(console, record)
            else:
                console.append([record.stream, record.data.decode(errors="replace")])
        if final:
            for stream, decoder in self._decoders.items():
                self._add(console, stream, decoder.decode(b"", final=True))
        return console

    def _add_items(self, console: list[list[Any]], record: Record) -> None:
        for item in self._lines.items(record):
            match record.stream, item:
                case "media", [str(kind), str(data)]:
                    console.append([MEDIA, [kind, data]])
                case "html", str(markup):
                    console.append([HTML, markup])
                case "step", {"step": str(), "exit_code": int()}:
                    self.step_end = item
                case "prompt", dict():
                    self.prompt = record.offset

    @staticmethod
    def _add(console: list[list[Any]], stream: str, text: str) -> None:
        if not text:
            return
        if console and console[-1][0] == stream:
            console[-1][1] += text
        else:
            console.append([stream, text])
