"""What has been typed into a terminal, and by whom; does nothing itself.

Several *writers* may type at once, each under a name of its own.  The *position* of a writer counts the bytes
that were taken from it, so that it can send again what may have been lost, and nothing is typed twice.
"""

from __future__ import annotations

from collections import OrderedDict

MAX_WRITERS = 64  # remembered; of more the one that has been silent for longest is forgotten


class Keyboard:
    def __init__(self) -> None:
        self._taken: OrderedDict[str, int] = OrderedDict()

    def position(self, writer: str) -> int:
        """The number of bytes that were taken from this writer."""
        return self._taken.get(writer, 0)

    def take(self, writer: str, offset: int | None, data: bytes) -> bytes:
        """Return the part of `data` that is new, which counts as typed from now on.

        `offset`: its position in all that the writer sends; None where the writer does not count.  Nothing is
        taken when something before it is missing, as the writer's position then tells.
        """
        taken = self._taken.pop(writer, 0)
        self._taken[writer] = taken
        if len(self._taken) > MAX_WRITERS:
            self._taken.popitem(last=False)
        offset = taken if offset is None else offset
        new = data[taken - offset :] if offset <= taken else b""
        self._taken[writer] = taken + len(new)
        return new
