"""Opening what lies beneath a folder whose content is hostile, and whose owner changes it meanwhile."""

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from ..wire.rpc import AgentRefusal

#: openat2(2), Linux 5.6: the same number on x86_64 and aarch64 (include/uapi/asm-generic/unistd.h).
_OPENAT2 = 437
# include/uapi/linux/openat2.h
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
#: struct open_how: flags, mode, resolve.
_HOW = struct.Struct("=QQQ")
# include/uapi/linux/fs.h
_RENAME_NOREPLACE = 1
#: The kernel gives up with EAGAIN when something is renamed under it; so often is it asked again.
_ATTEMPTS = 32

_libc = ctypes.CDLL(None, use_errno=True)


def open_beneath(root: int, path: bytes, flags: int) -> int:
    """Open *path* relative to the folder *root* (a descriptor); OSError EXDEV when it leads out of it.

    Links are followed as long as they stay beneath; ``..``, absolute paths and absolute links do not.
    """
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    for _ in range(_ATTEMPTS):
        fd: int = _libc.syscall(
            ctypes.c_long(_OPENAT2), ctypes.c_int(root), path, how, ctypes.c_size_t(_HOW.size)
        )
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(number, os.strerror(number), os.fsdecode(path))


def rename_new(source: bytes, destination: bytes, source_folder: int, destination_folder: int) -> None:
    """As `os.rename`, but OSError EEXIST when there is something at the destination."""
    if _libc.renameat2(source_folder, source, destination_folder, destination, _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(destination))


def reopen(fd: int, flags: int) -> int:
    """Open again what *fd* (O_PATH) holds, and nothing that took its name since."""
    return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC)


def open_regular(path_fd: int) -> int:
    """Open the regular file that *path_fd* (O_PATH) holds for reading; nothing else is ever opened.

    OSError EISDIR for a folder, ENXIO for what is neither: a pipe, a device, a socket, a link.
    """
    mode = os.fstat(path_fd).st_mode
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.ENXIO
        raise OSError(number, os.strerror(number))
    return reopen(path_fd, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)


@contextmanager
def held(fd: int) -> Iterator[int]:
    """Close the descriptor at the end."""
    try:
        yield fd
    finally:
        os.close(fd)


def check_owner(fd: int, owner: int | None) -> None:
    """`AgentRefusal` denied when what *fd* holds is not the *owner*'s; None asks for nothing."""
    if owner is not None and os.fstat(fd).st_uid != owner:
        raise AgentRefusal("denied", "it belongs to another account")
