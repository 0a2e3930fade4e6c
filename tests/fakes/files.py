"""The file service in memory: files by path, logs by session, and each refusal that a test plants, once."""

from collections.abc import AsyncIterator
from typing import Any

from backendai_mgr.domain.accounts import Caller
from backendai_mgr.domain.errors import NotFound
from backendai_mgr.services.files import Content, IsFolder
from backendai_mgr.wire.files import FileEntry, Listing

from .services import FakeSessions

#: Bytes of the pieces in which files are handed out.
PIECE = 1000


class FakeFiles:
    """``files`` holds contents by path; ``broken_at`` ends the reading of any file there."""

    def __init__(self, sessions: FakeSessions) -> None:
        self._sessions = sessions
        self.files: dict[str, bytes] = {}
        self.refusal: BaseException | None = None
        self.broken_at: int | None = None
        self.cut = False
        self.calls: list[Any] = []

    def _enter(self, reference: str, *call: Any) -> None:
        self.calls.append(call)
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        self._sessions._find(reference)

    def _folder(self, path: str) -> list[str]:
        prefix = f"{path}/" if path not in ("", ".") else ""
        return [name[len(prefix) :] for name in self.files if name.startswith(prefix)]

    async def list(self, caller: Caller, reference: str, path: str, *, exact: bool) -> Listing:
        self._enter(reference, "list", path, exact)
        names = [path] if path in self.files else self._folder(path)
        if not names:
            raise NotFound("file", "", {"path": "there is no such file"})
        entries = [
            FileEntry(filename=name, mode="-rw-r--r--", size=1, ctime=1.5, mtime=2.5, atime=3.5)
            for name in names
        ]
        return Listing(path="" if path == "." else path, entries=entries, cut=self.cut)

    async def read(
        self,
        caller: Caller,
        reference: str,
        path: str,
        *,
        exact: bool,
        offset: int = 0,
        length: int | None = None,
    ) -> Content:
        self._enter(reference, "read", path, exact)
        if path not in self.files:
            if self._folder(path):
                raise IsFolder("", {"path": "it is a folder"})
            raise NotFound("file", "", {"path": "there is no such file"})
        whole = self.files[path]
        data = whole[offset:] if length is None else whole[offset : offset + length]
        return Content(size=len(whole), inode=7, length=len(data), pieces=self._pieces(data))

    async def _pieces(self, data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), PIECE):
            if self.broken_at is not None and start >= self.broken_at:
                raise NotFound("file", "it is gone")
            yield data[start : start + PIECE]

    async def write(
        self,
        caller: Caller,
        reference: str,
        path: str,
        body: bytes,
        *,
        exact: bool,
        upload: str | None = None,
        offset: int = 0,
        final: bool = True,
    ) -> int:
        self._enter(reference, "write", path, exact, upload, offset, final)
        self.files[path] = self.files.get(path, b"")[:offset] + body
        return offset + len(body)

    async def archive(self, caller: Caller, reference: str, path: str, max_bytes: int) -> bytes:
        self._enter(reference, "archive", path, max_bytes)
        if path not in self.files:
            raise NotFound("file", "", {"path": "there is no such file"})
        return b"tar of " + self.files[path]

    async def log(
        self, caller: Caller, reference: str, *, exact: bool, owner_access_key: str | None = None
    ) -> str:
        self._enter(reference, "log", exact, owner_access_key)
        return "a log\n"
