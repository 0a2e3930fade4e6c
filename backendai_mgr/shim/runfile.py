"""``run.jsonl`` of a run's folder: a line with what was claimed, and one with the status of the ended run.

A last line without its newline is not there: it was not completed.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any

NAME = "run.jsonl"
#: In a folder of runs the one of the next run, which is none yet.
NEXT = "next"


def read(folder: str | os.PathLike[str]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the claim and the status; None for what is not there, or is nonsense."""
    try:
        with open(os.path.join(folder, NAME), "rb") as file:
            claim, status, *_ = [*file.read().split(b"\n")[:-1], b"", b""]
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    return _parsed(claim), _parsed(status)


def write_claim(folder: str, claim: object) -> None:
    """Write the first line of a file that nobody reads yet.  Raises OSError."""
    fd = os.open(os.path.join(folder, NAME), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(fd, _line(claim))
    finally:
        os.close(fd)


def write_status(folder: str, status: object) -> None:
    """Write the second line, wholly or not at all.  Raises OSError."""
    fd = os.open(os.path.join(folder, NAME), os.O_RDWR | os.O_CLOEXEC)
    try:
        begin = os.pread(fd, os.fstat(fd).st_size, 0).find(b"\n") + 1
        os.lseek(fd, begin, os.SEEK_SET)
        try:
            _write_all(fd, _line(status))
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(fd, begin)
            raise
    finally:
        os.close(fd)


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
