"""The worker and the agent as children of `up`: started, awaited, started again when they die, ended."""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

from ..runtime.lifeline import ORPHAN_DEADLINE, Lifeline, read_ready
from ..runtime.supervise import Backoff

log = logging.getLogger(__name__)

#: Seconds until a new child must serve.
_READY = 60.0
#: A child that was told to stop gets its own deadline and this much more, then it is killed.
_GRACE = 1.0


class ChildError(Exception):
    """A child did not come up; its own words are on standard error."""


@attrs.define(kw_only=True)
class Child:
    """One child process, and its successors.

    It runs ``python -m backendai_mgr COMMAND --data-dir DIR`` in a session of its own, so that a terminal's
    Ctrl-C reaches only us, and holds a lifeline and a ready pipe.
    """

    command: str
    data_dir: Path
    #: What the command and its options are given to.
    program: Sequence[str] = (sys.executable, "-m", "backendai_mgr")
    _ready: Mapping[str, Any] | None = attrs.field(init=False, default=None)
    _came_up: trio.Event = attrs.field(init=False, factory=trio.Event)
    _gone: trio.Event = attrs.field(init=False, factory=trio.Event)
    _process: trio.Process | None = attrs.field(init=False, default=None)
    _lifeline: Lifeline | None = attrs.field(init=False, default=None)
    _ending: bool = attrs.field(init=False, default=False)

    @property
    def pid(self) -> int | None:
        """The present process, None between two."""
        return self._process.pid if self._process else None

    async def ready(self) -> Mapping[str, Any]:
        """What the first process said when it was ready."""
        await self._came_up.wait()
        assert self._ready is not None
        return self._ready

    async def keep_running(self) -> None:
        """Start the child, and again whenever it ends, until `end`. `ChildError` if the first never serves.

        Cancelled, it closes the lifeline: the child stops, and kernels stay.
        """
        backoff = Backoff()
        while not self._told_to_end():
            began = trio.current_time()
            try:
                how = await self._run_once()
            except ChildError as error:
                if not self._came_up.is_set():
                    raise
                how = str(error)
            if self._told_to_end():
                break
            delay = backoff.after(trio.current_time() - began)
            log.error("%s; it starts again in %.1f s", how, delay)
            await trio.sleep(delay)
        self._gone.set()

    async def end(self, timeout: float) -> None:
        """Have the child end everything and exit; killed if that takes more than *timeout* seconds."""
        self._ending = True
        if self._lifeline is not None:
            self._lifeline.end()
        if self._process is not None:
            with trio.move_on_after(timeout):
                await self._gone.wait()
            if self._process is not None:
                log.warning("the %s did not end within %.0f s; it is killed", self.command, timeout)
                self._process.kill()
                await self._gone.wait()

    def _told_to_end(self) -> bool:
        return self._ending  # a call, for a type checker that does not see `end` run meanwhile

    async def _run_once(self) -> str:
        """One process from start to end; returns how it ended."""
        lifeline = Lifeline.open()
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        try:
            process = await trio.lowlevel.open_process(
                self._argv(lifeline.child_fd, ready_write),
                stdin=subprocess.DEVNULL,
                pass_fds=(lifeline.child_fd, ready_write),
                start_new_session=True,
            )
        except BaseException:
            os.close(ready_read)
            lifeline.close()
            raise
        finally:
            os.close(ready_write)
        lifeline.close_child_end()
        self._process, self._lifeline = process, lifeline
        if self._ending:
            lifeline.end()
        try:
            with trio.move_on_after(_READY) as waiting:
                message = await read_ready(ready_read)
            if waiting.cancelled_caught:
                raise ChildError(f"The {self.command} was not ready within {_READY:.0f} s")
            if message is None:
                raise ChildError(f"The {self.command} did not start (exit {await process.wait()})")
            if not self._came_up.is_set():
                self._ready = message
                self._came_up.set()
            return f"The {self.command} ended (exit {await process.wait()})"
        finally:
            await self._stop(process, lifeline)
            self._process = self._lifeline = None

    def _argv(self, lifeline: int, ready: int) -> Sequence[str]:
        return [
            *self.program,
            self.command,
            f"--data-dir={self.data_dir}",
            f"--lifeline={lifeline}",
            f"--ready={ready}",
        ]

    async def _stop(self, process: trio.Process, lifeline: Lifeline) -> None:
        with trio.CancelScope(shield=True):
            lifeline.close()
            with trio.move_on_after(ORPHAN_DEADLINE + _GRACE):
                await process.wait()
                return
            process.kill()
            await process.wait()
