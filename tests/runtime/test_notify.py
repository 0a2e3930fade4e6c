"""What systemd would hear, and what it would hand over."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from backendai_mgr.runtime.notify import Notifier, take_listeners


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """(NOTIFY_SOCKET, the socket behind it)."""
    name = f"@{uuid4()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.settimeout(5)
        yield name, receiver


def test_states_are_told(listening: tuple[str, socket.socket]) -> None:
    address, receiver = listening
    environ = {"NOTIFY_SOCKET": address, "HOME": "/"}
    notifier = Notifier.taken(environ)
    assert environ == {"HOME": "/"}
    notifier.ready("two\nlines")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=two lines"
    notifier.reloading()
    state, usec = receiver.recv(4096).decode().splitlines()
    assert (state, usec.partition("=")[0]) == ("RELOADING=1", "MONOTONIC_USEC")
    assert int(usec.partition("=")[2]) > 0
    notifier.stopping()
    assert receiver.recv(4096).startswith(b"STOPPING=1\n")


def test_nobody_need_listen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Notifier.taken({}).ready("well")
    assert not caplog.messages
    Notifier(str(tmp_path / "gone")).ready("well")
    assert "could not be told READY=1" in caplog.text


def test_a_listener_that_takes_nothing_holds_up_nobody(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        for _ in range(1000):
            Notifier(str(tmp_path / "deaf")).stopping()


@pytest.mark.parametrize(("pid", "count"), [(0, "0"), (1, "1"), (0, ""), (0, "many")])
def test_there_may_be_no_socket_for_us(pid: int, count: str) -> None:
    environ = {"LISTEN_PID": str(os.getpid() + pid), "LISTEN_FDS": count, "LISTEN_FDNAMES": "x"}
    assert take_listeners(environ) == []
    assert environ == {}
