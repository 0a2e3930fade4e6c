"""One end of a stream of bytes in both directions, cut into pieces that travel among other messages.

Bytes are counted: a piece that does not follow the one before is a break, and no more is under way than the
other end has room for. Whoever owns an end passes on what comes from the other one.
"""

from collections import deque
from collections.abc import Awaitable, Callable

import trio

#: Pieces under way in one direction, lest tiny ones flood the link.
MAX_PIECES = 32


class TunnelBroken(Exception):
    """The other end does not keep to the rules, or bytes were lost."""


class TunnelEnd:
    """``piece(offset, data)`` sends bytes to the other end, ``taken(offset)`` tells how many were taken."""

    def __init__(
        self,
        *,
        credit: int,
        longest: int,
        piece: Callable[[int, bytes], Awaitable[None]],
        taken: Callable[[int], None],
    ) -> None:
        """*credit*: bytes that may be under way in one direction; *longest*: bytes of a piece."""
        self._credit = credit
        self._longest = longest
        self._piece = piece
        self._taken = taken
        self._sent = 0
        self._confirmed = 0
        self._under_way: deque[int] = deque()  # where each piece ends
        self._arrived: deque[bytes] = deque()
        self._arrived_to = 0
        self._taken_to = 0
        self._over = False
        self._error: Exception | None = None
        self._changed = trio.Event()

    # -- what its owner does

    async def send(self, data: bytes) -> None:
        """Send all of it, as fast as the other end takes it. After `end` it goes nowhere."""
        while data and not self._over:
            room = min(self._credit - (self._sent - self._confirmed), self._longest)
            if room <= 0 or len(self._under_way) >= MAX_PIECES:
                await self._changed.wait()
                continue
            part, data = data[:room], data[room:]
            offset, self._sent = self._sent, self._sent + len(part)
            self._under_way.append(self._sent)
            await self._piece(offset, part)

    async def receive(self) -> bytes:
        """The next bytes; none at the end. Raises what the end was told with."""
        while not self._arrived:
            if self._error is not None:
                raise self._error
            if self._over:
                return b""
            await self._changed.wait()
        data = self._arrived.popleft()
        self._taken_to += len(data)
        if not self._over:
            self._taken(self._taken_to)
        return data

    # -- what the other end says

    def on_piece(self, offset: int, data: bytes) -> None:
        """Raises `TunnelBroken`."""
        if offset != self._arrived_to or not data:
            raise TunnelBroken(f"bytes {self._arrived_to} to {offset} are missing")
        if self._arrived_to + len(data) - self._taken_to > self._credit:
            raise TunnelBroken("more bytes than there was room for")
        self._arrived.append(data)
        self._arrived_to += len(data)
        self._wake()

    def on_taken(self, offset: int) -> None:
        """Raises `TunnelBroken`."""
        if offset > self._sent:
            raise TunnelBroken("what was not sent cannot be taken")
        self._confirmed = max(self._confirmed, offset)
        while self._under_way and self._under_way[0] <= self._confirmed:
            self._under_way.popleft()
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes, after what is here; with *error* that is raised then. The first end counts."""
        if not self._over:
            self._over, self._error = True, error
            self._wake()

    def alive(self) -> None:
        """Say again what was taken: a sign of life."""
        if not self._over:
            self._taken(self._taken_to)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
