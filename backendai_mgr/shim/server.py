"""The shim's unix socket: requests of agents and notes to them.

Messages are framed as in `framing`.  A request ``{"id": n, "op": name, ...}`` is answered by
``{"id": n, "ok": {...}}`` or ``{"id": n, "error": {"code", "message"}}``; notes have no id.  A client that
does not read is dropped when `client.MAX_PENDING` bytes wait for it; it may connect again and ask.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from backendai_mgr.shim.client import Client
from backendai_mgr.shim.framing import BadMessage
from backendai_mgr.shim.kernel import Kernel
from backendai_mgr.shim.run import Refused, Run, is_run_id, parse_order
from backendai_mgr.shim.spec import Spec

MAX_CLIENTS = 64
MAX_WATCHES = 1024  # per client
MAX_LISTED = 1000  # runs in one reply
MAX_TYPED = 64 << 10  # bytes of one request
MAX_SIDE = 9999  # rows or columns of a terminal

Reply = dict[str, Any]


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
            "type": self._type,
            "resize": self._resize,
            "socket": self._socket,
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

    def _type(self, client: Client, request: dict[str, Any]) -> None:
        """Answered when there was room: at once, as a rule."""
        writer, text, number = request.get("writer"), request.get("data"), request["id"]
        if not (isinstance(writer, str) and is_run_id(writer)):
            raise Refused("bad-request", "writer must be a name of 1 to 64 letters, digits, '.', '_' or '-'")
        offset = None if request.get("offset") is None else _natural(request, "offset")
        try:
            data = binascii.a2b_base64(text or "", strict_mode=True)
        except (TypeError, ValueError):
            raise Refused("bad-request", "data must be base64") from None
        if len(data) > MAX_TYPED:
            raise Refused("bad-request", f"more than {MAX_TYPED} bytes at once")
        run = self._kernel.find(_run_id(request))
        self._kernel.beside.type(
            run, writer, offset, data, lambda taken: client.send({"id": number, "ok": {"taken": taken}})
        )

    def _resize(self, client: Client, request: dict[str, Any]) -> Reply:
        rows, columns = _natural(request, "rows"), _natural(request, "columns")
        if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
            raise Refused("bad-request", f"rows and columns must be from 1 to {MAX_SIDE}")
        self._kernel.beside.resize(self._kernel.find(_run_id(request)), rows, columns)
        return {}

    def _socket(self, client: Client, request: dict[str, Any]) -> None:
        """Answered with a TCP socket of the kernel's network, not connected, as a descriptor.

        It is asked for on a connection of its own.  Refused: not-found, if nobody listens at the port.
        """
        number, port = request["id"], _natural(request, "port")

        def answer(made: int | None) -> None:
            if made is None:
                error = {"code": "not-found", "message": "nobody listens there"}
                client.send({"id": number, "error": error})
            else:
                client.hand_out({"id": number, "ok": {}}, made)

        self._kernel.last_active = time.time()
        self._kernel.beside.socket(port, answer)

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
