"""A kernel's log, read from its end backwards: its runs' output, before that what it wrote by itself.

Screens of terminals are no part of it: they are made for terminals, and repeat what people typed.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from ..shim.runlog import RunLogReader
from ..wire.files import LogPiece, LogPlace
from ..wire.rpc import TERMINAL, RunStatus
from .scratch import Scratch

#: Streams that are text for people.
_SHOWN = frozenset({"stdout", "stderr", "log"})
#: Output is read in steps of so many bytes.
_STEP = 1 << 20
#: Most of what a kernel wrote outside of runs.
_OWN_BYTES = 1 << 20


def read_log(
    scratch: Scratch, runs: Sequence[RunStatus], before: LogPlace | None, max_bytes: int
) -> LogPiece:
    """The newest text before a place (None: the end), about *max_bytes* of output. Blocks: for a thread."""
    texts: list[bytes] = []
    room = max_bytes
    reached = before is None
    for run in sorted((run for run in runs if run.mode != TERMINAL), key=_age, reverse=True):
        end = run.end_offset
        if before is not None and run.run_id == before.run_id:
            reached, end = True, min(end, before.offset)
        if not reached:
            continue
        start = max(0, end - room)
        texts.append(_text(scratch.run(run.run_id), start, end))
        room -= end - start
        if start > 0 or room <= 0:
            return LogPiece(data=b"".join(reversed(texts)), before=LogPlace(run_id=run.run_id, offset=start))
    texts.append(_tail(scratch.log_file, min(room, _OWN_BYTES)))
    return LogPiece(data=b"".join(reversed(texts)), before=None)


def _age(run: RunStatus) -> tuple[float, str]:
    return run.queued_at, run.run_id


def _text(folder: Path, start: int, end: int) -> bytes:
    reader = RunLogReader(folder)
    shown: list[bytes] = []
    while start < end and (records := reader.read(start, min(_STEP, end - start), end)):
        for record in records:
            if record.gap:
                shown.append(b"\n[%d bytes of output were dropped here]\n" % record.gap)
            elif record.stream in _SHOWN:
                shown.append(record.data)
            start = record.offset + len(record.data) + record.gap
    return b"".join(shown)


def _tail(path: Path, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read(size)
    except FileNotFoundError:
        return b""
