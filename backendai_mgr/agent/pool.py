"""Shims that are ready before anybody asks: a start takes one and need not wait for an interpreter.

The pool is bounded per image, and refilled one at a time. Each refill lets the starts that are under way go
first, but not for ever: `idle` says how long. A member is a task: as long as nobody has taken it, the task is
connected to it, so that it is known to live, and ends it when the pool is left.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import attrs
import trio

from ..domain.status import KernelState
from ..runtime.supervise import Backoff
from ..wire.rpc import RunStatus
from .backends.interface import Shim, StartFailed
from .scratch import Scratch
from .shimlink import ShimGone, ShimLink, ShimRefusal, ShimSilent, open_link

log = logging.getLogger(__name__)

#: Seconds for a new member to become ready.
READY_TIMEOUT = 30.0
#: And for a ready one to become a kernel.
ASSIGN_TIMEOUT = 5.0


@attrs.define(eq=False)
class Member:
    """A shim whose kernel is ready and nobody's yet. ``place`` is the back end's."""

    image: str
    scratch: Scratch
    place: Any
    shim: Shim
    _link: ShimLink | None = None
    _left: trio.Event = attrs.field(factory=trio.Event)
    _given: bool = False

    async def assign(self) -> bool:
        """Have it become the kernel that its spec now tells of; False when it is not to be had after all."""
        assert self._link is not None
        try:
            await self._link.request("assign", timeout=ASSIGN_TIMEOUT)
        except (ShimGone, ShimSilent, ShimRefusal) as error:
            log.warning("a ready kernel was not: %s", error)
            return False
        return True

    def leave(self, *, given: bool) -> None:
        """It leaves the pool: given away, so that all of it is the receiver's, or to be ended."""
        self._given = given
        self._left.set()


@attrs.define
class Counts:
    """What happened to the pool of one image. ``refill_seconds`` is the latest."""

    hits: int = 0
    misses: int = 0
    refills: int = 0
    refill_seconds: float = 0.0


class _Readiness:
    """Listens to a member's shim (`shimlink.Listener`)."""

    def __init__(self) -> None:
        self.running = trio.Event()
        self.ended = trio.Event()

    def on_kernel(self, state: str, end: dict[str, Any] | None) -> None:
        if state == KernelState.RUNNING:
            self.running.set()
        elif state == KernelState.ENDED:
            self.ended.set()

    def on_run(self, run: RunStatus) -> None:
        return

    def on_more(self, run_id: str, end: int, ended: bool) -> None:
        return


class Pool:
    """Ready members by image. `run` fills it; `take` never waits."""

    def __init__(
        self,
        images: Sequence[str],
        size: int,
        make: Callable[[str], Awaitable[Member]],
        discard: Callable[[Member], Awaitable[None]],
        idle: Callable[[], Awaitable[None]],
    ) -> None:
        """*size* members are kept for each image. *make* starts one (`StartFailed`), *discard* ends one and
        leaves nothing of it; *idle* returns when nothing is more urgent than to refill, or has been for long
        enough."""
        self._size = size
        self._make = make
        self._discard = discard
        self._idle = idle
        self._ready: dict[str, deque[Member]] = {image: deque() for image in images}
        self._counts = {image: Counts() for image in images}
        self._wanted = trio.Event()

    def take(self, image: str) -> Member | None:
        """A ready member, which the caller has to make `leave`; None when there is none."""
        ready, counts = self._ready.get(image), self._counts.get(image)
        if ready is None or counts is None or not self._size:
            return None
        self._wanted.set()
        while ready:
            member = ready.popleft()
            if member.shim.process.alive:
                counts.hits += 1
                return member
        counts.misses += 1
        return None

    def stats(self) -> Mapping[str, Mapping[str, float]]:
        """For reports: numbers by image."""
        return {
            image: {"size": self._size, "ready": len(self._ready[image]), **attrs.asdict(counts)}
            for image, counts in self._counts.items()
        }

    async def run(self) -> None:
        """Keep the pool full, until cancelled; then end what is in it."""
        backoff = Backoff()
        async with trio.open_nursery() as nursery:
            while True:
                self._wanted = trio.Event()
                image = self._lacking()
                if image is None:
                    await self._wanted.wait()
                    continue
                await self._idle()
                began = trio.current_time()
                try:
                    await nursery.start(self._keep, image)
                except StartFailed as error:
                    delay = backoff.after(trio.current_time() - began)
                    log.warning("no ready kernel of %s: %s; next try in %.1f s", image, error, delay)
                    await trio.sleep(delay)
                else:
                    counts = self._counts[image]
                    counts.refills += 1
                    counts.refill_seconds = trio.current_time() - began

    def _lacking(self) -> str | None:
        """The image that has the fewest members, if that are too few."""
        image = min(self._ready, key=lambda image: len(self._ready[image]), default=None)
        return None if image is None or len(self._ready[image]) >= self._size else image

    async def _keep(self, image: str, *, task_status: trio.TaskStatus[None]) -> None:
        """Make a member and attend to it until it has left, or is dead."""
        member = await self._make(image)
        try:
            await self._attend(member, task_status)
        finally:
            if not member._given:
                if member in self._ready[image]:
                    self._ready[image].remove(member)
                    self._wanted.set()
                with trio.CancelScope(shield=True):
                    await self._discard(member)

    async def _attend(self, member: Member, task_status: trio.TaskStatus[None]) -> None:
        state = _Readiness()
        shim = member.shim
        try:
            async with (
                open_link(shim.socket, shim.process.pid, state) as link,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(link.run)
                nursery.start_soon(_until, link.closed, nursery.cancel_scope)
                nursery.start_soon(_until, state.ended, nursery.cancel_scope)
                member._link = link
                if await _comes_up(link, state):
                    self._ready[member.image].append(member)
                    task_status.started()
                    await member._left.wait()
                nursery.cancel_scope.cancel()
        except ShimGone as error:
            raise StartFailed(str(error)) from error
        if not state.running.is_set():
            raise StartFailed(f"it was not ready within {READY_TIMEOUT:g} s, or ended")


async def _comes_up(link: ShimLink, state: _Readiness) -> bool:
    with trio.move_on_after(READY_TIMEOUT), suppress(ShimGone, ShimSilent, ShimRefusal):
        state.on_kernel((await link.hello()).state, None)
        await state.running.wait()
        return True
    return False


async def _until(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
