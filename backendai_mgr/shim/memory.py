"""Whether Linux has killed something of the kernel because its memory was used up."""

from __future__ import annotations

import contextlib


class OutOfMemory:
    """Whether the kernel's control group has seen a kill for want of memory since the last question."""

    def __init__(self, counter: tuple[str, str] | None) -> None:
        self._counter = counter
        self._seen = self._count()

    def happened(self) -> bool:
        before, self._seen = self._seen, self._count()
        return self._seen > before

    def _count(self) -> int:
        """The counter is a line "KEY N" of a file; 0 where there is none."""
        if self._counter is None:
            return 0
        path, key = self._counter
        with contextlib.suppress(OSError, ValueError), open(path) as file:
            return sum(int(line.split()[1]) for line in file if line.split()[:1] == [key])
        return 0
