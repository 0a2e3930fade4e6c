"""Output that was read a moment ago, so that all who read the same place share one reading."""

from bisect import bisect_right
from collections.abc import Sequence

import attrs

from ..wire.link import cost
from ..wire.records import Record

#: Most that one window keeps: payload bytes, and something for each record.
WINDOW_BYTES = 512 << 10


class Window:
    """Records that follow each other; as newer ones are added the oldest go."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._offsets: list[int] = []
        self._cost = 0

    def reaches(self, offset: int) -> bool:
        """Whether what is at *offset* is here, or would follow what is here."""
        return bool(self._records) and self._offsets[0] <= offset <= self._records[-1].end

    def add(self, records: Sequence[Record]) -> None:
        """What follows the newest; anything while there is nothing."""
        self._records += records
        self._offsets += [record.offset for record in records]
        self._cost += sum(map(cost, records))
        gone = 0
        # Whoever has just read the newest takes them from here: they stay, however large.
        while self._cost > WINDOW_BYTES and gone < len(self._records) - len(records):
            self._cost -= cost(self._records[gone])
            gone += 1
        del self._records[:gone], self._offsets[:gone]

    def cut(self, offset: int, size: int) -> list[Record]:
        """What it has from *offset* on, at most *size* bytes of payload; nothing when that is not here."""
        index = bisect_right(self._offsets, offset) - 1
        found: list[Record] = []
        while 0 <= index < len(self._records) and size > 0:
            record = self._records[index]
            if record.end > offset:
                record = _part(record, offset - record.offset, size)
                found.append(record)
                offset = record.end
                size -= len(record.data)
            index += 1
        return found


def _part(record: Record, skip: int, size: int) -> Record:
    if record.gap:
        return attrs.evolve(record, offset=record.offset + skip, gap=record.gap - skip) if skip else record
    if not skip and len(record.data) <= size:
        return record
    return attrs.evolve(record, offset=record.offset + skip, data=record.data[skip : skip + size])
