"""Waiting for a file to appear, without polling."""

import ctypes
import os
from pathlib import Path

import trio

_IN_CREATE = 0x100
_IN_MOVED_TO = 0x80

_libc = ctypes.CDLL(None, use_errno=True)


async def wait_for_file(path: Path) -> None:
    """Return as soon as *path* exists. Its folder must exist; the file may be made there or moved there."""
    fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        _checked(_libc.inotify_add_watch(fd, os.fsencode(path.parent), _IN_CREATE | _IN_MOVED_TO))
        while not _is_there(path):
            await trio.lowlevel.wait_readable(fd)
            os.read(fd, 64 << 10)
    finally:
        os.close(fd)


def _is_there(path: Path) -> bool:
    return path.exists()


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
