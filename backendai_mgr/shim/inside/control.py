"""The socket to the shim, seen from the interpreter host: messages, and questions to whoever watches the run.

Loaded by `host` (see there for what holds of all modules in this folder).
"""

import _json  # type: ignore[import-not-found]  # all C: Python code would see the real builtins
import _signal  # type: ignore[import-not-found]
import os
from _thread import allocate_lock, get_ident
from select import POLLIN, poll

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

THREAD_POLL = 50  # milliseconds: a thread that waits for input looks this often whether its run has ended
_FATAL = (4, 6, 7, 8, 9, 11, 19)  # ILL, ABRT, BUS, FPE, SEGV must come through; KILL, STOP do
SIGNALS = [number for number in range(1, 65) if number not in _FATAL and number not in (32, 33)]
_exit, _getpid, _read, _write = os._exit, os.getpid, os.read, os.write
_set_mask, _SIG_BLOCK, _SIG_SETMASK = _signal.pthread_sigmask, _signal.SIG_BLOCK, _signal.SIG_SETMASK
_quote = _json.encode_basestring_ascii


class _Strictness:
    """What json.JSONDecoder configures its scanner with."""

    strict = False
    object_hook = object_pairs_hook = parse_constant = None
    parse_float, parse_int = float, int


_scan_json = _json.make_scanner(_Strictness)


class Control:
    """Framing: a length (4 bytes, big endian) and a JSON object."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = _getpid()
        self._main = get_ident()
        self._sending = allocate_lock()
        self._reading = allocate_lock()
        self._asking = allocate_lock()
        self._prompts = 0
        self._run = None  # type: Optional[int]
        self.interrupted = False  # while a message was under way
        os.set_inheritable(fd, False)

    # -- the host's own

    def receive(self) -> "Optional[Dict[str, Any]]":
        """Return the next message; None at the end of file."""
        head = self._exactly(4)
        body = None if head is None else self._exactly(int.from_bytes(head, "big"))
        if body is None:
            return None
        message = _scan_json(body.decode(), 0)[0]  # type: Dict[str, Any]
        return message

    def ready(self) -> None:
        self._send('{"ready":true}')

    def began(self, number: int) -> None:
        self._run = number
        self._send('{"began":%d}' % number)

    def over(self) -> None:
        """From now on nobody of the run may ask or show: returns when no thread of it reads here."""
        with self._reading:
            self._run = None

    def done(self, number: int, exit_code: int, interrupted: bool) -> None:
        truth = "true" if interrupted else "false"
        self._send('{"done":%d,"exit_code":%d,"interrupted":%s}' % (number, exit_code, truth))

    def completions(self, number: int, matches: "List[str]") -> None:
        self._send('{"completions":%d,"matches":[%s]}' % (number, ",".join(map(_quote, matches))))

    # -- on behalf of user code, in any thread and whatever signals come

    def serves_this_run(self) -> bool:
        """Whether there is a run, and this is its process and not a forked child."""
        return self._run is not None and _getpid() == self._pid

    def display(self, stream: str, data: str) -> None:
        if self.serves_this_run():
            self.undisturbed(self._send, '{"display":"%s","data":%s}' % (stream, _quote(data)))

    def ask(self, is_password: bool) -> "Optional[str]":
        """Ask for a line and wait for it; None: there is none."""
        if not self.serves_this_run():
            return None
        with self._asking:
            run = self._run
            if run is None:
                return None
            self._prompts += 1
            number = self._prompts
            truth = "true" if is_password else "false"
            self.undisturbed(self._send, '{"prompt":%d,"is_password":%s}' % (number, truth))
            return self._answer(run, number)

    def _answer(self, run: int, number: int) -> "Optional[str]":
        waiter = poll()
        waiter.register(self._fd, POLLIN)
        patience = None if get_ident() == self._main else THREAD_POLL
        while True:
            heard = waiter.poll(patience)  # may be interrupted: no message is under way
            message = self.undisturbed(self._take, run) if heard else {}
            if self._run != run:
                return None
            if message.get("input") == number:
                text = message.get("text")
                return text if isinstance(text, str) else None

    def _take(self, run: int) -> "Dict[str, Any]":
        with self._reading:
            if self._run != run:
                return {}
            message = self.receive()
        if message is None:
            _exit(0)
        return message

    def undisturbed(self, function: "Any", *arguments: "Any") -> "Any":
        """Call a function that no signal's handler may leave: half a message would spoil all that follow."""
        mask = _set_mask(_SIG_BLOCK, SIGNALS)
        try:
            return function(*arguments)
        finally:
            _set_mask(_SIG_SETMASK, mask)
            if self.interrupted and get_ident() == self._main:  # it came by way of another thread
                self.interrupted = False
                raise KeyboardInterrupt

    def _send(self, text: str) -> None:
        data = memoryview(len(text).to_bytes(4, "big") + text.encode())
        with self._sending:
            while data:
                data = data[_write(self._fd, data) :]

    def _exactly(self, size: int) -> "Optional[bytes]":
        parts = []
        while size:
            part = _read(self._fd, size)
            if not part:
                return None
            parts.append(part)
            size -= len(part)
        return b"".join(parts)
