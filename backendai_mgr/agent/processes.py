"""Processes held by a pidfd, so that a signal never reaches another one that was given the same number."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import trio


def start_time(pid: int) -> int | None:
    """When *pid* started, in clock ticks since boot; None when there is none, or only its remains."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in parentheses may hold anything; what follows begins with the state, which is field 3.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[22 - 3])


def command_lines() -> Iterator[tuple[int, list[str]]]:
    """(pid, arguments) of all processes that we can see."""
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                raw = Path(f"/proc/{entry}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            yield int(entry), [os.fsdecode(argument) for argument in raw.split(b"\0")[:-1]]


def environment_of(pid: int) -> list[str]:
    """The ``NAME=value`` entries with which *pid* was executed; empty when we may not know."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return [os.fsdecode(entry) for entry in raw.split(b"\0")]


def owner_of(pid: int) -> int | None:
    """The real user id of *pid*; None when there is no such process."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("Uid:"))


class Process:
    """A process that may or may not be our child. `close` lets go of it and leaves it alone."""

    def __init__(self, pid: int, fd: int) -> None:
        self.pid = pid
        self._fd = fd

    @classmethod
    def hold(cls, pid: int, started: int | None = None) -> Self | None:
        """The living process *pid*; None when there is none, or when it did not start at *started*."""
        try:
            process = cls(pid, os.pidfd_open(pid))
        except ProcessLookupError:
            return None
        found = start_time(pid)
        if found is None or (started is not None and found != started):
            process.close()
            return None
        return process

    @classmethod
    def spawn(cls, argv: list[str], environ: dict[str, str], *, stderr: Path) -> Self:
        """Start *argv* in a session of its own, with nothing of ours: no descriptors, no signal settings."""
        pid = os.posix_spawn(
            argv[0],
            argv,
            environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, 0, 1),
                (os.POSIX_SPAWN_OPEN, 2, str(stderr), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD],
        )
        try:
            return cls(pid, os.pidfd_open(pid))
        except OSError:  # no descriptor left; until we reap it the number is its own
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    def kill(self) -> None:
        """SIGKILL; nothing when it has ended."""
        try:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def wait(self) -> None:
        """Until it has ended; reaps it if it is our child. One task at a time."""
        await trio.lowlevel.wait_readable(self._fd)
        self._reap()

    def _reap(self) -> None:
        try:
            os.waitid(os.P_PIDFD, self._fd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def held(process: Process) -> Iterator[Process]:
    """Let go of *process* at the end."""
    try:
        yield process
    finally:
        process.close()
