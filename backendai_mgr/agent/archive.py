"""Tar files of what is in a work folder, of a bounded size."""

import io
import os
import stat
import tarfile
from contextlib import ExitStack, suppress

from ..wire.rpc import AgentRefusal
from .beneath import check_owner, held, open_regular, reopen

_DEEPEST = 100
#: Names that may have to be looked at, most of which may be nothing to archive.
_MOST_LOOKED_AT = 50_000


class Archive:
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
            check_owner(path_fd, self._owner)
            self._add_file(path_fd, name, found)

    def close(self) -> bytes:
        self._tar.close()
        self._check(0)
        return self._content.getvalue()

    def _add_file(self, path_fd: int, name: str, found: os.stat_result) -> None:
        self._check(found.st_size)
        with held(open_regular(path_fd)) as file:
            data = os.pread(file, found.st_size, 0)  # it may grow or shrink, which is no matter
        info = _info(name, found)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))

    def _add_folder(self, path_fd: int, name: str, status: os.stat_result, depth: int) -> None:
        if depth > _DEEPEST:
            raise AgentRefusal("too-large", f"folders are nested more than {_DEEPEST} deep")
        info = _info(name, status)
        info.type = tarfile.DIRTYPE
        self._tar.addfile(info)
        with held(reopen(path_fd, os.O_RDONLY | os.O_DIRECTORY)) as folder:
            for inner in self._names(folder):
                with suppress(FileNotFoundError), ExitStack() as stack:  # it may have gone meanwhile
                    found = stack.enter_context(
                        held(os.open(inner, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder))
                    )
                    mode = os.fstat(found).st_mode
                    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
                        self.add(found, f"{name}/{inner}", depth + 1)

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
