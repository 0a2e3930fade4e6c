"""Kernels as processes of this machine, enclosed by bubblewrap and control groups where those can be had."""

import logging
import math
import os
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Self
from uuid import UUID

import attrs
import trio

from ...shim.failpoint import VARIABLE, failpoint
from ...wire.reports import ImageReport
from ...wire.rpc import AgentRefusal, KernelSpec, RunSpec
from ..accounts import AccountBook, separate_accounts
from ..enclosure import Enclosure, KernelLimits, find_enclosure
from ..environ import early_environ
from ..images import GUEST, LocalImage, Manifest, find_images
from ..pool import Member, Pool
from ..processes import held
from ..scratch import KernelStore, Scratch
from ..services import Service
from .interface import Shim, StartFailed
from .shims import Place, ShimMaker, publish_inside

log = logging.getLogger(__name__)

#: Starts that are under way at once; more would only slow each other down.
_STARTS_PER_CPU = 4
_DEFAULT_LIMITS = KernelLimits()
#: The pool is refilled so many seconds after the latest start, or at the latest so long after one was taken.
REFILL_QUIET = 0.1
REFILL_LATEST = 1.0
#: Seconds for a killed shim to be gone.
END_TIMEOUT = 5.0


class ProcessBackend:
    """The back end for machines where nothing better is there. Make it with `open`."""

    def __init__(
        self,
        images: Iterable[LocalImage],
        enclosure: Enclosure,
        maker: ShimMaker,
        store: KernelStore,
        pool_size: int,
    ) -> None:
        self._enclosure = enclosure
        self._images = {image.name: image for image in images}
        self._maker = maker
        self._store = store
        self._places: dict[UUID, tuple[Place, Scratch]] = {}
        self._starting = trio.CapacityLimiter(_STARTS_PER_CPU * len(os.sched_getaffinity(0)))
        self._starts = 0
        self._last_start = -math.inf
        self._idle = trio.Event()
        self._idle.set()
        pooled = [image.name for image in self._images.values() if image.manifest.runtime == "python"]
        self._pool = Pool(pooled, pool_size, self._make_member, self._discard, self._until_idle)

    @classmethod
    async def open(
        cls,
        *,
        store: KernelStore,
        sockets: Path,
        manifests: Iterable[Manifest],
        limits: KernelLimits = _DEFAULT_LIMITS,
        sandboxed: bool = True,
        pool_size: int = 0,
        failpoints: str | None = os.environ.get(VARIABLE),
    ) -> Self:
        """Find out what this machine can run, and how. *sandboxed*: enclose kernels if that can be done.

        *failpoints* are those of the shims, for tests.
        """
        book = AccountBook() if separate_accounts() else None
        inside = publish_inside(store.data_dir)
        account = None if book is None else book.take(store.data_dir)
        try:
            enclosure = await find_enclosure(store.data_dir, account, inside, limits, sandboxed=sandboxed)
            guests = await find_images([GUEST], account)
            images = await find_images(manifests, account, enclosure.probe(account))
        finally:
            if book and account:
                book.give_back(account, store.data_dir)
        return cls(
            images,
            enclosure,
            ShimMaker(enclosure, inside, next(iter(guests), None), sockets, book, failpoints),
            store,
            pool_size,
        )

    def images(self) -> Sequence[ImageReport]:
        return [image.report() for image in self._images.values()]

    def missing(self) -> Mapping[str, str]:
        missing = dict(self._enclosure.missing)
        if not self._images:
            whom = "a kernel's account" if separate_accounts() else "the agent's account"
            missing["account"] = f"No interpreter of the image manifests can be executed by {whom}."
        return missing

    def lines(self, kernel: KernelSpec, run: RunSpec) -> RunSpec:
        if not any(line and line.strip() == "*" for line in (run.clean, run.build, run.exec)):
            return run
        image = self._images.get(kernel.image)
        if image is None:  # it may have gone since the kernel started
            raise AgentRefusal("bad-request", f"this agent has no image {kernel.image} any more")
        return attrs.evolve(
            run,
            clean=image.command_for("clean", run.clean or ""),
            build=image.command_for("build", run.build or ""),
            exec=image.command_for("exec", run.exec or ""),
        )

    @property
    def shares_network(self) -> bool:
        return self._enclosure.sandbox is None or self._enclosure.limits.network

    def services(self, spec: KernelSpec) -> Sequence[Service]:
        image = self._images.get(spec.image)
        return () if image is None else image.manifest.services

    def stats(self) -> Mapping[str, Any]:
        return {"pool": self._pool.stats()}

    async def run(self) -> None:
        """Keep ready what starts take, until cancelled. First what an earlier agent had ready is ended."""
        for scratch in self._store.scan_ready():
            place = self._maker.find(scratch)
            shim = None if place is None else await self._maker.adopt(place, scratch)
            await self._end(place, scratch, shim)
        await self._enclosure.sweep(frozenset(place.token for place, _ in self._places.values()))
        await self._pool.run()

    # -- kernels

    async def start(self, spec: KernelSpec) -> Shim:
        image = self._images.get(spec.image)
        if image is None:
            raise StartFailed(f"this agent has no image {spec.image}")
        if spec.architecture != os.uname().machine:
            raise StartFailed(f"this agent's architecture is {os.uname().machine}, not {spec.architecture}")
        async with self._start_under_way():
            return await self._start_warm(spec, image) or await self._start_cold(spec, image)

    async def _start_warm(self, spec: KernelSpec, image: LocalImage) -> Shim | None:
        """A shim of the pool, made this kernel's; it is told so when it is connected to. None: start cold."""
        if early_environ(spec) or self._store.scratch(spec.kernel_id).root.exists():
            return None
        while (member := self._pool.take(spec.image)) is not None:
            given = False
            try:
                self._maker.give(member.place, member.scratch, image, spec)
                failpoint("kernel.after_given")
                if given := await member.assign():
                    failpoint("kernel.after_assigned")
                    move = partial(self._maker.move, member.place)
                    scratch = self._store.prepare_ready(spec, member.scratch, move)
                    failpoint("kernel.after_moved")
                    self._places[spec.kernel_id] = member.place, scratch
                    return member.shim
            except BaseException:
                given = False
                raise
            finally:
                member.leave(given=given)
        return None

    async def _start_cold(self, spec: KernelSpec, image: LocalImage) -> Shim:
        async with self._starting:
            scratch = self._store.prepare(spec)
            before = self._places.get(spec.kernel_id)
            place = self._maker.place(scratch, None if before is None else before[0].account)
            self._places[spec.kernel_id] = place, scratch
            self._maker.describe(place, scratch, image, spec)
            return await self._maker.start(place, scratch)

    async def adopt(self, spec: KernelSpec, scratch: Scratch) -> Shim | None:
        place = self._maker.find(scratch)
        if place is None:
            return None
        self._places[spec.kernel_id] = place, scratch
        return await self._maker.adopt(place, scratch)

    async def clear(self, spec: KernelSpec) -> None:
        if known := self._places.get(spec.kernel_id):
            await self._maker.clear(known[0])

    def release(self, kernel_id: UUID) -> None:
        if known := self._places.pop(kernel_id, None):
            self._maker.leave(known[0], known[1].root)

    @asynccontextmanager
    async def _start_under_way(self) -> AsyncIterator[None]:
        """Meanwhile the pool is not refilled."""
        if not self._starts:
            self._idle = trio.Event()
        self._starts += 1
        try:
            yield
        finally:
            self._starts -= 1
            self._last_start = trio.current_time()
            if not self._starts:
                self._idle.set()

    async def _until_idle(self) -> None:
        """Until no start is under way nor was just now, so that a refill slows none down; within bounds."""
        with trio.move_on_after(REFILL_LATEST):
            while True:
                await self._idle.wait()
                quiet_from = self._last_start + REFILL_QUIET
                if trio.current_time() >= quiet_from:
                    return
                await trio.sleep_until(quiet_from)

    # -- the pool's members

    async def _make_member(self, image: str) -> Member:
        scratch = self._store.new_ready(token_hex(8))
        place: Place | None = None
        try:
            place = self._maker.place(scratch)
            self._maker.describe(place, scratch, self._images[image], None)
            shim = await self._maker.start(place, scratch)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._end(place, scratch, None)
            raise
        return Member(image, scratch, place, shim)

    async def _discard(self, member: Member) -> None:
        await self._end(member.place, member.scratch, member.shim)

    async def _end(self, place: Place | None, scratch: Scratch, shim: Shim | None) -> None:
        """Leave nothing of a shim that never became a kernel's."""
        if shim is not None:
            with held(shim.process) as process, trio.move_on_after(END_TIMEOUT):
                process.kill()
                await process.wait()
        if place is not None:
            await self._maker.clear(place)
        try:
            await trio.to_thread.run_sync(self._store.remove, scratch)
        except OSError as error:
            log.error("%s cannot be removed: %s", scratch.root, error)
        if place is not None:
            self._maker.leave(place, scratch.root)
