"""`run` and `attach` on a terminal while manager or agent die: each byte and each answer counts once."""

import os
import pty
import random
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from .cluster import free_port
from .harness import COMMAND, Installation, Up, wait_until
from .processes import child

pytestmark = pytest.mark.system

SEED = 20220315
PIECES = 400
#: A program whose output depends on its seed alone.
GENERATOR = f"""
import os, random, sys, time
random.seed({SEED})
for n in range({PIECES}):
    _ = sys.stdout.buffer.write(random.randbytes(random.randrange(1, 9000)))
    _ = sys.stderr.buffer.write(b'%d;' % n)
    sys.stdout.flush(); sys.stderr.flush()
    time.sleep(0.01)
"""


def expected() -> bytes:
    generator = random.Random(SEED)
    return b"".join(generator.randbytes(generator.randrange(1, 9000)) for _ in range(PIECES))


STATUS = rb"\[No answer from http://127\.0\.0\.1:\d+: asking again, for \d+ s more\]"


class Terminal:
    """The controlling end of a pseudo-terminal that is standard error (and input) of a command."""

    def __init__(self) -> None:
        self.end, self.other = pty.openpty()
        attributes = termios.tcgetattr(self.other)
        attributes[1] &= ~termios.OPOST
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(self.other, termios.TCSANOW, attributes)
        self.shown = b""

    def read(self, seconds: float = 0.1) -> None:
        """Take what is there, or the first that comes within so many seconds."""
        while select.select([self.end], [], [], seconds)[0]:
            try:
                self.shown += os.read(self.end, 65536)
            except OSError:  # the command has ended
                return
            seconds = 0.0

    def wait_for(self, pattern: bytes) -> None:
        until = time.monotonic() + COMMAND
        while not re.search(pattern, self.shown):
            assert time.monotonic() < until, self.shown
            self.read()

    def type(self, line: bytes) -> None:
        os.write(self.end, line)

    def close(self) -> None:
        os.close(self.end)
        with suppress(OSError):
            os.close(self.other)


@contextmanager
def on_terminal(up: Up, output: Path, *words: str) -> Iterator[tuple[Terminal, "subprocess.Popen[str]"]]:
    """A command on a terminal, but for its standard output, which goes into a file."""
    terminal = Terminal()
    with output.open("wb") as file:
        process = up.popen(*words, stdin=terminal.other, stdout=file, stderr=terminal.other)
    os.close(terminal.other)
    try:
        yield terminal, process
    finally:
        process.kill()
        process.wait()
        terminal.close()


def finish(terminal: Terminal, process: "subprocess.Popen[str]") -> int:
    """Read what is shown until the command ends; its exit status."""
    until = time.monotonic() + 2 * COMMAND
    while process.poll() is None:
        assert time.monotonic() < until, terminal.shown
        terminal.read()
    terminal.read()
    return process.returncode


def kill(up: Up, name: str) -> None:
    killed = child(up, name)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)


@pytest.fixture(scope="module")
def up(installation: Installation) -> Iterator[Up]:
    """A system of which parts are killed."""
    from .harness import temporary_dir
    from .traces import nothing_left

    with temporary_dir() as folder, nothing_left(folder / "data"), Up(installation, folder / "data") as up:
        done = up.command("run", "--session", "kept", "--keep", "pass")
        assert done.returncode == 0, done.stderr
        yield up


@pytest.mark.parametrize("name", ["worker", pytest.param("agent", marks=pytest.mark.faults)])
def test_output_is_whole_although_a_part_is_killed_in_mid_run(up: Up, tmp_path: Path, name: str) -> None:
    output = tmp_path / "output"
    with on_terminal(up, output, "run", "--session", "kept", GENERATOR) as (terminal, process):
        terminal.wait_for(rb"\b40;")
        kill(up, name)
        assert finish(terminal, process) == 0, terminal.shown
    assert output.read_bytes() == expected()
    # What is back within a second was never missed.
    assert (b"[Connected again]" in terminal.shown) == (re.search(STATUS, terminal.shown) is not None)
    told = re.sub(rb"\n?\r\x1b\[K\[[^\]]*\]\n?", b"", terminal.shown)
    assert told == b"".join(b"%d;" % n for n in range(PIECES))


@pytest.mark.faults
def test_output_is_whole_although_all_of_it_is_killed_and_started_again(
    installation: Installation, folder: Path
) -> None:
    output, port = folder / "output", str(free_port())
    slowly = GENERATOR + "    time.sleep(0.05)\n"  # its worker takes leave for up to three seconds
    with Up(installation, folder / "data", "--port", port) as up:
        done = up.command("run", "--session", "kept", "--keep", "pass")
        assert done.returncode == 0, done.stderr
        with on_terminal(up, output, "run", "--session", "kept", slowly) as (terminal, process):
            terminal.wait_for(rb"\b40;")
            up.signal(signal.SIGKILL)
            up.process.wait()
            terminal.wait_for(STATUS)
            with Up(installation, folder / "data", "--port", port):
                assert finish(terminal, process) == 0, terminal.shown
        assert output.read_bytes() == expected()


@pytest.mark.faults
def test_prompts_are_answered_once_although_the_manager_is_killed_before_each_answer(
    up: Up, tmp_path: Path
) -> None:
    code = "import sys\nfor n in range(3): print(n, input(f'{n}? '), flush=True)"
    output = tmp_path / "output"
    with on_terminal(up, output, "run", "--session", "kept", code) as (terminal, process):
        for n in range(3):
            wait_until(lambda asked=b"%d? " % n: output.read_bytes().endswith(asked), COMMAND, "it asks")
            kill(up, "worker")
            terminal.type(b"answer %d\n" % n)
        assert finish(terminal, process) == 0, terminal.shown
    assert output.read_bytes() == b"".join(b"%d? %d answer %d\n" % (n, n, n) for n in range(3))


@pytest.mark.faults
def test_whoever_attaches_sees_every_byte_too(up: Up, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    gate = "    while n == 50 and not os.path.exists('go'): time.sleep(0.01)\n"
    (tmp_path / "go").touch()
    with on_terminal(up, first, "run", "--session", "kept", GENERATOR + gate) as (one, run):
        one.wait_for(rb"\b20;")
        with on_terminal(up, second, "attach", "kept") as (other, attach):
            other.wait_for(rb"\b40;")
            assert up.command("cp", str(tmp_path / "go"), "kept:go").returncode == 0
            kill(up, "worker")
            assert finish(other, attach) == 0, other.shown
        assert finish(one, run) == 0, one.shown
    assert first.read_bytes() == expected()
    assert second.read_bytes() == expected()


def test_a_session_that_is_removed_meanwhile_is_told(up: Up, tmp_path: Path) -> None:
    output = tmp_path / "output"
    code = "import time; print('on', flush=True); time.sleep(600)"
    with on_terminal(up, output, "run", "--session", "doomed", "--keep", code) as (terminal, process):
        wait_until(lambda: output.read_bytes() == b"on\n", COMMAND, "it runs")
        assert up.command("rm", "doomed").returncode == 0
        assert finish(terminal, process) == 1
    assert b"The run was lost: " in terminal.shown
    assert output.read_bytes() == b"on\n"


@pytest.mark.faults
@pytest.mark.parametrize("name", ["worker", "agent"])
def test_files_are_whole_although_a_part_is_killed_while_they_travel(
    up: Up, tmp_path: Path, name: str
) -> None:
    """With the bars of their progress on the terminal."""
    data = random.Random(SEED).randbytes(96 << 20)
    (tmp_path / "big").write_bytes(data)
    here, there = str(tmp_path / "big"), "kept:big"
    for source, destination in ((here, there), (there, str(tmp_path / "back"))):
        with on_terminal(up, tmp_path / "out", "cp", source, destination) as (terminal, process):
            terminal.wait_for(rb"kept:big.* MB")
            kill(up, name)
            assert finish(terminal, process) == 0, terminal.shown
    assert (tmp_path / "back").read_bytes() == data
