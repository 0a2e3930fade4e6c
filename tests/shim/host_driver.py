"""The interpreter host alone, on a socket pair: what the shim hears of it, message by message."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.shim.client import HOST, PATIENCE


class Result(NamedTuple):
    exit_code: int
    out: str
    err: str
    interrupted: bool = False


class HostDied(Exception):
    """With the exit status as subprocess gives it."""


class HostProcess:
    def __init__(self, folder: Path, argv: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.shows_our_frames = "/3.6." in argv[0]  # its tracebacks are read-only
        self.work = folder / "work"
        self.work.mkdir()
        self.files = [folder / "out", folder / "err"]
        self.seen = [0, 0]
        self.messages: list[dict[str, Any]] = []  # all that were not awaited, in order
        self._number = 0
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(PATIENCE)
        with open(self.files[0], "ab") as out, open(self.files[1], "ab") as err:
            self.process = subprocess.Popen(
                [*argv, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.work,
                env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(env or {})},
                start_new_session=True,
            )
        theirs.close()
        self.await_("ready")

    def send(self, **message: Any) -> None:
        body = json.dumps(message).encode()
        self.socket.sendall(len(body).to_bytes(4, "big") + body)

    def receive(self) -> dict[str, Any]:
        head = self._exactly(4)
        return json.loads(self._exactly(int.from_bytes(head, "big")))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise HostDied(self.process.wait(PATIENCE))
            data += piece
        return data

    def await_(self, kind: str) -> dict[str, Any]:
        """Return the next message of a kind; what comes before it is kept."""
        while True:
            message = self.receive()
            if kind in message:
                return message
            assert "done" not in message, (kind, message, self.printed(1))
            self.messages.append(message)

    def start(self, code: str) -> None:
        """Begin a run."""
        self._number += 1
        self.send(run=self._number, code=code)
        assert self.await_("began") == {"began": self._number}

    def end(self) -> Result:
        """Wait for the end of the run that was started."""
        done = self.await_("done")
        assert done["done"] == self._number
        return Result(done["exit_code"], self.printed(0), self.printed(1), done["interrupted"])

    def run(self, code: str) -> Result:
        self.start(code)
        return self.end()

    def printed(self, stream: int) -> str:
        """Return what arrived on stdout (0) or stderr (1) since the last time."""
        data = self.files[stream].read_bytes()[self.seen[stream] :]
        self.seen[stream] += len(data)
        return data.decode()

    def prompt(self, is_password: bool = False) -> int:
        """Wait for a question; return its number."""
        message = self.await_("prompt")
        assert message == {"prompt": message["prompt"], "is_password": is_password}
        return message["prompt"]

    def answer(self, text: str | None, is_password: bool = False) -> None:
        self.send(input=self.prompt(is_password), text=text)

    def complete(self, code: str, cursor: int | None = None) -> list[str]:
        self._number += 1
        self.send(complete=self._number, code=code, cursor=len(code) if cursor is None else cursor)
        message = self.await_("completions")
        assert message["completions"] == self._number
        return message["matches"]

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def displayed(self) -> list[tuple[str, str]]:
        """Return and forget what has been shown."""
        shown = [(m["display"], m["data"]) for m in self.messages if "display" in m]
        self.messages.clear()
        return shown

    def works(self) -> None:
        assert self.run("print('still'); 6*7") == (0, "still\n42\n", "", False)

    def close(self) -> None:
        self.socket.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)


@contextlib.contextmanager
def host(argv: Sequence[str] | None = None, env: dict[str, str] | None = None) -> Iterator[HostProcess]:
    with tempfile.TemporaryDirectory(prefix="host-") as folder:
        process = HostProcess(Path(folder), argv or [sys.executable, HOST], env)
        try:
            yield process
        finally:
            process.close()


def in_state(pid: int, states: str) -> None:
    """Wait until a process is in one of these states of /proc/PID/stat (S: asleep)."""
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in states:
        assert time.monotonic() < deadline
        os.sched_yield()


def pythons() -> list[str]:
    """Every Python 3 that can be found, 3.6 or later, and the one that runs the tests."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [
        path / "bin" / "python" for path in sorted(root.glob("3.*")) if (path / "bin" / "python").exists()
    ]
    system = Path("/usr/bin/python3")
    return [*map(str, found), *([str(system)] if system.exists() else []), sys.executable]
