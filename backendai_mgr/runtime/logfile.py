"""A log file that several processes write and rotate together."""

import fcntl
import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path


class SharedFileHandler(RotatingFileHandler):
    """Appends to *path* and rotates it, as the standard library does, but beside other processes that do the
    same: whoever finds the file too large rotates it under a lock, and the others go on in the new one. They
    do so too when somebody else (logrotate) has moved it.

    A record that cannot be written is told of on standard error, once until the next that can.
    """

    def __init__(self, path: Path, *, size: int, backups: int) -> None:
        super().__init__(path, maxBytes=size, backupCount=backups, encoding="utf-8", delay=True)
        self._failing = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
            fd = self._current()
            if os.fstat(fd).st_size + len(line) > self.maxBytes:
                fd = self._rotated(len(line))
            # One write to a file that is open for appending: lines of several processes do not mix.
            os.write(fd, line)
            self._failing = False
        except Exception:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failing:
            self._failing = True
            print(f"{self.baseFilename} cannot be written: {sys.exception()}", file=sys.stderr)

    def _current(self) -> int:
        """Descriptor of the file that has the name now."""
        if self.stream is not None:
            if self._has_name(self.stream.fileno()):
                return self.stream.fileno()
            self.stream.close()
            self.stream = None
        self.stream = self._open()
        return self.stream.fileno()

    def _has_name(self, fd: int) -> bool:
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.baseFilename))
        except FileNotFoundError:
            return False

    def _rotated(self, more: int) -> int:
        """Descriptor of a file with room, unless somebody else was faster made by rotating."""
        folder = os.open(os.path.dirname(self.baseFilename), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            size = os.fstat(self._current()).st_size
            if size and size + more > self.maxBytes:
                self.doRollover()
            return self._current()
        finally:
            os.close(folder)
