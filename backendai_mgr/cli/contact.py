"""Whether the manager answers, for a person who looks on."""

import attrs
import trio

from .showing import Screen

#: What is back within so many seconds was never missed.
_GRACE = 1.0
#: Seconds between two looks at the clock.
_TICK = 1.0


@attrs.define
class Contact:
    """Told by whoever asks the manager for something, and shown by `show_contact`."""

    #: Trio time at which the manager is given up; None while it answers.
    _until: float | None = attrs.field(init=False, default=None)
    _changed: trio.Event = attrs.field(init=False, factory=trio.Event)

    def lose(self, until: float) -> None:
        """There is no answer; it is asked again until then."""
        self._set(until)

    def regain(self) -> None:
        """There is an answer, or nobody waits for one any more."""
        self._set(None)

    def left(self) -> float | None:
        """Seconds until the manager is given up; None while it answers."""
        return None if self._until is None else max(0.0, self._until - trio.current_time())

    async def changed(self) -> None:
        """Wait until contact is lost, or is there again."""
        await self._changed.wait()

    def _set(self, until: float | None) -> None:
        changed = (self._until is None) != (until is None)
        self._until = until
        if changed:
            self._changed.set()
            self._changed = trio.Event()


async def show_contact(contact: Contact, endpoint: str, screen: Screen) -> None:
    """Tell on a terminal for how long a manager that does not answer is still asked, and when it is back."""
    while True:
        while contact.left() is None:
            await contact.changed()
        with trio.move_on_after(_GRACE):
            await contact.changed()
        while (left := contact.left()) is not None:
            screen.put_status(f"[No answer from {endpoint}: asking again, for {left:.0f} s more]")
            with trio.move_on_after(_TICK):
                await contact.changed()
        screen.end_status("[Connected again]")
