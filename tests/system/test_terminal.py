"""`terminal` under a terminal of its own, against the whole program."""

import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import closing, contextmanager
from fcntl import ioctl
from pathlib import Path

import attrs
import pytest
import trio
import trio_websocket

from .harness import COMMAND, Installation, Up, wait_until
from .http import Http
from .processes import child, shim_of
from .runs import Runs
from .websockets import connected

pytestmark = pytest.mark.system


@attrs.define
class Typist:
    """Somebody at a terminal in which a command runs."""

    process: "subprocess.Popen[str]"
    master: int
    screen: bytes = b""

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def sees(self, text: str, times: int = 1) -> None:
        """Wait until the text has been shown so often."""
        until = time.monotonic() + COMMAND
        while self.screen.count(text.encode()) < times:
            left = until - time.monotonic()
            assert left > 0, f"{text!r} is not on the screen: {self.screen.decode(errors='replace')}"
            if select.select([self.master], [], [], left)[0]:
                self.screen += os.read(self.master, 65536)

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def ends(self) -> int:
        """Wait for the end of the command; its exit code."""
        until = time.monotonic() + COMMAND
        while self.process.poll() is None:
            assert time.monotonic() < until, self.screen.decode(errors="replace")
            if select.select([self.master], [], [], 0.05)[0]:
                self.screen += os.read(self.master, 65536)
        return self.process.returncode


@contextmanager
def at_terminal(up: Up, *arguments: str, rows: int = 30, columns: int = 100) -> Iterator[Typist]:
    master, slave = pty.openpty()
    try:
        ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        with up.popen("terminal", *arguments, stdin=slave, stdout=slave, stderr=slave) as process:
            try:
                yield Typist(process, master)
            finally:
                process.kill()
        assert termios.tcgetattr(slave)[3] & termios.ECHO or process.returncode == -signal.SIGKILL
    finally:
        os.close(master)
        os.close(slave)


@pytest.fixture
def runs(shared_up: Up) -> Iterator[Runs]:
    with closing(Http(shared_up.said)) as http, Runs.in_new_session(http, "terminal") as runs:
        yield runs


def test_a_shell_with_its_sizes_and_its_exit_code(shared_up: Up, runs: Runs) -> None:
    with at_terminal(shared_up, runs.name) as typist:
        typist.type("stty size; echo $((6 * 7))-; pwd\r")
        typist.sees("30 100\r\n42-")
        typist.resize(41, 133)
        typist.type("while [ \"$(stty size)\" != '41 133' ]; do :; done; echo res''ized\r")
        typist.sees("resized")
        typist.type("PS1='rea''dy> '\r")
        typist.sees("ready> ")
        typist.type("echo sleep''ing; sleep 1000\r")
        typist.sees("sleeping")
        typist.type("\x03")  # for what runs there, not for us
        typist.sees("ready> ", times=2)  # what is typed while the shell recovers may be lost
        typist.type("echo inter''rupted; exit 7\r")
        typist.sees("interrupted")
        assert typist.ends() == 7
    (run,) = runs.list()
    assert (run["run_id"], run["mode"], run["state"], run["exit_code"]) == (
        "terminal-1",
        "terminal",
        "finished",
        7,
    )


def test_who_leaves_comes_back_to_the_same_screen(shared_up: Up, runs: Runs) -> None:
    with at_terminal(shared_up, runs.name) as typist:
        typist.type("kept=yes; echo fi''rst\r")
        typist.sees("first")
        typist.type("\x1d")
        assert typist.ends() == 0
    runs.run("1 + 1")  # which it holds up in no way
    with at_terminal(shared_up, runs.name) as typist:
        typist.sees("first")
        typist.type("echo kept=$kept; exit\r")
        typist.sees("kept=yes")
        assert typist.ends() == 0


def test_terminals_of_other_names_are_others(shared_up: Up, runs: Runs) -> None:
    with (
        at_terminal(shared_up, runs.name) as one,
        at_terminal(shared_up, runs.name, "--terminal", "b") as two,
    ):
        one.type("x=1; echo x is ''$x\r")
        one.sees("x is 1")
        two.type("echo x is \"'$x'\"; exit\r")
        two.sees("x is ''")
        assert two.ends() == 0
        one.type("exit\r")
        assert one.ends() == 0


def test_it_can_be_used_without_a_terminal(shared_up: Up, runs: Runs) -> None:
    done = shared_up.command("terminal", runs.name, stdin="echo $((40 + 2)).\nexit 3\n")
    assert done.returncode == 3
    assert "42." in done.stdout


def test_a_session_that_is_not_there(shared_up: Up) -> None:
    done = shared_up.command("terminal", "no-such-session")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: No such session.\n" or "No such session" in done.stderr


def test_it_is_lost_with_its_session(shared_up: Up, runs: Runs) -> None:
    with at_terminal(shared_up, runs.name) as typist:
        typist.type("echo on''ly\r")
        typist.sees("only")
        os.kill(shim_of(shared_up, runs.session_id), signal.SIGKILL)
        assert typist.ends() == 1
        typist.sees("The run was lost")


@pytest.mark.parametrize("victim", ["worker", "agent"])
def test_it_survives_the_death_of_what_is_between(
    installation: Installation, folder: Path, victim: str
) -> None:
    with Up(installation, folder / "data") as up:
        assert up.command("run", "--session", "here", "--keep", "1").returncode == 0
        with at_terminal(up, "here") as typist:
            typist.type('n=0; count() { n=$((n + 1)); echo "<$n>"; }\r')
            typist.type("count\r")
            typist.sees("<1>")
            killed = child(up, victim)
            assert killed is not None
            os.kill(killed, signal.SIGKILL)
            for _ in range(20):  # some of it before anybody has noticed
                typist.type("count\r")
            wait_until(lambda: child(up, victim) not in (None, killed), 20, "a new one runs")
            typist.sees("<21>")
            typist.type("count; exit\r")
            typist.sees("<22>")
            assert typist.ends() == 0
            shown = [typist.screen.count(f"<{number}>".encode()) for number in range(1, 23)]
            assert shown == [1] * 22


async def shown(socket: trio_websocket.WebSocketConnection, text: bytes) -> tuple[bytes, int]:
    """What is shown until the text is among that, and the offset after it."""
    screen, offset = b"", 0
    while text not in screen:
        frame = json.loads(await socket.get_message())
        if frame["type"] == "out":
            screen += b64decode(frame["data"])
            offset = frame.get("next_offset", 0)
    return screen, offset


async def type_in(socket: trio_websocket.WebSocketConnection, text: bytes, **members: int) -> None:
    frame = {"type": "stdin", "chars": b64encode(text).decode(), **members}
    await socket.send_message(json.dumps(frame))


def test_a_legacy_client_of_the_websocket(shared_up: Up, runs: Runs) -> None:
    async def main() -> None:
        async with connected(runs.http, f"/stream/session/{runs.name}/pty") as socket:
            for size in ((40, 111), (41, 112)):
                frame = {"type": "resize", "rows": size[0], "cols": size[1]}
                await socket.send_message(json.dumps(frame))
            await socket.send_message(json.dumps({"type": "ping"}))
            await type_in(socket, b"stty size; echo \xc3\xa4''\xc3\xb6; echo kept > kept\r")
            assert b"41 112" in (await shown(socket, b"\xc3\xa4\xc3\xb6"))[0]
            await socket.send_message(json.dumps({"type": "restart"}))
            await type_in(socket, b"cat kept; echo an''ew\r")
            screen, _ = await shown(socket, b"anew")
            assert b"kept" in screen

    trio.run(main)
    states = {run["run_id"]: run["state"] for run in runs.list()}
    assert states == {"terminal-1": "lost", "terminal-2": "running"}


def test_a_connection_that_is_cut_is_gone_on_with(shared_up: Up, runs: Runs) -> None:
    target = f"/stream/session/{runs.name}/pty?terminal=mine&client=me"
    begin = b"n=1; echo fi''rst\r"

    async def main() -> None:
        async with connected(runs.http, target) as socket:
            await type_in(socket, begin, offset=0)
            screen, offset = await shown(socket, b"first")
            await trio.aclose_forcefully(socket._stream)
        async with connected(runs.http, f"{target}&offset={offset}") as socket:
            attached = json.loads(await socket.get_message())
            assert (attached["terminal"], attached["input"]) == ("mine", len(begin))
            again = begin + b"n=$((n + 1)); echo n is $n.\r"  # as if the answer had been lost
            await type_in(socket, again, offset=0)
            more, _ = await shown(socket, b"n is 2.")
            assert b"first" not in more
        async with connected(runs.http, target) as socket:
            screen, _ = await shown(socket, b"n is 2.")
            assert screen.count(b"\nfirst") + screen.count(b"\rfirst") >= 1

    trio.run(main)
