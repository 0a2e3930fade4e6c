"""The shim's unix socket: requests of agents and notes to them.

Messages are framed as in `framing`.  A request ``{"id": n, "op": name, ...}`` is answered by
``{"id": n, "ok": {...}}`` or ``{"id": n, "error": {"code", "message"}}``; notes have no id.  A client that
does not read is dropped when `MAX_PENDING` bytes wait for it; it may connect again and ask.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from backendai_mgr.shim.framing import BadMessage, Decoder, encode
from backendai_mgr.shim.kernel import Kernel
from backendai_mgr.shim.run import Refused, Run, is_run_id, parse_order
from backendai_mgr.shim.spec import Spec

MAX_CLIENTS = 64
MAX_PENDING = 1 << 20
MAX_WATCHES = 1024  # per client
MAX_LISTED = 1000  # runs in one reply
_READ_BYTES = 256 << 10
_LAST_WORDS = 1.0  # seconds to hand out the last replies

Reply = dict[str, Any]


class Client:
    """One connection.  Nothing here waits: what cannot be sent now is kept, within bounds."""

    def __init__(self, server: Server, connection: socket.socket) -> None:
        self.wants_notes = False
        self.watches: dict[str, int] = {}
        self._server = server
        self._connection = connection
        self._decoder = Decoder()
        self._pending = bytearray()
        self._open = True
        connection.setblocking(False)
        server.selector.register(connection, selectors.EVENT_READ, self._ready)

    def send(self, message: dict[str, Any]) -> None:
        if not self._open:
            return
        was_idle = not self._pending
        self._pending += encode(message)
        if was_idle:
            self._flush()
        if len(self._pending) > MAX_PENDING:
            self.drop()

    def drop(self) -> None:
        if self._open:
            self._open = False
            self._server.selector.unregister(self._connection)
            self._connection.close()
            self._server.left(self)

    def last_words(self) -> None:
        """Give the peer a moment to take what is pending, then close."""
        if self._open:
            self._connection.settimeout(_LAST_WORDS)
            with contextlib.suppress(OSError):
                self._connection.sendall(self._pending)
            self.drop()

    def _ready(self, events: int) -> None:
        if not self._open:
            return
        if events & selectors.EVENT_WRITE:
            self._flush()
            if self._open and not self._pending:
                self._server.selector.modify(self._connection, selectors.EVENT_READ, self._ready)
        if self._open and events & selectors.EVENT_READ:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop()
            return
        try:
            for request in self._decoder.feed(data):
                self._server.serve(self, request)
                if not self._open:
                    return
        except BadMessage:
            self.drop()

    def _flush(self) -> None:
        try:
            while self._pending:
                del self._pending[: self._connection.send(self._pending)]
        except BlockingIOError:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self._server.selector.modify(self._connection, both, self._ready)
        except OSError:
            self.drop()


class Server:
    """Listens, and turns requests into calls of the kernel.  `finished` becomes true when all is over."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        path: str,
        kernel: Kernel,
        *,
        leash: float,
        reread: Callable[[], Spec],
    ) -> None:
        """`reread` returns the spec that says what the kernel is to become, or raises Refused."""
        self.selector = selector
        self._reread = reread
        self.finished = False
        self._path = path
        self._kernel = kernel
        self._leash = leash
        self._clients: set[Client] = set()
        self._watchers: dict[str, set[Client]] = {}  # by run id
        self._starting: tuple[Client, str] | None = None  # gets this run's state with its answer
        self._waiting_for_end: list[tuple[Client, int]] = []
        self._alone_since = time.monotonic()
        self._abandoned = False
        self._operations: dict[str, Callable[[Client, dict[str, Any]], Reply | None]] = {
            "hello": self._hello,
            "start": self._start,
            "status": self._status,
            "list": self._list,
            "interrupt": self._interrupt,
            "input": self._input,
            "delete": self._delete,
            "complete": self._complete,
            "assign": self._assign,
            "watch": self._watch,
            "cursor": self._cursor,
            "end": self._end,
            "forget": self._forget,
        }
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(MAX_CLIENTS)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)
        kernel.audience = self

    def close(self) -> None:
        """Answer what is answered, and take the socket away."""
        self.selector.unregister(self._listener)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        for client in list(self._clients):
            client.last_words()

    def next_deadline(self) -> float | None:
        """Return the monotonic time at which `tick` must be called, if there is one."""
        return None if self._clients or self._abandoned else self._alone_since + self._leash

    def tick(self) -> None:
        """Let go of a kernel that nobody asks for any more."""
        deadline = self.next_deadline()
        if deadline is not None and deadline <= time.monotonic():
            self._abandoned = True
            self._kernel.end("leash")
        self.finished |= self._abandoned and self._kernel.state == "ended"

    def left(self, client: Client) -> None:
        self._clients.discard(client)
        for run_id in list(client.watches):
            self._unwatch(client, run_id)
        if not self._clients:
            self._alone_since = time.monotonic()

    def serve(self, client: Client, request: dict[str, Any]) -> None:
        """Answer one request.  Raises BadMessage if it cannot be answered at all."""
        number, operation = request.get("id"), request.get("op")
        if not isinstance(number, int):
            raise BadMessage("a request needs an id")
        try:
            perform = self._operations.get(operation) if isinstance(operation, str) else None
            if perform is None:
                raise Refused("bad-request", "no such operation")
            reply = perform(client, request)
        except Refused as refusal:
            client.send({"id": number, "error": {"code": refusal.code, "message": str(refusal)}})
            return
        if reply is not None:
            client.send({"id": number, "ok": reply})
        if operation in ("start", "watch"):
            self._wake(client, request["run_id"])

    # -- what the kernel tells

    def kernel_changed(self) -> None:
        note = {"note": "kernel", "state": self._kernel.state, "exit": self._kernel.exit}
        for client in list(self._clients):
            if client.wants_notes:
                client.send(note)
        if self._kernel.state == "ended":
            for client, number in self._waiting_for_end:
                client.send({"id": number, "ok": {}})
            self._waiting_for_end.clear()

    def run_changed(self, run: Run) -> None:
        note = {"note": "run", "run": run.status()}
        for client in list(self._clients):
            if client.wants_notes and (client, run.run_id) != self._starting:
                client.send(note)
        if run.state.ended:
            self.log_grew(run)

    def log_grew(self, run: Run) -> None:
        for client in list(self._watchers.get(run.run_id, ())):
            self._wake(client, run.run_id)

    # -- operations

    def _hello(self, client: Client, request: dict[str, Any]) -> Reply:
        client.wants_notes = True
        kernel = self._kernel
        return {
            "kernel_id": kernel.identity.kernel_id,
            "incarnation": kernel.identity.incarnation,
            "pid": os.getpid(),
            "state": kernel.state,
            "started_at": kernel.started_at,
            "exit": kernel.exit,
            "last_active": kernel.last_active,
            "unassigned": kernel.unassigned,
        }

    def _start(self, client: Client, request: dict[str, Any]) -> Reply:
        """With an offset as its ``watch`` the run, if this starts it, is watched, as `_watch` does it."""
        order = parse_order(request)
        watch = None if request.get("watch") is None else _natural(request, "watch")
        self._starting = client, order.run_id
        try:
            created, run = self._kernel.start_run(order)
        finally:
            self._starting = None
        if created and watch is not None:
            self._add_watch(client, run.run_id, watch)
        return {"created": created, "run": run.status()}

    def _status(self, client: Client, request: dict[str, Any]) -> Reply:
        return {"run": self._kernel.find(_run_id(request)).status()}

    def _list(self, client: Client, request: dict[str, Any]) -> Reply:
        return {"runs": [run.status() for run in self._kernel.arbiter.runs()[-MAX_LISTED:]]}

    def _interrupt(self, client: Client, request: dict[str, Any]) -> Reply:
        run_id = None if request.get("run_id") is None else _run_id(request)
        run = self._kernel.interrupt(run_id)
        return {"run": None if run is None else run.status()}

    def _input(self, client: Client, request: dict[str, Any]) -> Reply:
        offset = None if request.get("offset") is None else _natural(request, "offset")
        text = request.get("text")
        if not isinstance(text, str | None):
            raise Refused("bad-request", "text must be text or null")
        return {"run": self._kernel.answer(_run_id(request), offset, text).status()}

    def _delete(self, client: Client, request: dict[str, Any]) -> Reply:
        self._kernel.delete(_run_id(request))
        return {}

    def _complete(self, client: Client, request: dict[str, Any]) -> None:
        code, number = request.get("code"), request["id"]
        if not isinstance(code, str):
            raise Refused("bad-request", "code must be text")
        cursor = min(_natural(request, "cursor"), len(code))
        self._kernel.complete(
            code, cursor, lambda matches: client.send({"id": number, "ok": {"matches": matches}})
        )

    def _assign(self, client: Client, request: dict[str, Any]) -> Reply:
        """A kernel that was made before anybody asked for it reads its spec again, which now has one."""
        if self._kernel.unassigned:
            spec = self._reread()
            assert spec.setup is not None
            self._kernel.assign(spec.identity, spec.setup)
            self._leash = spec.leash
        return {}

    def _watch(self, client: Client, request: dict[str, Any]) -> Reply:
        run = self._kernel.find(_run_id(request))
        offset = _natural(request, "offset")
        if len(client.watches) >= MAX_WATCHES:
            raise Refused("bad-request", f"more than {MAX_WATCHES} watches")
        self._add_watch(client, run.run_id, offset)
        return {"end": run.end_offset, "state": run.state.value}

    def _cursor(self, client: Client, request: dict[str, Any]) -> Reply:
        run = self._kernel.find(_run_id(request))
        expected, advance = (
            None if request.get(name) is None else _natural(request, name) for name in ("expected", "advance")
        )
        return {"cursor": self._kernel.arbiter.move_cursor(run, expected, advance)}

    def _end(self, client: Client, request: dict[str, Any]) -> Reply | None:
        reason = request.get("reason")
        if not isinstance(reason, str) or len(reason) > 1000:
            raise Refused("bad-request", "reason must be a short text")
        if self._kernel.state != "ended":
            self._waiting_for_end.append((client, request["id"]))
            self._kernel.end(reason)
            return None
        return {}

    def _forget(self, client: Client, request: dict[str, Any]) -> Reply:
        if self._kernel.state != "ended":
            raise Refused("bad-request", "the kernel has not ended")
        self.finished = True
        return {}

    # -- within

    def _accept(self, events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it has gone again, or we are out of descriptors for now
            return
        _, uid, _ = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        )
        if len(self._clients) >= MAX_CLIENTS or uid not in (0, os.geteuid()):
            connection.close()
            return
        self._clients.add(Client(self, connection))

    def _wake(self, client: Client, run_id: str) -> None:
        """Send the one note of a watch if its time has come."""
        run = self._kernel.arbiter.find(run_id)
        offset = client.watches.get(run_id)
        if run is not None and offset is not None and (run.end_offset > offset or run.state.ended):
            self._unwatch(client, run_id)
            client.send({"note": "more", "run_id": run_id, "end": run.end_offset, "state": run.state.value})

    def _add_watch(self, client: Client, run_id: str, offset: int) -> None:
        client.watches[run_id] = offset
        self._watchers.setdefault(run_id, set()).add(client)

    def _unwatch(self, client: Client, run_id: str) -> None:
        client.watches.pop(run_id, None)
        watchers = self._watchers.get(run_id, set())
        watchers.discard(client)
        if not watchers:
            self._watchers.pop(run_id, None)


def _run_id(request: dict[str, Any]) -> str:
    run_id = request.get("run_id")
    if not (isinstance(run_id, str) and is_run_id(run_id)):
        raise Refused("bad-request", "run_id must be 1 to 64 letters, digits, '.', '_' or '-'")
    return run_id


def _natural(request: dict[str, Any], name: str) -> int:
    value = request.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Refused("bad-request", f"{name} must be an integer from 0")
    return value
