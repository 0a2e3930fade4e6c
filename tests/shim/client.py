"""A blocking client of the shim's socket, and a way to start real shims."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import backendai_mgr
from backendai_mgr.shim.runlog import RunLogReader

ROOT = str(Path(backendai_mgr.__file__).parent.parent)
INSIDE = Path(backendai_mgr.__file__).parent / "shim" / "inside"
HOST, GUEST = str(INSIDE / "host.py"), str(INSIDE / "guest.py")
BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from backendai_mgr.shim.main import main; main(sys.argv[2])"
)
PATIENCE = 5.0  # seconds; a bound for what should take milliseconds
ENDED = {"finished", "timeout", "cancelled", "lost"}


class Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Client:
    """One connection.  Notes that arrive while a reply is awaited are kept in `notes`, in order."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE)
        try:
            self.socket.connect(path)
        except OSError:
            self.socket.close()
            raise
        self.notes: list[dict[str, Any]] = []
        self._buffer = b""
        self._id = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        return self.reply(self.post(op, **arguments))

    def reply(self, number: int) -> dict[str, Any]:
        """Return the reply to a request, which is the next one to come."""
        while True:
            message = self.receive()
            if "note" in message:
                self.notes.append(message)
                continue
            assert message["id"] == number
            if "error" in message:
                raise Refused(message["error"]["code"], message["error"]["message"])
            return message["ok"]

    def post(self, op: str, **arguments: Any) -> int:
        """Send a request without waiting for its reply; return its id."""
        self._id += 1
        body = json.dumps({"id": self._id, "op": op, **arguments}).encode()
        self.socket.sendall(len(body).to_bytes(4, "big") + body)
        return self._id

    def receive(self) -> dict[str, Any]:
        """Return the next message of any sort.  Raises EOFError when the shim hangs up."""
        head = self._exactly(4)
        return json.loads(self._exactly(int.from_bytes(head, "big")))

    def note(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Return (and take) the first note of this kind whose fields have these values; pass over replies."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for index, note in enumerate(self.notes):
                inner = note.get("run", note) if kind == "run" else note
                if note.get("note") == kind and all(
                    inner.get(name) == value for name, value in fields.items()
                ):
                    return self.notes.pop(index)
            self.notes.append(self.receive())
        raise AssertionError(f"no note {kind} {fields}; have {self.notes}")

    def ended(self, run_id: str) -> dict[str, Any]:
        """Wait for the end of a run; return its status."""
        status = self.ask("status", run_id=run_id)["run"]
        while status["state"] not in ENDED:
            status = self.note("run", run_id=run_id)["run"]
        return status

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = self.socket.recv(1 << 16)
            if not data:
                raise EOFError
            self._buffer += data
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


class Shim:
    """A real shim over a scratch directory of its own, which may see several lives."""

    def __init__(self, scratch: Path, argv: list[str] | None = None, **spec: Any) -> None:
        self.scratch = scratch
        self.work = scratch / "work"
        self.work.mkdir(parents=True, exist_ok=True)
        self.socket = str(scratch / "s")
        self.process: subprocess.Popen[bytes] | None = None
        self.client: Client | None = None
        self._clients: list[Client] = []
        kernel_id = f"k-{scratch.parent.name}-{scratch.name}"
        env = {"PATH": os.environ["PATH"], "BACKENDAI_KERNEL_ID": kernel_id, "LANG": "C.UTF-8"}
        self.spec = {
            "kernel_id": kernel_id,
            "incarnation": 1,
            "socket": self.socket,
            "argv": argv or [os.path.realpath(sys.executable), GUEST, "python", "."],
            "env": env,
            "cwd": str(self.work),
            "uid": None,
            "gid": None,
            "setup": {"env": env, "limits": {}},
            "mark": f"BACKENDAI_KERNEL_ID={kernel_id}",
            "leash": 60.0,
            "limits": {"run_log_bytes": 64 << 20},
            "failpoints": None,
            **spec,
        }

    def start(self, **changes: Any) -> Client | None:
        """Start the shim; return a client that has said hello, or None if the shim died before that."""
        self.spec.update(changes)
        (self.scratch / "spec.json").write_text(json.dumps(self.spec))
        with open(self.scratch / "shim.err", "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", BOOT, ROOT, str(self.scratch)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={"PATH": "/usr/bin:/bin"},
                start_new_session=True,
            )
        self.client = self.connect(wait=True)
        return self.client

    def connect(self, wait: bool = False) -> Client | None:
        """Connect and say hello; with `wait` until the shim listens, or None if it dies before."""
        deadline = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(OSError, EOFError):
                client = Client(self.socket)
                try:
                    client.ask("hello")
                except (OSError, EOFError):
                    client.socket.close()
                    raise
                self._clients.append(client)
                return client
            if not wait or self.process is None or time.monotonic() > deadline:
                raise AssertionError("the shim does not listen")
            if _gone_within(self.process.pid, 0.005):
                return None

    def running(self) -> Client:
        """Start the shim and wait for its interpreter."""
        client = self.start()
        assert client is not None
        if client.ask("hello")["state"] == "starting":
            client.note("kernel", state="running")
        return client

    def run(self, code: str, run_id: str | None = None, timeout: float | None = None) -> dict[str, Any]:
        """Start a run and wait for its end; return its status."""
        assert self.client is not None
        run_id = run_id or f"r{time.monotonic_ns()}"
        start(self.client, run_id, code, timeout, self.spec["incarnation"])
        return self.client.ended(run_id)

    def folder(self, run_id: str) -> Path:
        return self.scratch / "runs" / hashlib.sha256(run_id.encode()).hexdigest()

    def output(self, run_id: str, stream: str | None = None) -> str:
        """Return what a run printed (on one stream, or on all), gaps as "<gap N>"."""
        records = read_all(self.folder(run_id))
        return "".join(
            f"<gap {record.gap}>" if record.gap else record.data.decode()
            for record in records
            if record.gap or stream in (None, record.stream)
        )

    def kill(self) -> None:
        """SIGKILL the shim and wait for its death."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)

    def stop(self) -> int:
        """End the kernel and the shim the proper way; return the shim's exit status."""
        assert self.process is not None
        with self.connect() as client:
            client.ask("end", reason="test")
            client.ask("forget")
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            except (OSError, AssertionError, Refused, EOFError, subprocess.TimeoutExpired):
                self.kill()
        for client in self._clients:
            client.socket.close()


def start(
    client: Client, run_id: str, code: str, timeout: float | None = None, incarnation: int = 1
) -> dict[str, Any]:
    spec = {"mode": "query", "code": code, "timeout": timeout}
    digest = hashlib.sha256(json.dumps(spec).encode()).hexdigest()
    return client.ask("start", run_id=run_id, incarnation=incarnation, digest=digest, spec=spec)


def start_batch(
    client: Client, run_id: str, timeout: float | None = None, **steps: str | None
) -> dict[str, Any]:
    spec = {"mode": "batch", "code": "", "timeout": timeout, **steps}
    digest = hashlib.sha256(json.dumps(spec).encode()).hexdigest()
    return client.ask("start", run_id=run_id, incarnation=1, digest=digest, spec=spec)


def read_all(folder: Path, piece: int = 1 << 20) -> list[Any]:
    reader = RunLogReader(folder)
    offset, records = 0, []
    while batch := reader.read(offset, piece):
        records += batch
        offset = batch[-1].offset + len(batch[-1].data) + batch[-1].gap
    return records


def scratch_directory() -> tempfile.TemporaryDirectory[str]:
    """A new directory with a path short enough for a socket, which any account can traverse."""
    directory = tempfile.TemporaryDirectory(prefix="shim-", dir="/tmp")
    os.chmod(directory.name, 0o711)
    return directory


def processes_marked(kernel_id: str) -> list[int]:
    """Return the pids of living (not zombie) processes with this kernel's marker in their environment."""
    marker = f"BACKENDAI_KERNEL_ID={kernel_id}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError):
                if marker in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
    return found


def interpreters(shim: Shim) -> list[int]:
    """Return the pids of the kernel's interpreters, which their guests have forked."""
    inside = {}
    for pid in processes_marked(shim.spec["kernel_id"]):
        with contextlib.suppress(OSError):
            if b"guest.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                inside[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return [pid for pid, parent in inside.items() if parent in inside]


def until(condition: Callable[[], bool]) -> None:
    """Wait for what nothing announces, as a process or a file of another process."""
    poller = select.poll()
    for _ in range(int(PATIENCE / 0.005)):
        if condition():
            return
        poller.poll(5)
    raise AssertionError("not in time")


def _gone_within(pid: int, seconds: float) -> bool:
    """Wait at most this long for the end of a child, without collecting it."""
    fd = os.pidfd_open(pid)
    try:
        return bool(select.select([fd], [], [], seconds)[0])
    finally:
        os.close(fd)
