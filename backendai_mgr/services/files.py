"""Use cases of a session's files and log. Bytes pass in pieces, of which a worker holds few at once."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from uuid import uuid4

import attrs
import trio

from ..domain.access import check_acting_for
from ..domain.accounts import Caller
from ..domain.errors import (
    Conflict,
    Forbidden,
    InvalidParameters,
    NoRoom,
    NotFound,
    PayloadTooLarge,
    PreconditionFailed,
    QuotaExceeded,
    Unavailable,
)
from ..domain.ids import AccessKey, KernelId
from ..domain.requests import invalid
from ..domain.sessions import PlacedSession
from ..domain.status import DEAD, Status
from ..wire.call import MAX_OUTPUT
from ..wire.callosum import AgentError
from ..wire.files import Condition, FilePiece, FileState, Listing, Written
from ..wire.rpc import AgentRefusal, AgentUnreachable
from .accounts import KeyCache
from .agentports import AgentLink, Agents
from .agentwords import Refusals, told_by_agent
from .directory import Directory, only
from .ports import Sessions

#: Most bytes of a log; the newest are kept.
LOG_BYTES = 10 << 20
#: Bytes that are read at a time; each slow reader holds as much.
READ_BYTES = 1 << 20
#: Calls that carry content, of at most 4 MiB, and are under way at once for all callers of a worker.
_PIECES = 16
#: Seconds to forget an upload that breaks off.
_FAREWELL = 5.0
#: Calls that one removal may take, each of some 20,000 names.
_MOST_REMOVALS = 500
#: Streams that are no text leave pieces of a log nearly empty; so many are read at most.
_MOST_LOG_PIECES = 64


class IsFolder(InvalidParameters):
    """A file is wanted, and the path is a folder's."""


@attrs.frozen(kw_only=True)
class Content:
    """A file that is being read, what it was like when that began; so many bytes of it, piece by piece."""

    file: FileState
    length: int
    pieces: AsyncIterator[bytes]


@attrs.frozen(kw_only=True)
class Uploaded:
    """How far an upload has come, in bytes; what is in place when it is complete."""

    end: int
    file: Written | None


class FileService:
    """Files of the caller's running sessions, and logs. ``exact`` names a session by its name or full UUID,
    else the legacy rules of prefixes count.

    Refused, naming ``path``: `InvalidParameters`, `IsFolder`, `Forbidden`; `NotFound`; `Conflict`.
    """

    def __init__(self, directory: Directory, sessions: Sessions, keys: KeyCache, agents: Agents) -> None:
        self._directory = directory
        self._sessions = sessions
        self._keys = keys
        self._agents = agents
        self._pieces = trio.CapacityLimiter(_PIECES)

    async def list(self, caller: Caller, reference: str, path: str, *, exact: bool) -> Listing:
        """What is in a folder, or the file itself."""
        live = await self._directory.find(caller.access_key, reference, exact=exact)
        with told_by_agent(_REFUSALS):
            return await self._link(live).list_files(live.kernel_id, path)

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
        """A file from ``offset`` on, as far as it reaches now. `NotFound` before anything is handed out.

        A file that is cut short or replaced meanwhile ends the pieces with `Conflict`.
        """
        live = await self._directory.find(caller.access_key, reference, exact=exact)
        first = await self._piece(live, path, offset, READ_BYTES if length is None else length)
        available = max(0, first.size - offset)
        wanted = available if length is None else min(available, length)
        pieces = self._pieces_of(live, path, first, offset, wanted)
        state = FileState(size=first.size, inode=first.inode, changed_ns=first.changed_ns)
        return Content(file=state, length=wanted, pieces=pieces)

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
        """Write a piece of an upload (None: all of it); ``final`` puts the file in place.

        `PreconditionFailed` when the *condition* of the file in whose place it comes does not hold.
        """
        live = await self._directory.find(caller.access_key, reference, exact=exact)
        upload = upload or uuid4().hex
        done = 0
        while True:
            piece = body[done : done + MAX_OUTPUT]
            last = done + len(piece) == len(body)
            file = await self._write_piece(
                live, path, upload, offset + done, piece, final=final and last, condition=condition
            )
            done += len(piece)
            if last:
                return Uploaded(end=offset + done, file=file)

    async def write_all(
        self,
        caller: Caller,
        reference: str,
        path: str,
        chunks: AsyncGenerator[bytes, None],
        *,
        condition: Condition | None = None,
    ) -> Uploaded:
        """Write a file as its bytes come, of which few are held; it is in place, whole, when all have come.

        The session is named exactly. Nothing is left of a file that is not completed.
        """
        live = await self._directory.find(caller.access_key, reference, exact=True)
        upload, offset, held = uuid4().hex, 0, bytearray()
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    held += chunk
                    while len(held) > MAX_OUTPUT:  # the last piece is told apart
                        piece = bytes(held[:MAX_OUTPUT])
                        await self._write_piece(
                            live, path, upload, offset, piece, final=False, condition=condition
                        )
                        del held[:MAX_OUTPUT]
                        offset += len(piece)
            file = await self._write_piece(
                live, path, upload, offset, bytes(held), final=True, condition=condition
            )
        except BaseException:
            with (
                trio.move_on_after(_FAREWELL, shield=True),
                suppress(AgentRefusal, AgentUnreachable, AgentError),
            ):
                await self._link(live).drop_upload(live.kernel_id, path, upload=upload)
            raise
        return Uploaded(end=offset + len(held), file=file)

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
        """Write at most `MAX_OUTPUT` bytes into a file that is there: at ``offset``, or (None) at its end.

        The session is named exactly. `Conflict` when the offset is past its end; `PreconditionFailed`.
        """
        live = await self._directory.find(caller.access_key, reference, exact=True)
        async with self._pieces:
            with told_by_agent(_REFUSALS):
                return await self._link(live).patch_file(
                    live.kernel_id, path, offset=offset, data=body, condition=condition
                )

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
        """Give a file or a folder another path. The session is named exactly.

        `Conflict` when there is something already, and no file to *replace*; what is wrong with *to* names
        ``rename``; `PreconditionFailed`.
        """
        live = await self._directory.find(caller.access_key, reference, exact=True)
        with told_by_agent(_REFUSALS):
            return await self._link(live).move_file(
                live.kernel_id, path, to=to, replace=replace, condition=condition
            )

    async def remove(
        self,
        caller: Caller,
        reference: str,
        path: str,
        *,
        recursive: bool,
        condition: Condition | None = None,
    ) -> None:
        """Remove a file, or with *recursive* a folder. The session is named exactly.

        `Conflict` when a folder is filled as fast as it is emptied; `PreconditionFailed`.
        """
        live = await self._directory.find(caller.access_key, reference, exact=True)
        for _ in range(_MOST_REMOVALS):
            with told_by_agent(_REFUSALS):
                if await self._link(live).remove_file(
                    live.kernel_id, path, recursive=recursive, condition=condition
                ):
                    return
            condition = None  # it has held, and a folder is another one whenever something in it is gone
        raise Conflict("Not all of the folder is removed: there is too much in it, or more and more.")

    async def archive(self, caller: Caller, reference: str, path: str, max_bytes: int) -> bytes:
        """A tar file with a file, or with a folder and the files in it."""
        live = await self._directory.find(caller.access_key, reference, exact=False)
        try:
            async with self._pieces:
                with told_by_agent(_REFUSALS):
                    return await self._link(live).archive_file(live.kernel_id, path, max_bytes=max_bytes)
        except PayloadTooLarge as error:
            raise PayloadTooLarge(error.message, {"path": (error.data or {})["body"]}) from error

    async def log(
        self, caller: Caller, reference: str, *, exact: bool, owner_access_key: str | None = None
    ) -> str:
        """The newest `LOG_BYTES` of what the kernel and its runs wrote; of a dead session as much as was
        stored at its end. A session that has no kernel yet has an empty log."""
        owner = await self._owner(caller, owner_access_key)
        matches = await self._sessions.match(owner, reference, include_dead=True, exact=exact)
        session = await self._sessions.get(only(matches[:1] if exact else matches).id)
        if session is None:
            raise NotFound("session")
        dead = session.status in DEAD
        if dead and (stored := await self._sessions.stored_log(session.kernel_id)) is not None:
            return _text(stored)
        if session.agent_id is None or session.agent_addr is None:
            return ""
        try:
            with told_by_agent(_REFUSALS):
                link = self._agents.link(session.agent_id, session.agent_addr)
                return _text(await read_log(link, session.kernel_id, LOG_BYTES))
        except Unavailable as error:
            if isinstance(error.__cause__, AgentRefusal) and session.status is not Status.RUNNING:
                return ""  # it has no kernel yet, or left nothing
            raise

    # -- parts

    def _link(self, live: PlacedSession) -> AgentLink:
        return self._agents.link(live.agent_id, live.agent_addr)

    async def _write_piece(
        self,
        live: PlacedSession,
        path: str,
        upload: str,
        offset: int,
        data: bytes,
        *,
        final: bool,
        condition: Condition | None,
    ) -> Written | None:
        async with self._pieces:
            with told_by_agent(_REFUSALS):
                return await self._link(live).write_file(
                    live.kernel_id,
                    path,
                    upload=upload,
                    offset=offset,
                    data=data,
                    final=final,
                    condition=condition,
                )

    async def _piece(self, live: PlacedSession, path: str, offset: int, length: int) -> FilePiece:
        async with self._pieces:
            with told_by_agent(_REFUSALS):
                return await self._link(live).read_file(
                    live.kernel_id, path, offset=offset, max_bytes=max(1, min(length, READ_BYTES))
                )

    async def _pieces_of(
        self, live: PlacedSession, path: str, first: FilePiece, offset: int, wanted: int
    ) -> AsyncIterator[bytes]:
        data = first.data[:wanted]
        while True:
            if data:
                yield data
            offset, wanted = offset + len(data), wanted - len(data)
            if not wanted:
                return
            piece = await self._piece(live, path, offset, wanted)
            if piece.inode != first.inode or not piece.data:
                raise Conflict("The file was changed while it was read.")
            data = piece.data

    async def _owner(self, caller: Caller, owner_access_key: str | None) -> AccessKey:
        if owner_access_key is None or owner_access_key == caller.access_key:
            return caller.access_key
        credential = await self._keys.credential(AccessKey(owner_access_key))
        if credential is None:
            raise invalid("owner_access_key", "Unknown owner access key")
        check_acting_for(caller, credential.caller)
        return credential.caller.access_key


async def read_log(link: AgentLink, kernel_id: KernelId, most: int) -> bytes:
    """The newest *most* bytes of a kernel's log. Raises what calls of the link raise."""
    pieces: list[bytes] = []
    size, before = 0, None
    for _ in range(_MOST_LOG_PIECES):
        piece = await link.read_log(kernel_id, before=before, max_bytes=min(most - size, MAX_OUTPUT))
        pieces.append(piece.data)
        size, before = size + len(piece.data), piece.before
        if before is None or size >= most:
            break
    return b"".join(reversed(pieces))[-most:]


def _text(log: bytes) -> str:
    return log.decode(errors="replace")


def _wrong_path(message: str) -> Exception:
    return invalid("path", message)


_REFUSALS: Refusals = {
    "no-such-file": lambda message: NotFound("file", "", {"path": message}),
    "is-folder": lambda message: IsFolder("Input validation error", {"path": message}),
    "outside": _wrong_path,
    "bad-path": _wrong_path,
    "denied": lambda message: Forbidden("", {"path": message}),
    "too-large": lambda message: PayloadTooLarge("Too large file", {"body": message}),
    "disk-full": lambda message: NoRoom("", {"body": message}),
    "quota-used-up": lambda message: QuotaExceeded("", {"body": message}),
    "precondition": lambda message: PreconditionFailed("", {"path": message}),
    "exists": lambda message: Conflict("", {"rename": message}),
    "target": lambda message: invalid("rename", message),
    "upload-gap": lambda message: Conflict("", {"offset": message}),
    "bad-request": lambda message: InvalidParameters("The agent refused the request.", {"path": message}),
}
