"""What a kernel prints: read from its pipes and handed on in large pieces."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import time
from collections.abc import Callable

_READ_BYTES = 1 << 20
_FIONREAD = 0x541B
# A flood of short lines would become a record per line.  A second short read soon after the first says that
# it is one: leave the pipe alone for a moment.  The first line after a silence is never held up.
_SHORT_READ = 32 << 10
_SOON = 0.003
_NAP = 0.002

Sink = Callable[[str, memoryview], None]


class OutputPipes:
    """Reads pipes as they fill.  `sink` gets (stream name, data); the data is valid during the call only."""

    def __init__(self, selector: selectors.BaseSelector, pipes: dict[int, str], sink: Sink) -> None:
        """`pipes`: stream names by descriptor, non-blocking; they stay the caller's to close."""
        self._selector = selector
        self._sink = sink
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._streams = dict(pipes)
        self._last_read = dict.fromkeys(pipes, 0.0)
        self._naps: dict[int, float] = {}
        for fd in pipes:
            self._listen(fd)

    def next_deadline(self) -> float | None:
        return min(self._naps.values(), default=None)

    def tick(self, now: float) -> None:
        """Go back to the pipes whose nap is over."""
        for fd in [fd for fd, until in self._naps.items() if until <= now]:
            del self._naps[fd]
            self._listen(fd)
            self._read(fd, _READ_BYTES)
            self._last_read[fd] = now

    def drain(self) -> None:
        """Hand on exactly what is in the pipes now: nobody can prolong this by writing on."""
        for fd in list(self._streams):
            waiting = int.from_bytes(fcntl.ioctl(fd, _FIONREAD, b"\0\0\0\0"), "little")
            while waiting > 0 and (size := self._read(fd, waiting)):
                waiting -= size

    def close(self) -> None:
        """Hand on what is left and stop listening."""
        self.drain()
        for fd in list(self._streams):
            self._forget(fd)

    def _readable(self, fd: int) -> None:
        if fd not in self._streams:  # forgotten since the selector looked
            return
        size = self._read(fd, _READ_BYTES)
        now = time.monotonic()
        if 0 < size < _SHORT_READ and now - self._last_read[fd] < _SOON:
            self._selector.unregister(fd)
            self._naps[fd] = now + _NAP
        self._last_read[fd] = now

    def _read(self, fd: int, limit: int) -> int:
        """Read once; return the number of bytes, 0 if there are none now or ever."""
        try:
            size = os.readv(fd, [self._buffer[: min(limit, _READ_BYTES)]])
        except BlockingIOError:
            return 0
        if size:
            self._sink(self._streams[fd], self._buffer[:size])
        else:
            self._forget(fd)
        return size

    def _listen(self, fd: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ, lambda _: self._readable(fd))

    def _forget(self, fd: int) -> None:
        del self._streams[fd]
        if self._naps.pop(fd, None) is None:
            self._selector.unregister(fd)


class BoundedLog:
    """A text log that keeps its last part: at most `limit` bytes in `path` and ``path.1`` together."""

    def __init__(self, path: str, limit: int = 1 << 20) -> None:
        self._path = path
        self._half = limit // 2

    def append(self, data: memoryview) -> None:
        """Write as much as fits and as the disk takes."""
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if os.fstat(fd).st_size + len(data) > self._half:
                    os.rename(self._path, f"{self._path}.1")
                    os.close(fd)
                    fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.write(fd, data[-self._half :])
            finally:
                os.close(fd)
