"""What travels about files and logs of a kernel. A path is text relative to the work folder.

A name that is not UTF-8 has lone surrogates in it, as in `os.fsdecode`.
"""

import attrs

#: The user's folder as sessions know it; paths below it are taken as relative to the work folder.
HOME = "/home/work"
#: Most names of one listing.
MAX_ENTRIES = 10_000


@attrs.frozen(kw_only=True)
class FileEntry:
    """A name in a folder, not followed if it is a link. Times in seconds since the epoch, size in bytes."""

    filename: str
    #: As `ls -l` shows it: ``-rw-r--r--``.
    mode: str
    size: int
    ctime: float
    mtime: float
    atime: float


@attrs.frozen(kw_only=True)
class Listing:
    """A folder's names, sorted (of a file: its own). ``cut``: there are more than `MAX_ENTRIES`."""

    path: str
    entries: list[FileEntry]
    cut: bool = False


@attrs.frozen(kw_only=True)
class FilePiece:
    """Bytes of a file from an offset on, and what the file is like now; another ``inode`` is another file."""

    data: bytes
    size: int
    inode: int


@attrs.frozen(kw_only=True)
class LogPlace:
    """A place in a kernel's log: before this offset of this run's output."""

    run_id: str
    offset: int


@attrs.frozen(kw_only=True)
class LogPiece:
    """Text (as bytes) that ends where the piece read before began; ``before`` None: the log begins here."""

    data: bytes
    before: LogPlace | None
