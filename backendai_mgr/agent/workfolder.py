"""The files of a kernel's work folder, while its user's code, which is hostile, changes them.

Everything here blocks for as long as the disk takes: call it in a thread. Nothing blocks on what a user can
make: pipes, sockets and devices are never opened. Where the agent is root it neither reads nor writes files
that the folder's owner does not own, since a hard link can make them of somebody else's.
"""

import errno
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from ..wire.files import HOME, MAX_ENTRIES, FileEntry, FilePiece, Listing
from ..wire.rpc import AgentRefusal
from .beneath import open_beneath, open_regular, reopen

_LONGEST_NAME = 255
_LONGEST_PATH = 4000
_DEEPEST = 100
#: Names that an archive may have to look at, most of which may be nothing to archive.
_MOST_LOOKED_AT = 50_000
_FOLDER = os.O_PATH | os.O_DIRECTORY
_MODE_FILE, _MODE_FOLDER = 0o644, 0o755

_CODES = {
    errno.ENOENT: ("no-such-file", "there is no such file"),
    errno.ENOTDIR: ("no-such-file", "a part of the path is not a folder"),
    errno.EXDEV: ("outside", "it leads out of the work folder"),
    errno.ELOOP: ("outside", "its links lead round in a circle or out of the work folder"),
    errno.EAGAIN: ("outside", "its folders are being moved all the time"),
    errno.EISDIR: ("is-folder", "it is a folder"),
    errno.ENXIO: ("no-such-file", "it is not a regular file"),
    errno.EACCES: ("denied", "permission denied"),
    errno.EPERM: ("denied", "permission denied"),
    errno.EROFS: ("denied", "the folder is read-only"),
    errno.ENOSPC: ("disk-full", "the session's disk is full"),
    errno.EDQUOT: ("disk-full", "the session's disk quota is used up"),
    errno.EFBIG: ("too-large", "the file would be too large"),
    errno.ENAMETOOLONG: ("bad-path", "a name is too long"),
    errno.ENOSYS: ("denied", "files need Linux 5.6 or newer (openat2)"),
}


def parts_of(path: str) -> list[bytes]:
    """The names of *path* below the work folder, none for the folder itself; `AgentRefusal` for no path."""
    if path == HOME or path.startswith(f"{HOME}/"):
        path = path[len(HOME) + 1 :]
    elif path.startswith("/"):
        raise AgentRefusal("outside", f"paths are relative to {HOME}, or begin with it")
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:
        raise AgentRefusal("bad-path", "it cannot be the name of a file") from None
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b"\0" in raw:
        raise AgentRefusal("bad-path", "it has a zero byte")
    if b".." in parts:
        raise AgentRefusal("outside", "`..` is not allowed in paths")
    if any(len(part) > _LONGEST_NAME for part in parts):
        raise AgentRefusal("bad-path", f"a name has more than {_LONGEST_NAME} bytes")
    if len(raw) > _LONGEST_PATH or len(parts) > _DEEPEST:
        raise AgentRefusal("bad-path", f"it has more than {_LONGEST_PATH} bytes or {_DEEPEST} names")
    return parts


@contextmanager
def _told() -> Iterator[None]:
    """Turn what the system says into refusals."""
    try:
        yield
    except OSError as error:
        code, sentence = _CODES.get(error.errno or 0, ("file-failed", error.strerror or "unknown error"))
        raise AgentRefusal(code, sentence) from error


@attrs.frozen
class WorkFolder:
    """The folder at *path*, which its user cannot replace. All refusals are `AgentRefusal`."""

    path: Path

    def list(self, path: str) -> Listing:
        """What is in a folder, or the file itself."""
        parts = parts_of(path)
        with _told(), ExitStack() as stack:
            found = self._open(stack, parts)
            shown = os.fsdecode(b"/".join(parts))
            if not stat.S_ISDIR(os.fstat(found).st_mode):
                return Listing(path=shown, entries=[_entry(os.fsdecode(parts[-1]), os.fstat(found))])
            folder = stack.enter_context(_held(reopen(found, os.O_RDONLY | os.O_DIRECTORY)))
            entries: list[FileEntry] = []
            with os.scandir(folder) as names:
                for name in names:
                    if len(entries) == MAX_ENTRIES:
                        return Listing(path=shown, entries=sorted(entries, key=_name), cut=True)
                    with suppress(FileNotFoundError):  # gone meanwhile
                        entries.append(_entry(name.name, name.stat(follow_symlinks=False)))
            return Listing(path=shown, entries=sorted(entries, key=_name))

    def read(self, path: str, offset: int, length: int) -> FilePiece:
        """At most *length* bytes of a file from *offset* on; none past its end."""
        with _told(), ExitStack() as stack:
            file = self._regular(stack, self._open(stack, parts_of(path)))
            data = os.pread(file, length, offset)
            found = os.fstat(file)
        return FilePiece(data=data, size=found.st_size, inode=found.st_ino)

    def write(self, path: str, upload: str, offset: int, data: bytes, *, final: bool, most: int) -> None:
        """Write a piece of the upload named *upload*; *final* puts the file in place, in one step.

        Pieces come in order, and each may come again. Folders are made. The file has at most *most* bytes.
        """
        parts = parts_of(path)
        if not parts:
            raise AgentRefusal("is-folder", "it is the work folder itself")
        with _told(), ExitStack() as stack:
            folder = self._make_folders(stack, parts[:-1])
            draft = _draft(upload, parts[-1])
            if offset + len(data) > most:
                with suppress(FileNotFoundError):
                    os.unlink(draft, dir_fd=folder)
                raise AgentRefusal("too-large", f"{most} bytes are allowed for a file (upload-size)")
            try:
                self._write(stack, folder, draft, offset, data, final)
                if final:
                    os.rename(draft, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
            except FileNotFoundError:
                if not (final and self._is_in_place(folder, parts[-1], offset, data)):
                    raise AgentRefusal("upload-gap", "this upload is unknown; begin again at 0") from None
            except OSError:
                with suppress(OSError):  # a full disk needs its place, and what is no file will never be one
                    os.unlink(draft, dir_fd=folder)
                raise

    def archive(self, path: str, most: int) -> bytes:
        """A tar file of at most *most* bytes with a file, or a folder and all regular files in it."""
        parts = parts_of(path)
        with _told(), ExitStack() as stack:
            found = self._open(stack, parts)
            archive = _Archive(most, self._owner(stack))
            archive.add(found, os.fsdecode(parts[-1]) if parts else "work", 0)
            return archive.close()

    # -- parts

    def _root(self, stack: ExitStack) -> int:
        return stack.enter_context(_held(os.open(self.path, _FOLDER | os.O_NOFOLLOW | os.O_CLOEXEC)))

    def _owner(self, stack: ExitStack) -> int | None:
        """The account whose files may be touched; None when the system itself sees to that."""
        return os.fstat(self._root(stack)).st_uid if os.geteuid() == 0 else None

    def _open(self, stack: ExitStack, parts: Sequence[bytes]) -> int:
        return stack.enter_context(
            _held(open_beneath(self._root(stack), b"/".join(parts) or b".", os.O_PATH))
        )

    def _regular(self, stack: ExitStack, path_fd: int) -> int:
        _check_owner(path_fd, self._owner(stack))
        return stack.enter_context(_held(open_regular(path_fd)))

    def _make_folders(self, stack: ExitStack, parts: Sequence[bytes]) -> int:
        """The folder, made as far as it is missing."""
        root = self._root(stack)
        folder = root
        for depth in range(1, len(parts) + 1):
            path = b"/".join(parts[:depth])
            try:
                inner = open_beneath(root, path, _FOLDER)
            except FileNotFoundError:
                _make_folder(folder, parts[depth - 1], os.fstat(root))
                inner = open_beneath(root, path, _FOLDER)
            folder = stack.enter_context(_held(inner))
        _check_owner(folder, self._owner(stack))
        return folder

    def _write(
        self, stack: ExitStack, folder: int, draft: str, offset: int, data: bytes, final: bool
    ) -> None:
        file = stack.enter_context(_held(self._open_draft(stack, folder, draft, create=offset == 0)))
        size = os.fstat(file).st_size
        if offset > size:
            raise AgentRefusal("upload-gap", f"{size} bytes of this upload are here; go on there")
        rest = memoryview(data)
        while rest:
            written = os.pwrite(file, rest, offset)
            rest, offset = rest[written:], offset + written
        if final:
            os.ftruncate(file, offset)
            os.fchmod(file, _MODE_FILE)

    def _open_draft(self, stack: ExitStack, folder: int, draft: str, *, create: bool) -> int:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        if create:
            with suppress(FileExistsError):
                file = os.open(draft, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
                _give(file, os.fstat(self._root(stack)))
                return file
        # Its user may have put something else there.
        held = stack.enter_context(_held(os.open(draft, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)))
        found = os.fstat(held)
        _check_owner(held, self._owner(stack))
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return reopen(held, os.O_WRONLY | os.O_NONBLOCK)

    def _is_in_place(self, folder: int, name: bytes, offset: int, data: bytes) -> bool:
        """Whether the final piece has come before and only its answer was lost."""
        try:
            with (
                _held(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)) as held,
                _held(open_regular(held)) as file,
            ):
                same_size = os.fstat(file).st_size == offset + len(data)
                return same_size and os.pread(file, len(data), offset) == data
        except OSError:
            return False


@contextmanager
def _held(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def _check_owner(fd: int, owner: int | None) -> None:
    if owner is not None and os.fstat(fd).st_uid != owner:
        raise AgentRefusal("denied", "it belongs to another account")


def _give(fd: int, like: os.stat_result) -> None:
    """Make what we have just created the work folder's owner's; as another account it is so already."""
    if os.geteuid() == 0:
        os.fchown(fd, like.st_uid, like.st_gid)


def _make_folder(parent: int, name: bytes, like: os.stat_result) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, _MODE_FOLDER, dir_fd=parent)
    # A folder has one name: unlike a file, nobody else's can have been put here.
    with _held(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)) as made:
        if os.fstat(made).st_uid == os.geteuid():
            _give(made, like)


def _draft(upload: str, name: bytes) -> str:
    """The temporary beside *name* that an upload is written to."""
    digest = hashlib.sha256(upload.encode("utf-8", "surrogatepass") + b"/" + name).hexdigest()
    return f".upload-{digest[:32]}"


def _entry(name: str, found: os.stat_result) -> FileEntry:
    return FileEntry(
        filename=name,
        mode=stat.filemode(found.st_mode),
        size=found.st_size,
        ctime=found.st_ctime,
        mtime=found.st_mtime,
        atime=found.st_atime,
    )


def _name(entry: FileEntry) -> str:
    return entry.filename


class _Archive:
    """A tar file in the making. Links, pipes and whatever else is no regular file are left out."""

    def __init__(self, most: int, owner: int | None) -> None:
        self._most = most
        self._owner = owner
        self._looked_at = 0
        self._content = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._content, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def add(self, path_fd: int, name: str, depth: int) -> None:
        """Add what *path_fd* (O_PATH) holds."""
        found = os.fstat(path_fd)
        if stat.S_ISDIR(found.st_mode):
            self._add_folder(path_fd, name, found, depth)
        else:
            _check_owner(path_fd, self._owner)
            self._add_file(path_fd, name, found)

    def close(self) -> bytes:
        self._tar.close()
        self._check(0)
        return self._content.getvalue()

    def _add_file(self, path_fd: int, name: str, found: os.stat_result) -> None:
        self._check(found.st_size)
        with _held(open_regular(path_fd)) as file:
            data = os.pread(file, found.st_size, 0)  # it may grow or shrink, which is no matter
        info = _info(name, found)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))

    def _add_folder(self, path_fd: int, name: str, found: os.stat_result, depth: int) -> None:
        if depth > _DEEPEST:
            raise AgentRefusal("too-large", f"folders are nested more than {_DEEPEST} deep")
        info = _info(name, found)
        info.type = tarfile.DIRTYPE
        self._tar.addfile(info)
        with _held(reopen(path_fd, os.O_RDONLY | os.O_DIRECTORY)) as folder:
            for inner in self._names(folder):
                with suppress(FileNotFoundError), ExitStack() as stack:  # it may have gone meanwhile
                    held = os.open(inner, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
                    mode = os.fstat(stack.enter_context(_held(held))).st_mode
                    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                        self.add(held, f"{name}/{inner}", depth + 1)

    def _names(self, folder: int) -> list[str]:
        names = []
        with os.scandir(folder) as entries:
            for entry in entries:
                self._looked_at += 1
                if self._looked_at > _MOST_LOOKED_AT:
                    raise AgentRefusal("too-large", f"more than {_MOST_LOOKED_AT} files")
                names.append(entry.name)
        return sorted(names)

    def _check(self, more: int) -> None:
        if self._content.tell() + more > self._most:
            raise AgentRefusal("too-large", f"an archive has at most {self._most} bytes")


def _info(name: str, found: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.mode = stat.S_IMODE(found.st_mode) & 0o777
    info.mtime = int(found.st_mtime)
    return info
