"""The files of a kernel's work folder, while its user's code, which is hostile, changes them.

Everything here blocks for as long as the disk takes: call it in a thread. Nothing blocks on what a user can
make: pipes, sockets and devices are never opened. Where the agent is root it neither reads nor writes files
that the folder's owner does not own, since a hard link can make them of somebody else's.
"""

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from ..wire.files import HOME, MAX_ENTRIES, Condition, FileEntry, FilePiece, Listing, Written
from ..wire.rpc import AgentRefusal
from .archive import Archive
from .beneath import check_owner, held, open_beneath, open_regular, rename_new, reopen

_LONGEST_NAME = 255
_LONGEST_PATH = 4000
_DEEPEST = 100
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
    errno.EDQUOT: ("quota-used-up", "the session's disk quota is used up"),
    errno.EFBIG: ("too-large", "the file would be too large"),
    errno.EEXIST: ("exists", "there is something of that name"),
    errno.ENOTEMPTY: ("exists", "it is a folder, and not empty"),
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
def told() -> Iterator[None]:
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
    #: Held where what is there is looked at and changed, so that of two changes with a condition one comes
    #: first. The folder's user does not heed it.
    lock: threading.Lock = attrs.field(factory=threading.Lock, eq=False)

    def list(self, path: str) -> Listing:
        """What is in a folder, or the file itself."""
        parts = parts_of(path)
        with told(), ExitStack() as stack:
            found = self._open(stack, parts)
            shown = os.fsdecode(b"/".join(parts))
            if not stat.S_ISDIR(os.fstat(found).st_mode):
                return Listing(path=shown, entries=[_entry(os.fsdecode(parts[-1]), os.fstat(found))])
            folder = stack.enter_context(held(reopen(found, os.O_RDONLY | os.O_DIRECTORY)))
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
        with told(), ExitStack() as stack:
            file = self._regular(stack, self._open(stack, parts_of(path)))
            data = os.pread(file, length, offset)
            found = os.fstat(file)
        return FilePiece(data=data, size=found.st_size, inode=found.st_ino, changed_ns=found.st_ctime_ns)

    def write(
        self,
        path: str,
        upload: str,
        offset: int,
        data: bytes,
        *,
        final: bool,
        most: int,
        condition: Condition | None = None,
    ) -> Written | None:
        """Write a piece of the upload named *upload*; *final* puts the file in place, in one step.

        Pieces come in order, and each may come again. Folders are made. The file has at most *most* bytes.
        The *condition* is that of the file in whose place it comes.
        """
        parts = parts_of(path)
        if not parts:
            raise AgentRefusal("is-folder", "it is the work folder itself")
        with told(), ExitStack() as stack:
            folder = self._make_folders(stack, parts[:-1])
            draft = _draft(upload, parts[-1])
            try:
                if offset + len(data) > most:
                    raise too_large(most)
                if final and (placed := self._in_place(folder, draft, parts[-1], offset, data)):
                    return placed
                self._check(parts, condition)
                file = self._write(stack, folder, draft, offset, data, final)
                return self._commit(folder, draft, parts, file, condition) if final else None
            except FileNotFoundError:
                raise AgentRefusal("upload-gap", "this upload is unknown; begin again at 0") from None
            except (OSError, AgentRefusal) as error:
                # A full disk needs its place, and what is refused or no file will never be one.
                if not (isinstance(error, AgentRefusal) and error.code == "upload-gap"):
                    with suppress(OSError):
                        os.unlink(draft, dir_fd=folder)
                raise

    def drop(self, path: str, upload: str) -> None:
        """Remove what has been written of an upload."""
        parts = parts_of(path)
        with told(), ExitStack() as stack, suppress(FileNotFoundError, NotADirectoryError):
            if parts:
                os.unlink(_draft(upload, parts[-1]), dir_fd=self._folder(stack, parts[:-1]))

    def archive(self, path: str, most: int) -> bytes:
        """A tar file of at most *most* bytes with a file, or a folder and all regular files in it."""
        parts = parts_of(path)
        with told(), ExitStack() as stack:
            found = self._open(stack, parts)
            archive = Archive(most, self._owner(stack))
            archive.add(found, os.fsdecode(parts[-1]) if parts else "work", 0)
            return archive.close()

    # -- parts

    def _root(self, stack: ExitStack) -> int:
        return stack.enter_context(held(os.open(self.path, _FOLDER | os.O_NOFOLLOW | os.O_CLOEXEC)))

    def _owner(self, stack: ExitStack) -> int | None:
        """The account whose files may be touched; None when the system itself sees to that."""
        return os.fstat(self._root(stack)).st_uid if os.geteuid() == 0 else None

    def _open(self, stack: ExitStack, parts: Sequence[bytes]) -> int:
        return stack.enter_context(held(open_beneath(self._root(stack), b"/".join(parts) or b".", os.O_PATH)))

    def _folder(self, stack: ExitStack, parts: Sequence[bytes]) -> int:
        """A folder in which names may be changed."""
        folder = stack.enter_context(held(open_beneath(self._root(stack), b"/".join(parts) or b".", _FOLDER)))
        check_owner(folder, self._owner(stack))
        return folder

    def _check(self, parts: Sequence[bytes], condition: Condition | None) -> None:
        """`AgentRefusal` precondition unless the *condition* holds.

        Of a link within the work folder the file counts that it leads to, as for whoever reads it.
        """
        if condition is None:
            return
        tag = None
        with suppress(FileNotFoundError), ExitStack() as stack:
            tag = written(os.fstat(self._open(stack, parts))).tag
        if not condition.holds(tag):
            raise AgentRefusal("precondition", "there is none" if tag is None else "it is another one by now")

    def _commit(
        self, folder: int, draft: str, parts: Sequence[bytes], file: int, condition: Condition | None
    ) -> Written:
        with self.lock:
            self._check(parts, condition)
            created = not _exists(folder, parts[-1])
            if condition is not None and condition.only_new:
                try:
                    rename_new(os.fsencode(draft), parts[-1], folder, folder)
                except FileExistsError:  # its user was quicker
                    raise AgentRefusal("precondition", "there is something of that name") from None
            else:
                os.rename(draft, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
            return written(os.fstat(file), created=created)

    def _regular(self, stack: ExitStack, path_fd: int) -> int:
        check_owner(path_fd, self._owner(stack))
        return stack.enter_context(held(open_regular(path_fd)))

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
            folder = stack.enter_context(held(inner))
        check_owner(folder, self._owner(stack))
        return folder

    def _write(self, stack: ExitStack, folder: int, draft: str, offset: int, data: bytes, final: bool) -> int:
        file = stack.enter_context(held(self._open_draft(stack, folder, draft, create=offset == 0)))
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
        return file

    def _open_draft(self, stack: ExitStack, folder: int, draft: str, *, create: bool) -> int:
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        if create:
            with suppress(FileExistsError):
                file = os.open(draft, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
                _give(file, os.fstat(self._root(stack)))
                return file
        # Its user may have put something else there.
        there = stack.enter_context(held(os.open(draft, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)))
        found = os.fstat(there)
        check_owner(there, self._owner(stack))
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return reopen(there, os.O_WRONLY | os.O_NONBLOCK)

    def _in_place(self, folder: int, draft: str, name: bytes, offset: int, data: bytes) -> Written | None:
        """The file, if the final piece has come before and only its answer was lost."""
        if offset == 0 or _exists(folder, os.fsencode(draft)):
            return None
        with (
            suppress(OSError),
            held(os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)) as there,
            held(open_regular(there)) as file,
        ):
            found = os.fstat(file)
            if found.st_size == offset + len(data) and os.pread(file, len(data), offset) == data:
                return written(found)
        return None


def written(found: os.stat_result, *, created: bool = False) -> Written:
    """What is told of a file after a change."""
    return Written(size=found.st_size, inode=found.st_ino, changed_ns=found.st_ctime_ns, created=created)


def too_large(most: int) -> AgentRefusal:
    """The refusal of a file that would have more bytes."""
    return AgentRefusal("too-large", f"{most} bytes are allowed for a file (upload-size)")


def _exists(folder: int, name: bytes) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def _give(fd: int, like: os.stat_result) -> None:
    """Make what we have just created the work folder's owner's; as another account it is so already."""
    if os.geteuid() == 0:
        os.fchown(fd, like.st_uid, like.st_gid)


def _make_folder(parent: int, name: bytes, like: os.stat_result) -> None:
    with suppress(FileExistsError):
        os.mkdir(name, _MODE_FOLDER, dir_fd=parent)
    # A folder has one name: unlike a file, nobody else's can have been put here.
    with held(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)) as made:
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
