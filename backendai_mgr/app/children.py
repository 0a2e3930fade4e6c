"""Child processes that serve: started, awaited, started again when they die, ended."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

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


def _nothing() -> None:
    """What is done by default when a process of a child is gone."""


@attrs.define(kw_only=True)
class Child:
    """One child process, and its successors.

    It runs ``python -m backendai_mgr COMMAND OPTIONS`` in a session of its own, so that a terminal's Ctrl-C
    reaches only us, and holds a lifeline and a ready pipe.
    """

    command: str
    options: Sequence[str]
    #: What messages call it; the command unless there are several.
    name: str = attrs.field(default=attrs.Factory(lambda child: child.command, takes_self=True))
    #: Descriptors that it inherits beside its pipes, and its environment (None: ours).
    pass_fds: Sequence[int] = ()
    environ: Mapping[str, str] | None = None
    #: What the command and its options are given to.
    program: Sequence[str] = (sys.executable, "-m", "backendai_mgr")
    #: Called whenever a process of it is gone.
    on_exit: Callable[[], None] = _nothing
    _ready: Mapping[str, Any] | None = attrs.field(init=False, default=None)
    _came_up: trio.Event = attrs.field(init=False, factory=trio.Event)
    _gone: trio.Event = attrs.field(init=False, factory=trio.Event)
    _process: trio.Process | None = attrs.field(init=False, default=None)
    _lifeline: Lifeline | None = attrs.field(init=False, default=None)
    _leaving: Literal["stop", "end"] | None = attrs.field(init=False, default=None)

    @property
    def pid(self) -> int | None:
        """The present process, None between two."""
        return self._process.pid if self._process else None

    async def ready(self) -> Mapping[str, Any]:
        """What the first process said when it was ready."""
        await self._came_up.wait()
        assert self._ready is not None
        return self._ready

    async def keep_running(
        self, *, task_status: trio.TaskStatus[Mapping[str, Any]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Start the child, and again whenever it ends, until `end` or `stop`. `ChildError` if the first never
        serves; started with what it said when it did.

        Cancelled, it closes the lifeline: the child stops, and kernels stay.
        """
        backoff = Backoff()
        while not self._told_to_leave():
            began = trio.current_time()
            try:
                how = await self._run_once(task_status)
            except ChildError as error:
                if not self._came_up.is_set():
                    raise
                how = str(error)
            if self._told_to_leave():
                break
            delay = backoff.after(trio.current_time() - began)
            log.error("%s; it starts again in %.1f s", how, delay)
            await trio.sleep(delay)
        self._gone.set()

    async def end(self, timeout: float) -> None:
        """Have the child end everything and exit; killed if that takes more than *timeout* seconds."""
        await self._leave("end", timeout)

    async def stop(self, timeout: float) -> None:
        """Have the child finish what it is at and exit, as by SIGTERM; killed likewise."""
        await self._leave("stop", timeout)

    def tell_to_stop(self) -> None:
        """The first step of `stop`: the child knows, and will not be started again."""
        if self._leaving is None:
            self._leaving = "stop"
            self._tell_to_leave()

    async def _leave(self, how: Literal["stop", "end"], timeout: float) -> None:
        if self._leaving != how:
            self._leaving = how
            self._tell_to_leave()
        if self._process is not None:
            with trio.move_on_after(timeout):
                await self._gone.wait()
            if self._process is not None:
                log.warning("the %s did not end within %.0f s; it is killed", self.name, timeout)
                self._process.kill()
                await self._gone.wait()

    def _tell_to_leave(self) -> None:
        if self._leaving == "end" and self._lifeline is not None:
            self._lifeline.end()
        elif self._leaving == "stop" and self._process is not None:
            self._process.terminate()

    def _told_to_leave(self) -> bool:
        return self._leaving is not None  # a call, for a type checker that does not see `end` run meanwhile

    async def _run_once(self, task_status: trio.TaskStatus[Mapping[str, Any]]) -> str:
        """One process from start to end; returns how it ended."""
        lifeline = Lifeline.open()
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        try:
            process = await trio.lowlevel.open_process(
                self._argv(lifeline.child_fd, ready_write),
                stdin=subprocess.DEVNULL,
                pass_fds=(lifeline.child_fd, ready_write, *self.pass_fds),
                start_new_session=True,
                env=self.environ,
            )
        except BaseException as error:
            os.close(ready_read)
            lifeline.close()
            if isinstance(error, OSError):
                raise ChildError(f"The {self.name} could not be started: {error.strerror}") from error
            raise
        finally:
            os.close(ready_write)
        lifeline.close_child_end()
        self._process, self._lifeline = process, lifeline
        self._tell_to_leave()
        try:
            with trio.move_on_after(_READY) as waiting:
                message = await read_ready(ready_read)
            if waiting.cancelled_caught:
                raise ChildError(f"The {self.name} was not ready within {_READY:.0f} s")
            if message is None:
                raise ChildError(f"The {self.name} did not start (exit {await process.wait()})")
            if not self._came_up.is_set():
                self._ready = message
                self._came_up.set()
                task_status.started(message)
            return f"The {self.name} ended (exit {await process.wait()})"
        finally:
            await self._stop(process, lifeline)
            self._process = self._lifeline = None
            self.on_exit()

    def _argv(self, lifeline: int, ready: int) -> Sequence[str]:
        pipes = (f"--lifeline={lifeline}", f"--ready={ready}")
        return [*self.program, self.command, *self.options, *pipes]

    async def _stop(self, process: trio.Process, lifeline: Lifeline) -> None:
        with trio.CancelScope(shield=True):
            lifeline.close()
            with trio.move_on_after(ORPHAN_DEADLINE + _GRACE):
                await process.wait()
                return
            process.kill()
            await process.wait()
