from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backendai_mgr.shim import runlog
from backendai_mgr.shim.runlog import LogRecord, RunLogReader, RunLogWriter
from tests.shim.client import read_all

HEADER = 32
chunks = st.lists(
    st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=90)), max_size=40
)


@contextmanager
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def write(folder: Path, pieces: list[tuple[str, bytes]], segment_bytes: int, cap_bytes: int = 1 << 40) -> int:
    writer = RunLogWriter(folder, segment_bytes=segment_bytes, cap_bytes=cap_bytes)
    for stream, data in pieces:
        writer.append(stream, data)
    writer.close()
    return writer.end_offset


def payload(pieces: list[tuple[str, bytes]]) -> bytes:
    return b"".join(data for _, data in pieces)


def everything(reader: RunLogReader) -> bytes:
    """All that can be read now."""
    data = b""
    while records := reader.read(len(data), 1 << 20):
        data += b"".join(record.data for record in records)
    return data


def expanded(records: list[LogRecord]) -> list[int | None]:
    """One item per offset: the byte, or None in a gap; checks that the records join."""
    items: list[int | None] = []
    offset = records[0].offset if records else 0
    for record in records:
        assert record.offset == offset
        assert (record.stream == "gap") == (record.gap > 0) == (not record.data)
        items += [None] * record.gap if record.gap else list(record.data)
        offset += record.gap + len(record.data)
    return items


def test_empty_log_reads_as_nothing(tmp_path: Path) -> None:
    assert RunLogReader(tmp_path).read(0, 100) == []
    assert RunLogReader(tmp_path).end_offset() == 0
    assert RunLogReader(tmp_path / "absent").read(5, 100) == []


def test_a_folder_without_a_log_reads_as_a_gap(tmp_path: Path) -> None:
    assert [record.gap for record in RunLogReader(tmp_path).read(0, 10, 5)] == [5]


def test_records_keep_stream_time_and_offset(tmp_path: Path) -> None:
    times = iter([10, 20, 30])
    writer = RunLogWriter(tmp_path, clock_ns=lambda: next(times))
    writer.append("stdout", b"one")
    writer.append("stderr", bytearray(b"three"))
    writer.append("media", memoryview(b"x"))
    assert RunLogReader(tmp_path).read(0, 100) == [
        LogRecord(0, 10, "stdout", b"one"),
        LogRecord(3, 20, "stderr", b"three"),
        LogRecord(8, 30, "media", b"x"),
    ]
    writer.close()


def test_middle_of_a_record_gives_its_rest(tmp_path: Path) -> None:
    write(tmp_path, [("stdout", b"hello"), ("stderr", b"!")], 1000)
    assert [record[0::3] for record in RunLogReader(tmp_path).read(2, 100)] == [(2, b"llo"), (5, b"!")]
    assert [record[0::3] for record in RunLogReader(tmp_path).read(1, 3)] == [(1, b"ell")]
    assert RunLogReader(tmp_path).read(6, 100) == []
    assert RunLogReader(tmp_path).read(600, 100) == []
    assert RunLogReader(tmp_path).read(0, 0) == []


def test_long_data_becomes_bounded_records(tmp_path: Path) -> None:
    data = os.urandom(3 * runlog.RECORD_BYTES + 5)
    assert write(tmp_path, [("stdout", data)], runlog.SEGMENT_BYTES) == len(data)
    records = read_all(tmp_path)
    assert b"".join(record.data for record in records) == data
    assert max(len(record.data) for record in records) == runlog.RECORD_BYTES


def test_reader_follows_a_growing_log_over_segments(tmp_path: Path) -> None:
    writer, reader, offset = RunLogWriter(tmp_path, segment_bytes=100), RunLogReader(tmp_path), 0
    for number in range(50):
        assert reader.read(offset, 1000) == []
        data = b"%d;" % number * 7
        writer.append("stdout", data)
        assert [record.data for record in reader.read(offset, 1000)] == [data]
        offset += len(data)
        assert reader.end_offset() == offset
    writer.close()
    assert len(list(tmp_path.glob("*.seg"))) > 5


@settings(max_examples=60, deadline=None)
@given(chunks, st.integers(1, 400), st.data())
def test_any_offset_and_size_reads_the_concatenation(
    pieces: list[tuple[str, bytes]], segment_bytes: int, data: st.DataObject
) -> None:
    with directory() as folder:
        whole = payload(pieces)
        assert write(folder, pieces, segment_bytes) == len(whole)
        reader = RunLogReader(folder)
        assert reader.end_offset() == len(whole)
        for _ in range(8):
            offset = data.draw(st.integers(0, len(whole) + 10))
            size = data.draw(st.integers(0, len(whole) + 10))
            records = reader.read(offset, size)
            assert b"".join(record.data for record in records) == whole[offset : offset + size]
            assert not records or records[0].offset == offset
        by_stream = {"stdout": b"", "stderr": b""}
        for record in read_all(folder, data.draw(st.integers(1, 300))):
            by_stream[record.stream] += record.data
        for stream, got in by_stream.items():
            assert got == b"".join(piece for name, piece in pieces if name == stream)


@settings(max_examples=60, deadline=None)
@given(chunks, st.integers(1, 300), st.integers(1, 1500), st.data())
def test_over_the_cap_head_and_tail_stay_and_the_hole_is_told(
    pieces: list[tuple[str, bytes]], segment_bytes: int, cap_bytes: int, data: st.DataObject
) -> None:
    with directory() as folder:
        write(folder, pieces, segment_bytes, cap_bytes)
        whole = payload(pieces)
        got = expanded(read_all(folder, data.draw(st.integers(1, 300))))
        assert len(got) == len(whole)
        assert all(byte in (None, whole[index]) for index, byte in enumerate(got))
        stored = sum(path.stat().st_size for path in folder.glob("*.seg"))
        overshoot = segment_bytes + HEADER + 90
        assert stored <= max(cap_bytes, 2 * overshoot) + overshoot
        if whole:
            assert got[0] is not None
            assert got[-1] is not None
            offset = data.draw(st.integers(0, len(whole) - 1))
            assert expanded(RunLogReader(folder).read(offset, len(whole))) == got[offset:]


def test_a_dropped_segment_under_a_reader_is_a_gap(tmp_path: Path) -> None:
    write(tmp_path, [("stdout", b"a" * 50)] * 6, 100)
    reader = RunLogReader(tmp_path)
    assert len(reader.read(0, 100)) == 2  # the list of segments is known to it now
    names = sorted(tmp_path.glob("*.seg"))
    names[1].unlink()
    assert reader.read(100, 1000)[0][0::4] == (100, 100)
    assert expanded(reader.read(130, 1000)) == [None] * 70 + list(b"a" * 100)


@settings(max_examples=60, deadline=None)
@given(chunks, st.integers(1, 400), st.binary(max_size=60), st.data())
def test_torn_tail_is_not_there_yet_and_a_new_owner_truncates_it(
    pieces: list[tuple[str, bytes]], segment_bytes: int, junk: bytes, data: st.DataObject
) -> None:
    with directory() as folder:
        write(folder, pieces, segment_bytes)
        whole, last = payload(pieces), max(folder.glob("*.seg"), default=None)
        expected = whole
        if last is not None:
            size = last.stat().st_size
            if data.draw(st.booleans()):  # the last record was not completed
                length = len(pieces[-1][1])
                os.truncate(last, size - data.draw(st.integers(1, HEADER + length - 1)))
                expected = whole[:-length]
            else:
                with last.open("ab") as file:
                    file.write(junk)
        reader = RunLogReader(folder)
        assert reader.end_offset() == len(expected)
        assert everything(reader) == expected
        writer = RunLogWriter(folder, segment_bytes=segment_bytes)
        assert writer.end_offset == len(expected)
        writer.append("stderr", b"after")
        writer.close()
        assert everything(reader) == expected + b"after"


class FullDisk:
    """Makes `os.writev` fail, or write short, while `full`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.short = 0
        self._writev = os.writev
        monkeypatch.setattr(os, "writev", self)

    def __call__(self, fd: int, parts: list[bytes]) -> int:
        if not self.full:
            return self._writev(fd, parts)
        if self.short:
            return os.write(fd, b"".join(parts)[: self.short])
        raise OSError(28, "no space")


@pytest.mark.parametrize("short", [0, 1, 40])
def test_a_full_disk_becomes_a_gap_and_writing_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: int
) -> None:
    now = [0]
    disk = FullDisk(monkeypatch)
    writer = RunLogWriter(tmp_path, clock_ns=lambda: now[0])
    writer.append("stdout", b"before")
    disk.full, disk.short = True, short
    for _ in range(3):
        writer.append("stdout", b"x" * 100)
    assert [record.data for record in RunLogReader(tmp_path).read(0, 1000)] == [b"before"]
    disk.full = False
    writer.append("stdout", b"too soon to try again")
    now[0] += 200_000_000
    writer.append("stderr", b"after")
    writer.close()
    assert [record[2:] for record in RunLogReader(tmp_path).read(0, 1000)] == [
        ("stdout", b"before", 0),
        ("gap", b"", 321),
        ("stderr", b"after", 0),
    ]


def test_the_last_gap_uses_the_room_that_was_kept_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)

    def make_room() -> None:
        disk.full = False

    writer = RunLogWriter(tmp_path, make_room=make_room)
    writer.append("stdout", b"before")
    disk.full = True
    writer.append("stdout", b"lost")
    writer.close()
    assert writer.end_offset == 10
    assert [record[2:] for record in RunLogReader(tmp_path).read(0, 1000)] == [
        ("stdout", b"before", 0),
        ("gap", b"", 4),
    ]


def test_an_end_that_never_reached_the_disk_is_told_by_the_known_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = FullDisk(monkeypatch)
    writer = RunLogWriter(tmp_path)
    writer.append("stdout", b"before")
    disk.full = True
    writer.append("stdout", b"lost")
    writer.close()
    reader = RunLogReader(tmp_path)
    assert reader.read(6, 100) == []
    assert [record[2:] for record in reader.read(6, 100, end=writer.end_offset)] == [("gap", b"", 4)]
    assert reader.read(10, 100, end=writer.end_offset) == []


def test_a_vanished_folder_does_not_raise(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    writer = RunLogWriter(folder, segment_bytes=10)
    writer.append("stdout", b"some bytes")
    next(folder.iterdir()).unlink()
    folder.rmdir()
    writer.append("stdout", b"more bytes")
    writer.append("stdout", b"even more")
    writer.close()
    assert writer.end_offset == 29
