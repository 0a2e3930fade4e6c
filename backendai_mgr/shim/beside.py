"""Programs that run beside the interpreter: the shells of terminals, and services.

Each is a run with a log of its own.  The guest starts it on a terminal (or with a pipe for what it prints)
and hands the other end out.  Nothing here waits: what a program does not read yet is kept, within bounds, and
whoever types more is answered when there is room again.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import struct
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from backendai_mgr.shim.keyboard import Keyboard
from backendai_mgr.shim.run import TERMINAL, Refused, Run
from backendai_mgr.shim.runlog import RunLogWriter
from backendai_mgr.shim.runstore import RunStore

MAX_UNREAD = 64 << 10  # bytes typed that a program has not read yet
MAX_WAITING = 16  # requests to type, of one terminal, that wait for room; more are answered in vain at once
PATIENCE = 5.0  # seconds until such a request is answered although there is none
_PIECE = 64 << 10
_MOST_AT_ONCE = 256 << 10  # of one program, before the others have their turn
_LAST_WORDS = 1 << 20  # a terminal or pipe holds less
_SOON, _NAP = 0.003, 0.002  # a flood of short writes is read in larger pieces, see `output`
_TIOCSWINSZ = 0x5414

Answer = Callable[[int], None]


class Starter(Protocol):
    """The guest, as far as it is needed here."""

    def open(self, line: str | None, *, terminal: bool) -> int:
        """Start a program; return its number."""

    def signal(self, command: int, number: int) -> None: ...

    def socket(self, port: int, answer: Callable[[int | None], None]) -> None: ...


class _Request(NamedTuple):
    """To type something, when there is room; is answered in vain at `until`."""

    writer: str
    offset: int | None
    data: bytes
    answer: Answer
    until: float


class _Program:
    def __init__(self, run: Run, number: int, log: RunLogWriter) -> None:
        self.run = run
        self.number = number
        self.log = log
        self.keyboard = Keyboard()
        self.unread = bytearray()
        self.waiting: list[_Request] = []
        self.size: tuple[int, int] | None = None
        self.fd: int | None = None  # our end; None until the guest has handed it out, and after its end
        self.over = False  # it was let go of
        self.last_read = 0.0
        self.nap_until: float | None = None


class Beside:
    """`grew` is told of each piece of output."""

    def __init__(
        self, selector: selectors.BaseSelector, store: RunStore, grew: Callable[[Run], None]
    ) -> None:
        self._selector = selector
        self._store = store
        self._grew = grew
        self._starter: Starter | None = None
        self._programs: dict[int, _Program] = {}  # by the guest's number

    def attach(self, starter: Starter) -> None:
        self._starter = starter

    def next_deadline(self) -> float | None:
        """Return the monotonic time at which `tick` must be called, if there is one."""
        times = [program.nap_until for program in self._programs.values() if program.nap_until is not None]
        times += [request.until for program in self._programs.values() for request in program.waiting[:1]]
        return min(times, default=None)

    def tick(self, now: float) -> None:
        for program in list(self._programs.values()):
            if program.nap_until is not None and program.nap_until <= now:
                program.nap_until = None
                self._listen(program)
                self._read(program, _MOST_AT_ONCE)
                program.last_read = now
            while program.waiting and program.waiting[0].until <= now:
                request = program.waiting.pop(0)
                request.answer(program.keyboard.position(request.writer))

    # -- what the kernel wants

    def open(self, run: Run, line: str | None) -> None:
        """Start the program of this run; its log is there from now on."""
        assert self._starter is not None
        number = self._starter.open(line, terminal=run.mode == TERMINAL)
        self._programs[number] = _Program(run, number, self._store.open_log(run.run_id))

    def hang_up(self, run: Run, *, force: bool) -> None:
        """Ask the program to end, or end it.

        A terminal is let go of: Linux tells its shell, and what that has in the foreground.
        """
        program = self._of(run)
        if program is None or self._starter is None:
            return
        if run.mode == TERMINAL and not force:
            self._read(program, _LAST_WORDS)
            self._close(program)
            program.over = True
        else:
            self._starter.signal(program.number, signal.SIGKILL if force else signal.SIGTERM)

    def type(self, run: Run, writer: str, offset: int | None, data: bytes, answer: Answer) -> None:
        """Type into a terminal; `answer` gets the writer's new position, at once or when there is room.

        It gets the old position if there is no room for too long.  Raises Refused: no-terminal.
        """
        program = self._terminal(run)
        request = _Request(writer, offset, data, answer, time.monotonic() + PATIENCE)
        if program.waiting and len(program.waiting) >= MAX_WAITING:
            answer(program.keyboard.position(writer))
        elif program.waiting or len(program.unread) >= MAX_UNREAD:
            program.waiting.append(request)
        else:
            self._take(program, request)
            self._write(program)

    def resize(self, run: Run, rows: int, columns: int) -> None:
        """Give a terminal another size.  Raises Refused: no-terminal."""
        program = self._terminal(run)
        program.size = rows, columns
        self._apply_size(program)

    def socket(self, port: int, answer: Callable[[int | None], None]) -> None:
        """Have a socket made in the kernel's network; `answer` gets it, to close it, or None if nobody
        listens at the port there."""
        if self._starter is None:
            answer(None)
        else:
            self._starter.socket(port, answer)

    # -- what the guest tells

    def opened(self, number: int, fd: int) -> None:
        """Our end of a program's terminal or pipe has come."""
        program = self._programs.get(number)
        if program is None or program.fd is not None or program.over:
            os.close(fd)
            return
        os.set_blocking(fd, False)
        program.fd = fd
        self._listen(program)
        self._apply_size(program)
        self._write(program)

    def ended(self, number: int) -> Run | None:
        """The program has ended: return its run, all of its output being logged; None if it is not ours."""
        program = self._programs.pop(number, None)
        if program is None:
            return None
        self._read(program, _LAST_WORDS)
        self._close(program)
        for request in program.waiting:
            request.answer(program.keyboard.position(request.writer))
        program.log.close()
        return program.run

    def close(self) -> None:
        """No process is left: log what they have written, and let go of them."""
        for number in list(self._programs):
            self.ended(number)
        self._starter = None

    # -- within

    def _of(self, run: Run) -> _Program | None:
        return next((program for program in self._programs.values() if program.run is run), None)

    def _terminal(self, run: Run) -> _Program:
        program = self._of(run)
        if program is None or run.mode != TERMINAL:
            raise Refused("no-terminal", "this run has no terminal (any more)")
        return program

    def _take(self, program: _Program, request: _Request) -> None:
        program.unread += program.keyboard.take(request.writer, request.offset, request.data)
        request.answer(program.keyboard.position(request.writer))

    def _write(self, program: _Program) -> None:
        """Write what the terminal takes; then there may be room for those who wait."""
        if program.fd is None:
            return
        try:
            while program.unread:
                del program.unread[: os.write(program.fd, program.unread)]
        except BlockingIOError:
            pass
        except OSError:  # nobody will read it
            program.unread.clear()
        while program.waiting and len(program.unread) < MAX_UNREAD:
            self._take(program, program.waiting.pop(0))
        self._listen(program)

    def _apply_size(self, program: _Program) -> None:
        if program.fd is not None and program.size is not None:
            fcntl.ioctl(program.fd, _TIOCSWINSZ, struct.pack("HHHH", *program.size, 0, 0))

    def _listen(self, program: _Program) -> None:
        """Have the selector look for what we wait for."""
        if program.fd is None:
            return
        events = 0 if program.nap_until is not None else selectors.EVENT_READ
        events |= selectors.EVENT_WRITE if program.unread else 0
        known = self._selector.get_map().get(program.fd)
        if known is None and events:
            self._selector.register(program.fd, events, lambda events: self._ready(program, events))
        elif known is not None and not events:
            self._selector.unregister(program.fd)
        elif known is not None and known.events != events:
            self._selector.modify(program.fd, events, known.data)

    def _ready(self, program: _Program, events: int) -> None:
        if program.fd is not None and events & selectors.EVENT_WRITE:
            self._write(program)
        if program.fd is None or program.nap_until is not None or not events & selectors.EVENT_READ:
            return
        size, now = self._read(program, _MOST_AT_ONCE), time.monotonic()
        if 0 < size < _PIECE and now - program.last_read < _SOON:
            program.nap_until = now + _NAP
            self._listen(program)
        program.last_read = now

    def _read(self, program: _Program, limit: int) -> int:
        """Log what there is to read; return the number of bytes."""
        pieces, size, over = [], 0, False
        while program.fd is not None and size < limit and not over:
            try:
                piece = os.read(program.fd, _PIECE)
                over = not piece
            except BlockingIOError:
                break
            except OSError:  # EIO: nobody has the terminal open any more
                piece, over = b"", True
            pieces.append(piece)
            size += len(piece)
        if size:
            program.log.append("stdout", b"".join(pieces))
            program.run.end_offset = program.log.end_offset
            self._grew(program.run)
        if over:
            self._close(program)
        return size

    def _close(self, program: _Program) -> None:
        if program.fd is not None:
            if program.fd in self._selector.get_map():
                self._selector.unregister(program.fd)
            os.close(program.fd)
        program.fd = program.nap_until = None
