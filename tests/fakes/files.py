"""The file service in memory: files by path, logs by session, and each refusal that a test plants, once."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any
from zlib import crc32

import trio

from backendai_mgr.domain.accounts import Caller
from backendai_mgr.domain.errors import Conflict, NotFound, PreconditionFailed
from backendai_mgr.services.files import Content, IsFolder, Uploaded
from backendai_mgr.wire.files import Condition, FileEntry, Listing, Written

from .services import FakeSessions

#: Bytes of the pieces in which files are handed out.
PIECE = 1000


class FakeFiles:
    """``files`` holds contents by path; ``broken_at`` ends the reading of any file there."""

    def __init__(self, sessions: FakeSessions) -> None:
        self._sessions = sessions
        self.files: dict[str, bytes] = {}
        #: Held while a file comes, and how many bytes of it have come.
        self.gate: trio.Event | None = None
        self.come = 0
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
        return Content(file=self._state(path), length=len(data), pieces=self._pieces(data))

    def _state(self, path: str, *, created: bool = False) -> Written:
        """Its content is what makes its tag."""
        content = self.files[path]
        return Written(size=len(content), inode=7, changed_ns=crc32(content), created=created)

    def _check(self, path: str, condition: Condition | None) -> None:
        tag = self._state(path).tag if path in self.files else None
        if condition is not None and not condition.holds(tag):
            raise PreconditionFailed("", {"path": "it is another one by now"})

    def _missing(self, path: str) -> NotFound:
        return NotFound("file", "", {"path": "there is no such file"})

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
        condition: Condition | None = None,
    ) -> Uploaded:
        self._enter(reference, "write", path, exact, upload, offset, final)
        self._check(path, condition)
        created = path not in self.files
        self.files[path] = self.files.get(path, b"")[:offset] + body
        file = self._state(path, created=created) if final else None
        return Uploaded(end=offset + len(body), file=file)

    async def write_all(
        self,
        caller: Caller,
        reference: str,
        path: str,
        chunks: AsyncGenerator[bytes, None],
        *,
        condition: Condition | None = None,
    ) -> Uploaded:
        self._enter(reference, "write_all", path)
        self._check(path, condition)
        content, self.come = bytearray(), 0
        async with aclosing(chunks):
            async for chunk in chunks:
                content += chunk
                self.come = len(content)
                if self.gate is not None:
                    await self.gate.wait()
        return await self.write(caller, reference, path, bytes(content), exact=True, condition=condition)

    async def patch(
        self,
        caller: Caller,
        reference: str,
        path: str,
        body: bytes,
        *,
        offset: int | None,
        condition: Condition | None = None,
    ) -> Written:
        self._enter(reference, "patch", path, offset)
        if path not in self.files:
            raise self._missing(path)
        self._check(path, condition)
        old = self.files[path]
        at = len(old) if offset is None else offset
        if at > len(old):
            raise Conflict("", {"offset": f"the file has {len(old)} bytes"})
        self.files[path] = old[:at] + body + old[at + len(body) :]
        return self._state(path)

    async def move(
        self,
        caller: Caller,
        reference: str,
        path: str,
        to: str,
        *,
        replace: bool,
        condition: Condition | None = None,
    ) -> Written:
        self._enter(reference, "move", path, to, replace)
        if path not in self.files:
            raise self._missing(path)
        self._check(path, condition)
        if to in self.files and not replace:
            raise Conflict("", {"rename": "there is something of that name"})
        self.files[to] = self.files.pop(path)
        return self._state(to)

    async def remove(
        self,
        caller: Caller,
        reference: str,
        path: str,
        *,
        recursive: bool,
        condition: Condition | None = None,
    ) -> None:
        self._enter(reference, "remove", path, recursive)
        if path not in self.files:
            raise self._missing(path)
        self._check(path, condition)
        del self.files[path]

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
