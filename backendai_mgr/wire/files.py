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
class FileState:
    """What a file is like; another ``inode`` is another file. ``changed_ns`` since the epoch (ctime)."""

    size: int
    inode: int
    changed_ns: int = 0

    @property
    def tag(self) -> str:
        """Another one whenever the file is another or its content has changed; no quotes in it."""
        return f"{self.inode:x}-{self.size:x}-{self.changed_ns:x}"


@attrs.frozen(kw_only=True)
class FilePiece(FileState):
    """Bytes of a file from an offset on, and what the file is like now."""

    data: bytes


@attrs.frozen(kw_only=True)
class Written(FileState):
    """A file after a change; ``created``: there was nothing of its name before."""

    created: bool = False


#: In a condition: any tag.
ANY = "*"


@attrs.frozen(kw_only=True)
class Condition:
    """What has to hold of a file before it is changed: its tag is one of ``match``, and none of ``unlike``.

    None asks for nothing. A file that is not there has no tag.
    """

    match: list[str] | None = None
    unlike: list[str] | None = None

    def holds(self, tag: str | None) -> bool:
        """Whether a file with this tag (None: there is none) may be changed."""
        matches = self.match is None or (tag is not None and (ANY in self.match or tag in self.match))
        differs = self.unlike is None or tag is None or not (ANY in self.unlike or tag in self.unlike)
        return matches and differs

    @property
    def only_new(self) -> bool:
        """Whether the file must not be there."""
        return self.unlike is not None and ANY in self.unlike


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
