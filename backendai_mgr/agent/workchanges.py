"""Changes of what is in a work folder: into a file, of its path, and its end."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from ..wire.files import Condition, Written
from ..wire.rpc import AgentRefusal
from .beneath import check_owner, held, rename_new, reopen
from .workfolder import WorkFolder, parts_of, told, too_large, written

#: Names that one call removes, so that no thread is taken for long.
MOST_REMOVED = 20_000
#: Folders within folders that are entered. What lies deeper is brought up before.
_DEEPEST = 64


class WorkChanges(WorkFolder):
    """The folder, and what may be done to its files beside replacing them. Refusals are `AgentRefusal`."""

    def patch(
        self, path: str, offset: int | None, data: bytes, *, most: int, condition: Condition | None = None
    ) -> Written:
        """Write *data* into a file that is there: at *offset*, at most its size, or (None) at its end.

        When the disk is full the file has the size that it had before.
        """
        parts = parts_of(path)
        with told(), ExitStack() as stack, self.lock:
            there = self._open(stack, parts)
            found = os.fstat(there)
            if not stat.S_ISREG(found.st_mode):
                number = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.ENXIO
                raise OSError(number, os.strerror(number))
            check_owner(there, self._owner(stack))
            self._check(parts, condition)
            at = found.st_size if offset is None else offset
            if at > found.st_size:
                raise AgentRefusal("upload-gap", f"the file has {found.st_size} bytes")
            if at + len(data) > most:
                raise too_large(most)
            # At its end, wherever that is when its user writes to it too.
            flags = os.O_WRONLY | os.O_NONBLOCK | (os.O_APPEND if offset is None else 0)
            file = stack.enter_context(held(reopen(there, flags)))
            _write(file, at, data, found.st_size)
            return written(os.fstat(file))

    def move(self, path: str, to: str, *, replace: bool, condition: Condition | None = None) -> Written:
        """Give a file or a folder another path, in one step; with *replace* also that of another file.

        What is wrong with *to* is `AgentRefusal` target.
        """
        parts = parts_of(path)
        with _target():
            others = parts_of(to)
            if not others:
                raise AgentRefusal("is-folder", "it is the work folder itself")
        if not parts:
            raise AgentRefusal("is-folder", "it is the work folder itself")
        with told(), ExitStack() as stack:
            source = self._folder(stack, parts[:-1])
            os.lstat(parts[-1], dir_fd=source)
            with _target(), told():
                destination = self._make_folders(stack, others[:-1])
            with self.lock:
                self._check(parts, condition)
                try:
                    if replace:
                        os.rename(parts[-1], others[-1], src_dir_fd=source, dst_dir_fd=destination)
                    else:
                        rename_new(parts[-1], others[-1], source, destination)
                except OSError as error:
                    if error.errno == errno.ENOENT:
                        raise
                    if error.errno == errno.EINVAL:
                        raise AgentRefusal("target", "a folder cannot be moved into itself") from None
                    with _target(), told():
                        raise
                return written(os.lstat(others[-1], dir_fd=destination))

    def remove(self, path: str, *, recursive: bool, condition: Condition | None = None) -> bool:
        """Remove a file, or with *recursive* a folder and all that is in it. Links are not followed.

        False when some of it is left, since there is much, or its user puts more into it: call again.
        """
        parts = parts_of(path)
        if not parts:
            raise AgentRefusal("is-folder", "it is the work folder itself")
        name = parts[-1]
        with told(), ExitStack() as stack:
            folder = self._folder(stack, parts[:-1])
            with self.lock:
                self._check(parts, condition)
                if not stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
                    os.unlink(name, dir_fd=folder)
                    return True
            if not recursive:
                raise AgentRefusal("is-folder", "it is a folder, which is removed with recursive=true only")
            top = stack.enter_context(held(_open_folder(name, folder)))
            if not _Removal(top).empty(top, 0):
                return False
            try:
                os.rmdir(name, dir_fd=folder)
            except FileNotFoundError:
                return True
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOTDIR):
                    raise
                return False
            return True


class _Removal:
    """What is in a folder, being removed: so many names, and no deeper than there are descriptors for."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._left = MOST_REMOVED

    def empty(self, folder: int, depth: int) -> bool:
        """Remove what is in the *folder*; whether all of it is gone."""
        all_gone = True
        for name in self._names(folder):
            if self._left == 0:
                return False
            self._left -= 1
            with suppress(FileNotFoundError):
                all_gone = self._remove(folder, name, depth) and all_gone
        return all_gone

    def _names(self, folder: int) -> list[str]:
        with os.scandir(folder) as entries:
            return [entry.name for entry, _ in zip(entries, range(self._left + 1), strict=False)]

    def _remove(self, folder: int, name: str, depth: int) -> bool:
        try:
            os.unlink(name, dir_fd=folder)
        except IsADirectoryError:
            pass
        else:
            return True
        if depth == _DEEPEST:
            os.rename(name, f".removed-{secrets.token_hex(8)}", src_dir_fd=folder, dst_dir_fd=self._top)
            return False
        try:
            with held(_open_folder(os.fsencode(name), folder)) as inner:
                if not self.empty(inner, depth + 1):
                    return False
            os.rmdir(name, dir_fd=folder)
        except OSError as error:
            # Its user has put more into it, or something else in its place.
            if error.errno not in (errno.ENOTEMPTY, errno.ENOTDIR, errno.ELOOP):
                raise
            return False
        return True


def _open_folder(name: bytes, folder: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)


def _write(file: int, at: int, data: bytes, size: int) -> None:
    """Write all of it, or leave the file as long as it was. Where it appends, *at* is its *size*."""
    rest, end = memoryview(data), at
    try:
        os.lseek(file, at, os.SEEK_SET)
        while rest:
            done = os.write(file, rest)
            rest, end = rest[done:], end + done
    except OSError:
        if end > size and os.fstat(file).st_size == end:  # else its user has written behind
            os.ftruncate(file, size)
        raise


@contextmanager
def _target() -> Iterator[None]:
    """What is refused in the block is wrong with where something is to go."""
    try:
        yield
    except AgentRefusal as refusal:
        if refusal.code in ("disk-full", "quota-used-up", "exists", "file-failed"):
            raise
        raise AgentRefusal("target", refusal.message) from refusal
