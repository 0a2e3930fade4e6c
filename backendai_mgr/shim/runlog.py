"""The log of one run: every byte that it wrote, in segment files, readable from any offset.

A *segment* is a file ``%020d.seg`` named by the offset of its first byte.  It is a sequence of records: a
header of 32 bytes (magic, kind, length, offset, time in ns since the epoch; little endian), then the payload.
The *offset* of a record is the number of payload bytes of all streams before it.  A gap record has no
payload: its length says how many bytes were lost there.  A hole between two segments means the same.

Streams: ``stdout``, ``stderr`` and ``log`` (what the system has to say) are text; ``media``, ``html``,
``step`` and ``prompt`` are JSON, a line per item: ``["image/png", base64]``, ``"markup"``,
``{"step", "exit_code"}`` and ``{"is_password"}``.

One process writes, any number read.  A record is written by one ``writev``; a reader takes a last record that
is short or bad as "not there yet", and a new owner truncates it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from backendai_mgr.shim.failpoint import failpoint

SEGMENT_BYTES = 8 << 20
CAP_BYTES = 64 << 20
RECORD_BYTES = 1 << 20  # longest payload of one record

GAP = "gap"
STREAMS = {"stdout": 1, "stderr": 2, "media": 3, "html": 4, "log": 5, "step": 6, "prompt": 7, GAP: 255}
_NAMES = {kind: name for name, kind in STREAMS.items()}
_GAP = STREAMS[GAP]

_HEADER = struct.Struct("<4sIQQQ")
_MAGIC = b"BRL1"
_SUFFIX = ".seg"
_WINDOW = 256 << 10  # read ahead by this much when records are short
_RETRY_NS = 100_000_000  # after a failed write try again this much later
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NEVER = 1 << 63
_MISSED_SEGMENTS = 64  # a reader that meets this many vanished segments in one read gives up until the next


class LogRecord(NamedTuple):
    """What a reader gets: `data` of `stream` at `offset`; for "gap" no data, but `gap` bytes are missing."""

    offset: int
    time_ns: int  # 0 for a gap that no record speaks of
    stream: str
    data: bytes
    gap: int = 0


class RunLogReader:
    """Reads a run's log while it is being written.

    Holds no file open between calls.  Not for use by several threads at once.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = os.fspath(directory)
        self._starts: list[int] = []
        self._place = (-1, 0, 0)  # segment, position in it, offset there: where the last read stopped

    def read(self, offset: int, max_bytes: int, end: int | None = None) -> list[LogRecord]:
        """Return what the log has from `offset` on, at most `max_bytes` of payload; [] if nothing yet.

        It may be less than there is: ask again for what follows.

        The first record starts exactly at `offset`, which may be inside a record.  `end` is the end offset of
        a run that has ended: bytes before it that never reached the disk are then returned as a gap.
        """
        records: list[LogRecord] = []
        fresh = False  # the list was taken after the last look into the segment
        missed = 0
        while max_bytes > 0 and missed < _MISSED_SEGMENTS:
            index = bisect_right(self._starts, offset) - 1
            if index >= 0:
                try:
                    found = self._read_segment(self._starts[index], offset, max_bytes)
                except FileNotFoundError:  # dropped by the writer since we listed
                    self._starts = _segments(self._directory)
                    missed += 1
                    continue
                if found:
                    records += found
                    max_bytes -= sum(len(record.data) for record in found)
                    offset = found[-1].offset + len(found[-1].data) + found[-1].gap
                    if index + 1 == len(self._starts) and (end is None or offset == end):
                        break  # the reader comes again for more
                    fresh = False
                    continue
            if index + 1 < len(self._starts):  # the writer had left this segment before we looked into it
                records.append(_gap(offset, self._starts[index + 1]))
                offset = self._starts[index + 1]
                fresh = False
            elif not fresh:
                self._starts, fresh = _segments(self._directory), True
            else:
                if end is not None and offset < end:
                    records.append(_gap(offset, end))
                break
        return records

    def end_offset(self) -> int:
        """Return the offset just after the last whole record (0 for no log)."""
        for _ in range(_MISSED_SEGMENTS):
            self._starts = _segments(self._directory)
            if not self._starts:
                return 0
            try:
                with _Segment(self._directory, self._starts[-1], self._place) as segment:
                    segment.seek(_NEVER)
                    self._place = segment.place
                    return segment.offset
            except FileNotFoundError:
                continue
        return self._starts[-1]

    def _read_segment(self, start: int, offset: int, room: int) -> list[LogRecord]:
        """Return the records of one segment from `offset` on, with at most `room` bytes of payload."""
        records = []
        with _Segment(self._directory, start, self._place if self._place[2] <= offset else None) as segment:
            segment.seek(offset)
            while room > 0 and (header := segment.header()) is not None:
                kind, length, time_ns = header
                skip = offset - segment.offset
                if kind == _GAP:
                    records.append(_gap(offset, segment.offset + length, time_ns))
                    offset = segment.offset + length
                else:
                    data = segment.payload(skip, min(length - skip, room))
                    records.append(LogRecord(offset, time_ns, _NAMES[kind], data))
                    offset += len(data)
                    room -= len(data)
                    if skip + len(data) < length:
                        break
                segment.step()
            self._place = segment.place
        return records


class RunLogWriter:
    """Appends to a run's log; never raises and never waits for room.

    What cannot be written (a full disk, a vanished folder) is counted, and becomes a gap as soon as anything
    can be written again.  Over `cap_bytes` the segment in the middle is dropped: head and tail stay.
    `make_room` is called when the last gap finds no room: it should free a little of the disk.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        fresh: bool = False,
        segment_bytes: int = SEGMENT_BYTES,
        cap_bytes: int = CAP_BYTES,
        make_room: Callable[[], None] | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Take over the log in `directory` (which must exist), truncating an unfinished record.

        Where it is `fresh`, nothing was written yet, and nothing is looked at.
        """
        self._directory = os.fspath(directory)
        self._segment_bytes = segment_bytes
        self._cap_bytes = cap_bytes
        self._make_room = make_room
        self._clock_ns = clock_ns
        self._fd = -1
        self._missing = 0  # the last bytes before end_offset that are not on disk
        self._retry_at = 0
        self.end_offset = 0 if fresh else _recover(self._directory)
        starts = [] if fresh else _segments(self._directory)
        self._sizes = {start: _size(self._path(start)) for start in starts}
        if self._sizes:
            self._fd = os.open(self._path(max(self._sizes)), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def append(self, stream: str, data: bytes | bytearray | memoryview) -> None:
        """Log `data` (bytes-like, copied) as written now by `stream`."""
        kind = STREAMS[stream]
        view = memoryview(data)
        for first in range(0, len(view), RECORD_BYTES):
            self._append(kind, view[first : first + RECORD_BYTES])

    def close(self) -> None:
        """Write what is missing as a gap if that is possible at all, and let go of the files."""
        if self._missing and not self._try_write([]):
            if self._make_room is not None:
                self._make_room()
            self._try_write([])
        self._leave()

    def _append(self, kind: int, piece: memoryview) -> None:
        now = self._clock_ns()
        if not (self._missing and now < self._retry_at):
            header = _HEADER.pack(_MAGIC, kind, len(piece), self.end_offset, now)
            if self._try_write([header, piece]):
                self.end_offset += len(piece)
                return
            self._retry_at = now + _RETRY_NS
        self._missing += len(piece)
        self.end_offset += len(piece)

    def _try_write(self, record: list[bytes | memoryview]) -> bool:
        """Write one record, and before it the gap that is owed."""
        try:
            if self._fd < 0 or self._sizes[max(self._sizes)] >= self._segment_bytes:
                self._roll()
            if self._missing:
                start = self.end_offset - self._missing
                self._write([_HEADER.pack(_MAGIC, _GAP, self._missing, start, self._clock_ns()), *record])
            elif record:
                self._write(record)
        except OSError:  # whatever the disk's trouble is, the program must not feel it
            return False
        self._missing = 0
        return True

    def _write(self, parts: list[bytes | memoryview]) -> None:
        size = sum(map(len, parts))
        current = max(self._sizes)
        while True:
            try:
                written = os.writev(self._fd, parts)
            except OSError as error:
                if error.errno not in _FULL or not self._drop_middle():
                    raise
                continue
            if written == size:
                break
            self._shorten(self._sizes[current])
            if not self._drop_middle():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._sizes[current] += size

    def _shorten(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError:  # nothing may follow half a record: the next one opens a new segment
            self._leave()
            raise

    def _leave(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _roll(self) -> None:
        """Begin a segment at the end; what was missing before it shows as a hole in the names."""
        self._leave()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        # The very first segment is named 0 even if its bytes are missing: readers then know where they are.
        start = self.end_offset if self._sizes else 0
        self._fd = os.open(self._path(start), flags, 0o600)
        self._sizes[start] = 0
        if start:
            self._missing = 0
        failpoint("runlog.after_roll")
        while sum(self._sizes.values()) > self._cap_bytes and self._drop_middle():
            pass

    def _drop_middle(self) -> bool:
        starts = sorted(self._sizes)
        if len(starts) < 3:
            return False
        middle = starts[len(starts) // 2]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(middle))
        del self._sizes[middle]
        return True

    def _path(self, start: int) -> str:
        return _path(self._directory, start)


class _Segment:
    """A walk over the whole records of one segment file."""

    def __init__(self, directory: str, start: int, place: tuple[int, int, int] | None) -> None:
        """Begin at `place` if that is in this segment, else at its start.  Raises FileNotFoundError."""
        self._fd = os.open(_path(directory, start), os.O_RDONLY | os.O_CLOEXEC)
        self._start = start
        here = place is not None and place[0] == start
        _, self._position, self.offset = place if place is not None and here else (start, 0, start)
        self._window = b""
        self._window_at = 0
        self._header: tuple[int, int, int] | None = None

    def __enter__(self) -> _Segment:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    @property
    def place(self) -> tuple[int, int, int]:
        return self._start, self._position, self.offset

    def header(self) -> tuple[int, int, int] | None:
        """Return (kind, length, time) of the record here; None if it is not wholly there."""
        if self._header is None:
            raw = self._bytes(self._position, _HEADER.size)
            if len(raw) == _HEADER.size:
                magic, kind, length, offset, time_ns = _HEADER.unpack(raw)
                good = magic == _MAGIC and offset == self.offset and kind in _NAMES and length > 0
                if good and (kind == _GAP or (length <= RECORD_BYTES and self._reaches(length))):
                    self._header = kind, length, time_ns
        return self._header

    def payload(self, skip: int, take: int) -> bytes:
        return self._bytes(self._position + _HEADER.size + skip, take)

    def step(self) -> None:
        """Go on to the next record; only after `header` returned one."""
        assert self._header is not None
        kind, length, _ = self._header
        self.offset += length
        self._position += _HEADER.size + (0 if kind == _GAP else length)
        self._header = None

    def seek(self, offset: int) -> None:
        """Step to the record that holds `offset`, or to the end."""
        while (header := self.header()) is not None and self.offset + header[1] <= offset:
            self.step()

    def _reaches(self, length: int) -> bool:
        last = self._position + _HEADER.size + length
        return last <= self._window_at + len(self._window) or last <= os.fstat(self._fd).st_size

    def _bytes(self, position: int, size: int) -> bytes:
        first = position - self._window_at
        if first >= 0 and first + size <= len(self._window):
            return self._window[first : first + size]
        if size >= _WINDOW:
            return os.pread(self._fd, size, position)
        self._window, self._window_at = os.pread(self._fd, _WINDOW, position), position
        return self._window[:size]


def _gap(start: int, end: int, time_ns: int = 0) -> LogRecord:
    return LogRecord(start, time_ns, GAP, b"", end - start)


def drop_segments(directory: str | os.PathLike[str]) -> None:
    """Remove all that a log has written: readers find a gap instead."""
    folder = os.fspath(directory)
    for start in _segments(folder):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_path(folder, start))


def first_segment() -> str:
    """Return the name of a log's first file, which may be there, empty, before anything is written."""
    return _name(0)


def _name(start: int) -> str:
    return f"{start:020d}{_SUFFIX}"


def _path(directory: str, start: int) -> str:
    return f"{directory}/{_name(start)}"


def _segments(directory: str) -> list[int]:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    stems = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _recover(directory: str) -> int:
    """Truncate an unfinished last record; return the end offset."""
    starts = _segments(directory)
    if not starts:
        return 0
    with _Segment(directory, starts[-1], None) as segment:
        segment.seek(_NEVER)
        _, position, end = segment.place
    os.truncate(_path(directory, starts[-1]), position)
    return end
