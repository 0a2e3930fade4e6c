"""The connection to one kernel's shim: requests with answers, and notes as they come.

Messages are a length (4 bytes, big endian) and a JSON object. The shim handles requests in their order, and
notes keep their order among answers, so what `on_run` was told last is the present state.
"""

import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import attrs
import trio
from cattrs import BaseValidationError

from ..domain.status import RUN_ENDED, RunState
from ..wire.codec import wire
from ..wire.rpc import RunStatus

MAX_MESSAGE = 16 << 20
#: Seconds that a shim has for an answer; it does nothing that takes long.
ANSWER_TIMEOUT = 20.0
_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")
_OUTBOX = 256


class ShimGone(Exception):
    """The connection has ended or cannot be made: the shim is dead, or is not the one it should be."""


class ShimSilent(Exception):
    """The shim did not answer in time."""


class ShimRefusal(Exception):
    """The shim's own refusal, with the code of its protocol."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class Listener(Protocol):
    """What a shim tells unasked. Called by the link's reader, in order; must not block."""

    def on_kernel(self, state: str, end: dict[str, Any] | None) -> None:
        """The kernel is in this state; ``end`` is ``{"reason", "exit_code"}`` once it has ended."""

    def on_run(self, run: RunStatus) -> None:
        """The run is now like this."""

    def on_more(self, run_id: str, end: int, ended: bool) -> None:
        """An armed watch fired: the log ends at *end*; or the run has ended."""


@attrs.frozen(kw_only=True)
class Hello:
    """What the shim says of its kernel. Times in unix seconds."""

    kernel_id: str
    incarnation: int
    pid: int
    state: Literal["starting", "running", "ended"]
    started_at: float
    exit: dict[str, Any] | None
    last_active: float
    #: It waits to be told which kernel it is.
    unassigned: bool = False


class ShimLink:
    """Requests to one shim. Make it with `open_link`."""

    def __init__(self, stream: trio.SocketStream, listener: Listener) -> None:
        self._stream = stream
        self._listener = listener
        self._next_id = 0
        self._waiting: dict[int, Callable[[dict[str, Any] | None], None]] = {}
        self._send_outbox, self._outbox = trio.open_memory_channel[bytes](_OUTBOX)
        self.closed = trio.Event()

    async def hello(self) -> Hello:
        answer = await self.request("hello")
        try:
            return wire.structure(answer, Hello)
        except BaseValidationError as error:
            raise ShimGone("the answer makes no sense") from error

    async def request(self, op: str, *, timeout: float | None = None, **arguments: Any) -> dict[str, Any]:
        """The ``ok`` of the answer. Raises `ShimRefusal`, `ShimGone`, or after *timeout* s `ShimSilent`."""
        timeout = ANSWER_TIMEOUT if timeout is None else timeout
        answered = trio.Event()
        answers: list[dict[str, Any] | None] = []

        def take(answer: dict[str, Any] | None) -> None:
            answers.append(answer)
            answered.set()

        number = 0
        try:
            with trio.fail_after(timeout):
                number = await self._post(op, arguments, take)
                await answered.wait()
        except trio.TooSlowError:
            raise ShimSilent(f"no answer to {op} within {timeout:g} s") from None
        finally:
            self._waiting.pop(number, None)
        return _ok(answers[0])

    async def watch(self, run_id: str, offset: int, refused: Callable[[], None]) -> None:
        """Arm the one watch of this run: `Listener.on_more` is called when it has output past *offset*.

        Returns as soon as the request is under way; *refused* is called when the shim does not take it.
        """

        def take(answer: dict[str, Any] | None) -> None:
            if answer is None or "ok" not in answer:
                refused()

        await self._post("watch", {"run_id": run_id, "offset": offset}, take)

    async def _post(
        self, op: str, arguments: dict[str, Any], take: Callable[[dict[str, Any] | None], None]
    ) -> int:
        """Queue a request; *take* gets its answer, or None when the connection ends before that."""
        if self.closed.is_set():
            raise ShimGone("the connection has ended")
        self._next_id += 1
        number = self._next_id
        body = json.dumps({"id": number, "op": op, **arguments}, separators=(",", ":")).encode()
        if len(body) > MAX_MESSAGE:
            raise ShimRefusal("bad-request", f"a request of {len(body)} bytes is too large")
        self._waiting[number] = take
        try:
            await self._send_outbox.send(_LENGTH.pack(len(body)) + body)
        except BaseException as error:
            del self._waiting[number]
            if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
                raise ShimGone("the connection has ended") from None
            raise
        return number

    async def run(self) -> None:
        """Carry messages until the shim closes the connection or breaks the protocol; then all waits end."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.closed.set()
            self._outbox.close()
            waiting, self._waiting = self._waiting, {}
            for take in waiting.values():
                take(None)

    async def _write(self) -> None:
        try:
            async for frame in self._outbox:
                await self._stream.send_all(frame)
        except trio.BrokenResourceError:
            return  # the reader sees the end, after what the shim still said

    async def _read(self) -> None:
        buffer = bytearray()
        try:
            while data := await self._stream.receive_some():
                buffer += data
                while len(buffer) >= _LENGTH.size:
                    (length,) = _LENGTH.unpack_from(buffer)
                    if length > MAX_MESSAGE:
                        return
                    end = _LENGTH.size + length
                    if len(buffer) < end:
                        break
                    message = bytes(buffer[_LENGTH.size : end])
                    del buffer[:end]
                    self._take(json.loads(message))
        except (trio.BrokenResourceError, ValueError, KeyError, TypeError, BaseValidationError):
            return  # reset by the peer, or not our protocol: either way it is over

    def _take(self, message: dict[str, Any]) -> None:
        match message:
            case {"note": "run", "run": run}:
                self._listener.on_run(wire.structure(run, RunStatus))
            case {"note": "more", "run_id": str(run_id), "end": int(end), "state": str(state)}:
                self._listener.on_more(run_id, end, RunState(state) in RUN_ENDED)
            case {"note": "kernel", "state": str(state)}:
                self._listener.on_kernel(state, message.get("exit"))
            case {"id": int(number)}:
                for run in _runs_in(message.get("ok")):
                    self._listener.on_run(run)
                if take := self._waiting.pop(number, None):
                    take(message)


def _runs_in(ok: Any) -> list[RunStatus]:
    match ok:
        case {"run": dict() as run}:
            return [wire.structure(run, RunStatus)]
        case {"runs": list() as runs}:
            return [wire.structure(run, RunStatus) for run in runs]
    return []


def _ok(answer: dict[str, Any] | None) -> dict[str, Any]:
    match answer:
        case {"ok": dict() as ok}:
            return ok
        case {"error": {"code": str(code), "message": str(message)}}:
            raise ShimRefusal(code, message)
        case None:
            raise ShimGone("the connection has ended")
    raise ShimGone("the answer makes no sense")


@asynccontextmanager
async def open_link(path: Path, pid: int, listener: Listener) -> AsyncIterator[ShimLink]:
    """Connect to the shim at *path*, which must be process *pid*; `ShimGone` when it is not there.

    The caller runs `ShimLink.run` in a nursery of its own. The connection is closed on leaving.
    """
    try:
        stream = await trio.open_unix_socket(str(path))
    except OSError as error:
        raise ShimGone(f"{path}: {error}") from error
    async with stream:
        check_peer(stream, path, pid)
        yield ShimLink(stream, listener)


def check_peer(stream: trio.SocketStream, path: Path, pid: int) -> None:
    """Raises `ShimGone` unless this process serves *path*."""
    raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    peer, _, _ = _CREDENTIALS.unpack(raw)
    if peer != pid:
        raise ShimGone(f"{path} is served by process {peer}, not by {pid}")
