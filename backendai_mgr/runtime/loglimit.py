"""Logging about peers that may misbehave as often as they like."""

from collections import OrderedDict
from collections.abc import Hashable


class LogLimit:
    """Lets one message per key and period through; remembers at most *keys* keys, the latest.

    Times are seconds of any one clock, given by the caller.
    """

    def __init__(self, *, period: float = 60.0, keys: int = 256) -> None:
        self._period = period
        self._keys = keys
        self._held: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def admit(self, key: Hashable, now: float) -> int | None:
        """How many messages were held back since the last one admitted; None when this one is to be, too."""
        since, held = self._held.get(key, (-float("inf"), 0))
        if now - since < self._period:
            self._held[key] = (since, held + 1)
            return None
        self._held[key] = (now, 0)
        self._held.move_to_end(key)
        while len(self._held) > self._keys:
            self._held.popitem(last=False)
        return held
