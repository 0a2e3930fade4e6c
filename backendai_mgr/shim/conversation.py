"""What the shim and the processes of its kernel say to each other, as calls."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from backendai_mgr.shim.framing import BadMessage
from backendai_mgr.shim.guest import INTERPRETER, Channel, Guest

MAX_MATCHES = 1000  # completions


class Listener(Protocol):
    """Told what happens inside of the kernel.  Any of it may be untrue: user code can write there too."""

    def ready(self) -> None: ...
    def began(self, number: int) -> None: ...
    def done(self, number: int, exit_code: int, interrupted: bool) -> None: ...
    def asked(self, prompt: int, is_password: bool) -> None: ...
    def displayed(self, stream: str, item: Any) -> None: ...
    def executed(self, command: int, status: int) -> None:
        """A command has ended, with this wait status."""

    def reads(self, command: int) -> None:
        """A command waits for input."""

    def opened(self, command: int, fd: int) -> None:
        """The program was started: our end of its terminal or pipe, which becomes the listener's to close."""

    def exited(self, status: int) -> None:
        """The interpreter has ended, with this wait status."""

    def broken(self, *, at_once: bool) -> None:
        """A socket has come to its end, usually because its process died; or nonsense came from it."""


class Conversation:
    def __init__(
        self,
        selector: selectors.BaseSelector,
        guest: Guest,
        listener: Listener,
        *,
        interpreted: bool,
        complete_limit: float,
    ) -> None:
        """`interpreted`: there is an interpreter.  `complete_limit`: seconds for one completion."""
        self._interpreted = interpreted
        self._selector = selector
        self._guest = guest
        self._listener = listener
        self._numbers = INTERPRETER
        self._completing: dict[int, Callable[[list[str]], None]] = {}
        self._given_up: set[int] = set()  # completions that the interpreter is still at
        self._complete_limit = complete_limit
        self._complete_until: float | None = None  # the end of the time for the present one
        self._closed = False
        self._unheeded = 0  # signals to the interpreter that the guest has not sent yet
        self._held: dict[str, Any] | None = None  # the run that waits for that
        self._sockets: dict[int, Callable[[int | None], None]] = {}
        self._listen(guest.control, self._guest_says)
        if interpreted:
            self._listen(guest.interpreter, self._interpreter_says)

    def close(self) -> None:
        self._closed = True
        for channel in self._guest.control, self._guest.interpreter:
            with contextlib.suppress(KeyError):
                self._selector.unregister(channel.socket)
        self._give_up_completing()
        while self._sockets:
            self._sockets.popitem()[1](None)

    def next_deadline(self) -> float | None:
        """Return the monotonic time at which `tick` must be called, if there is one."""
        return self._complete_until

    def tick(self, now: float) -> None:
        """Interrupt the completion that takes too long, and no program that runs beside."""
        if self._complete_until is not None and self._complete_until <= now:
            self.signal(INTERPRETER, signal.SIGINT, alone=True)
            self._give_up_completing()
            self._time_completion()

    def _listen(self, channel: Channel, heard: Callable[[dict[str, Any]], None]) -> None:
        ready = partial(self._ready, channel, heard)
        self._selector.register(channel.socket, selectors.EVENT_READ, ready)

    # -- to the kernel

    def configure(self, env: dict[str, str], limits: dict[str, int]) -> None:
        order = {"configure": {"env": env, "limits": limits}}
        self._send(self._guest.control, order)
        if self._interpreted:
            self._send(self._guest.interpreter, order)

    def run(self, number: int, code: str) -> None:
        """Hand a run over; not before code is completed, and an interrupt of that or of the run before has
        reached the interpreter."""
        self._held = {"run": number, "code": code}
        self._release()

    def _release(self) -> None:
        busy = self._unheeded or self._completing or self._given_up
        if self._held is not None and not busy and not self._closed:
            self._send(self._guest.interpreter, self._held)
            self._held = None

    def execute(self, line: str, stdin: str | None) -> int:
        """Execute a command line; return its number.  Without *stdin* it can be fed."""
        self._numbers += 1
        self._send(self._guest.control, {"execute": self._numbers, "line": line, "stdin": stdin})
        return self._numbers

    def open(self, line: str | None, *, terminal: bool) -> int:
        """Start a program (None: a shell) on a terminal, or with a pipe for its output; return its number."""
        self._numbers += 1
        self._send(self._guest.control, {"open": self._numbers, "line": line, "terminal": terminal})
        return self._numbers

    def socket(self, port: int, answer: Callable[[int | None], None]) -> None:
        """Have a socket made inside; `answer` gets it, to close it, or None if nobody listens at the port."""
        self._numbers += 1
        self._sockets[self._numbers] = answer
        self._send(self._guest.control, {"socket": self._numbers, "port": port})

    def answer(self, prompt: int, text: str | None) -> None:
        self._send(self._guest.interpreter, {"input": prompt, "text": text})

    def feed(self, command: int, text: str | None) -> None:
        self._send(self._guest.control, {"feed": command, "text": text})

    def signal(self, command: int, number: int, *, alone: bool = False) -> None:
        """To its process group, or `alone` to the process that leads it."""
        if command == INTERPRETER:
            self._unheeded += 1
        self._send(self._guest.control, {"signal": number, "to": command, "alone": alone})

    def complete(self, code: str, cursor: int, answer: Callable[[list[str]], None]) -> None:
        """Have code completed; no matches if that takes too long."""
        if self._given_up:
            answer([])
            return
        self._numbers += 1
        self._completing[self._numbers] = answer
        if self._complete_until is None:
            self._time_completion()
        self._send(self._guest.interpreter, {"complete": self._numbers, "code": code, "cursor": cursor})

    def _time_completion(self) -> None:
        completing = self._completing or self._given_up
        self._complete_until = time.monotonic() + self._complete_limit if completing else None

    def _give_up_completing(self) -> None:
        waiting, self._completing = self._completing, {}
        self._given_up.update(waiting)
        for answer in waiting.values():
            answer([])

    def _send(self, channel: Channel, message: dict[str, Any]) -> None:
        if channel.send(message):
            key = self._selector.get_key(channel.socket)
            self._selector.modify(channel.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, key.data)

    # -- from the kernel

    def _ready(self, channel: Channel, heard: Callable[[dict[str, Any]], None], events: int) -> None:
        if self._closed:  # since the selector looked
            return
        if events & selectors.EVENT_WRITE and not channel.flush():
            key = self._selector.get_key(channel.socket)
            self._selector.modify(channel.socket, selectors.EVENT_READ, key.data)
        if not events & selectors.EVENT_READ:
            return
        try:
            messages = channel.receive()
            if messages is None:
                self._selector.unregister(channel.socket)
                self._listener.broken(at_once=False)
                return
            for message in messages:
                if not self._closed:
                    heard(message)
        except BadMessage:
            self._listener.broken(at_once=True)

    def _guest_says(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": True}:
                self._listener.ready()
            case {"exited": 0, "status": int(status)}:
                self._listener.exited(status)
            case {"exited": int(command), "status": int(status)}:
                self._listener.executed(command, status)
            case {"signalled": 0}:
                self._unheeded = max(0, self._unheeded - 1)
                self._release()
            case {"reads": int(command)}:
                self._listener.reads(command)
            case {"socket": int(number), "failed": _} if number in self._sockets:
                self._sockets.pop(number)(None)
            case {"socket": int(number)} if (made := self._guest.control.take_descriptor()) is not None:
                if answer := self._sockets.pop(number, None):
                    answer(made)
                else:
                    os.close(made)
            case {"opened": int(command)} if (fd := self._guest.control.take_descriptor()) is not None:
                self._listener.opened(command, fd)

    def _interpreter_says(self, message: dict[str, Any]) -> None:
        match message:
            case {"ready": True}:
                self._listener.ready()
            case {"began": int(number)}:
                self._listener.began(number)
            case {"done": int(number), "exit_code": int(exit_code), "interrupted": bool(interrupted)}:
                self._listener.done(number, exit_code, interrupted)
            case {"prompt": int(prompt), "is_password": bool(is_password)}:
                self._listener.asked(prompt, is_password)
            case {"display": "html", "data": str(markup)}:
                self._listener.displayed("html", markup)
            case {"display": "media", "data": str(data)}:
                self._listener.displayed("media", _parsed(data))
            case {"completions": int(number), "matches": list(matches)}:
                if answer := self._completing.pop(number, None):
                    answer([str(match) for match in matches[:MAX_MATCHES]])
                self._given_up.discard(number)
                self._time_completion()
                self._release()


def _parsed(data: str) -> Any:
    """The item of a display, which the interpreter sends as JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadMessage("a display that is not JSON") from error
