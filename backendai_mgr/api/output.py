"""Output as it leaves in replies: characters that two records share are put together, records are batched."""

from collections.abc import AsyncIterator, Collection, Iterable, Iterator

import attrs
import trio

from ..domain.errors import Unavailable
from ..wire.records import GAP, TEXT_STREAMS, Record
from ..wire.rpc import RunStatus

Item = Record | RunStatus

BATCH_BYTES = 64 * 1024
BATCH_SECONDS = 0.01
#: What follows so soon belongs to the same burst.
LINGER_SECONDS = 0.001
#: Neighbours that are nearer in time than this may become one record.
MERGE_NS = 10_000_000


def of_streams(records: Iterable[Record], streams: Collection[str]) -> Iterable[Record]:
    """The records of these streams, and gaps; all of them where no stream is named."""
    if not streams:
        return records
    return (record for record in records if record.stream in streams or record.stream == GAP)


class Joiner:
    """Moves the bounds between records of text so that each record holds whole characters.

    Nothing is lost and offsets stay true. Only where another stream's output lies inside a character do its
    parts stay apart (and go out as base64, since neither is text).
    """

    def __init__(self) -> None:
        #: The beginning of a character whose rest has not come yet.
        self.held: Record | None = None

    def join(self, records: Iterable[Record], *, final: bool = False) -> list[Record]:
        """The records after those of the call before; ``final`` lets out a character that stays broken."""
        joined: list[Record] = []
        held, self.held = self.held, None
        for record in merged(records):
            if held is not None and (record.stream, record.offset) == (held.stream, held.end):
                record = attrs.evolve(record, offset=held.offset, data=held.data + record.data)
            elif held is not None:
                joined.append(held)
            held = None
            if record.stream in TEXT_STREAMS:
                whole, held = _cut(record)
                joined.extend(whole)
            else:
                joined.append(record)
        if held is not None and final:
            joined.append(held)
        elif held is not None:
            self.held = held
        return joined

    def next_offset(self, end: int) -> int:
        """Where a reader goes on who was given everything up to *end* but what is held."""
        return end if self.held is None else self.held.offset


def _cut(record: Record) -> tuple[list[Record], Record | None]:
    """The rest of a character begun before and the whole characters, then a character that begins, if any."""
    begin, end = _orphans(record.data), len(record.data) - _begun(record.data)
    begin = min(begin, end)
    parts = [part for part in (_part(record, 0, begin), _part(record, begin, end)) if part.data]
    held = _part(record, end, len(record.data))
    return parts, held if held.data else None


def merged(records: Iterable[Record]) -> Iterator[Record]:
    """Neighbours of one stream as one record, unless much time lies between them."""
    first: Record | None = None
    pieces: list[bytes] = []
    end = 0
    for record in records:
        if (
            first is not None
            and record.stream == first.stream
            and record.offset == end
            and record.stream in TEXT_STREAMS
            and record.time_ns - first.time_ns < MERGE_NS
        ):
            pieces.append(record.data)
        else:
            if first is not None:
                yield _whole(first, pieces)
            first, pieces = record, [record.data]
        end = record.end
    if first is not None:
        yield _whole(first, pieces)


def _whole(first: Record, pieces: list[bytes]) -> Record:
    return first if len(pieces) == 1 else attrs.evolve(first, data=b"".join(pieces))


def _part(record: Record, begin: int, end: int) -> Record:
    if begin == 0 and end == len(record.data):
        return record
    return attrs.evolve(record, offset=record.offset + begin, data=record.data[begin:end])


def _orphans(data: bytes) -> int:
    """How many bytes at the beginning continue a character that began before: up to 3."""
    return next((at for at, byte in enumerate(data[:3]) if byte & 0xC0 != 0x80), min(len(data), 3))


def _begun(data: bytes) -> int:
    """How many bytes at the end begin a character that is not complete: up to 3."""
    for back, byte in enumerate(reversed(data[-3:]), 1):
        if byte & 0xC0 != 0x80:
            length = (
                4 if 0xF0 <= byte < 0xF5 else 3 if 0xE0 <= byte < 0xF0 else 2 if 0xC2 <= byte < 0xE0 else 1
            )
            return back if length > back else 0
    return 0


@attrs.frozen
class Batch:
    """Records that came together, and the run's status if it has ended with them."""

    records: list[Record]
    ended: RunStatus | None = None


class Intake:
    """Takes items from a stream, at most a batch ahead of its reader, who can then wait for them with
    deadlines; an iterator would not survive being cancelled."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._bytes = 0
        self._ended: RunStatus | None = None
        self._over = False
        self._arrived = trio.Event()
        self._complete = trio.Event()
        self._taken = trio.Event()

    async def feed(self, items: AsyncIterator[Item]) -> None:
        """Take items for as long as the reader takes batches."""
        async for item in items:
            if isinstance(item, RunStatus):
                self._ended = item
                break
            self._records.append(item)
            self._bytes += len(item.data)
            self._arrived.set()
            if self._bytes >= BATCH_BYTES:
                self._complete.set()
                await self._taken.wait()
        self._over = True
        self._arrived.set()
        self._complete.set()
        await trio.sleep_forever()

    async def batch(self, *, until: float) -> Batch:
        """What has come: the whole burst, and more until ``until`` (Trio time) or 64 KiB.

        `Unavailable` when the stream is over without the run's end.
        """
        await self._arrived.wait()
        with trio.move_on_at(max(until, trio.current_time() + LINGER_SECONDS)):
            await self._complete.wait()
        batch = Batch(self._records, self._ended)
        if not batch.records and batch.ended is None:
            raise Unavailable("The output's source has gone.")
        self._records, self._bytes = [], 0
        if not self._over:
            self._arrived, self._complete = trio.Event(), trio.Event()
        self._taken.set()
        self._taken = trio.Event()
        return batch
