"""Keeping loops alive: a loop that crashes is logged and started again, never quietly gone."""

import logging
from collections.abc import Awaitable, Callable

import attrs
import trio

log = logging.getLogger(__name__)

#: Delay before the first restart, and the longest one, in seconds.
FIRST_DELAY = 1.0
LONGEST_DELAY = 30.0
#: After a run of so long the delays start over.
QUIET = 60.0


@attrs.define(kw_only=True)
class Backoff:
    """Delays in seconds between attempts at one thing: doubling, bounded, forgotten after a quiet time."""

    first: float = FIRST_DELAY
    longest: float = LONGEST_DELAY
    quiet: float = QUIET
    _next: float = attrs.field(init=False, default=0.0)

    def after(self, lasted: float) -> float:
        """The delay to wait now, *lasted* seconds after the latest attempt began."""
        if self._next == 0.0 or lasted >= self.quiet:
            self._next = self.first
        delay = self._next
        self._next = min(self._next * 2, self.longest)
        return delay


async def supervise(
    loop: Callable[[], Awaitable[None]], *, name: str, backoff: Backoff | None = None
) -> None:
    """Run *loop* until it returns; whenever it raises, log that and run it again after a growing delay.

    Cancellation passes through, and so does what is not an `Exception` or a group of only such.
    """
    backoff = backoff or Backoff()
    while True:
        began = trio.current_time()
        try:
            await loop()
        except Exception:
            delay = backoff.after(trio.current_time() - began)
            log.exception("%s crashed; it starts again in %.1f s", name, delay)
        else:
            return
        await trio.sleep(delay)
