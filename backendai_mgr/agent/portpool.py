"""The public port numbers of this agent's kernels."""

import socket
from collections.abc import Mapping, Sequence
from contextlib import closing
from uuid import UUID


class NoPortLeft(Exception):
    """All numbers of the range are taken."""


class PortPool:
    """Gives each kernel numbers of its own out of a range."""

    def __init__(self, numbers: range, *, shared: bool) -> None:
        """*shared*: kernels listen at these numbers themselves, in the machine's network."""
        self._numbers = numbers
        self._shared = shared
        self._taken: dict[UUID, dict[str, int]] = {}
        self._last = numbers.start - 1

    def take(self, kernel_id: UUID, ports: Sequence[int]) -> dict[str, int]:
        """A number for each port inside, which is the key as text; those that the kernel has stay.

        Raises `NoPortLeft`.
        """
        before = self._taken.get(kernel_id, {})
        used = {number for taken in self._taken.values() for number in taken.values()}
        chosen: dict[str, int] = {}
        for port in map(str, ports):
            chosen[port] = before[port] if port in before else self._next(used)
            used.add(chosen[port])
        self._taken[kernel_id] = chosen
        return dict(chosen)

    def keep(self, kernel_id: UUID, host_ports: Mapping[str, int]) -> None:
        """An earlier agent gave these to the kernel."""
        self._taken[kernel_id] = dict(host_ports)

    def give_back(self, kernel_id: UUID) -> None:
        self._taken.pop(kernel_id, None)

    def _next(self, used: set[int]) -> int:
        """The next free one, in turn, so that one that was given back rests for a while."""
        size = len(self._numbers)
        for step in range(1, size + 1):
            number = self._numbers[(self._last - self._numbers.start + step) % size]
            if number not in used and (not self._shared or _is_free(number)):
                self._last = number
                return number
        raise NoPortLeft(f"no port of {self._numbers.start}-{self._numbers.stop - 1} is left")


def _is_free(number: int) -> bool:
    """Whether nobody on this machine listens there now."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            return False
    return True


def parse_ports(text: str) -> range:
    """The range ``30000-31000``, its last number included. Raises ValueError."""
    first, dash, last = text.partition("-")
    if not (dash and first.strip().isdecimal() and last.strip().isdecimal()):
        raise ValueError(f"must be two port numbers such as 30000-31000, not {text!r}")
    numbers = range(int(first), int(last) + 1)
    if not numbers or numbers[0] < 1024 or numbers[-1] > 65535:
        raise ValueError(f"must be from a lower to a higher port between 1024 and 65535, not {text!r}")
    return numbers
