"""One log file of several processes."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backendai_mgr.runtime.logfile import SharedFileHandler

WRITER = """
import logging, sys
from pathlib import Path
from backendai_mgr.runtime.logfile import SharedFileHandler
log = logging.getLogger("writer")
log.propagate = False
log.addHandler(SharedFileHandler(Path(sys.argv[1]), size=20_000, backups=50))
print("ready", flush=True)
sys.stdin.read()
for number in range(500):
    log.error("%s %04d %s", sys.argv[2], number, "x" * 100)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.log"


@pytest.fixture
def handler(path: Path) -> Iterator[SharedFileHandler]:
    made = SharedFileHandler(path, size=100, backups=2)
    yield made
    made.close()


def emit(handler: logging.Handler, message: str) -> None:
    handler.emit(logging.LogRecord("x", logging.ERROR, __file__, 1, message, (), None))


def contents(folder: Path) -> dict[str, list[str]]:
    return {file.name: file.read_text().split() for file in folder.iterdir()}


def test_a_file_that_would_grow_too_large_is_rotated(handler: SharedFileHandler, path: Path) -> None:
    for letter in "abcdefg":
        emit(handler, letter * 49)
    assert contents(path.parent) == {
        "x.log": ["g" * 49],
        "x.log.1": ["e" * 49, "f" * 49],
        "x.log.2": ["c" * 49, "d" * 49],
    }


def test_a_record_larger_than_a_file_is_written_all_the_same(handler: SharedFileHandler, path: Path) -> None:
    emit(handler, "a" * 300)
    emit(handler, "b" * 300)
    assert contents(path.parent) == {"x.log": ["b" * 300], "x.log.1": ["a" * 300]}


def test_no_line_is_lost_or_torn_when_processes_write_and_rotate_together(path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("a", "b", "c")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    for writer in writers:
        assert writer.wait(60) == 0
        assert writer.stdout is not None
        writer.stdout.close()
    files = list(path.parent.iterdir())
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert sorted(lines) == [f"{name} {number:04d} {'x' * 100}" for name in "abc" for number in range(500)]
    assert len(files) > 5
    # Each may have seen room for its line at the same time.
    assert all(file.stat().st_size <= 20_000 + 3 * 120 for file in files)


def test_a_file_that_somebody_else_moved_is_begun_anew(handler: SharedFileHandler, path: Path) -> None:
    emit(handler, "first")
    path.rename(path.with_name("moved"))
    emit(handler, "second")
    assert contents(path.parent) == {"moved": ["first"], "x.log": ["second"]}


def test_what_cannot_be_written_is_told_once(
    handler: SharedFileHandler, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(path.parent)
    emit(handler, "lost")
    emit(handler, "lost")
    path.parent.mkdir()
    emit(handler, "written")
    shutil.rmtree(path.parent)
    emit(handler, "lost")
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[0].startswith(f"{path} cannot be written: [Errno 2]")
    assert told[0] == told[1]
