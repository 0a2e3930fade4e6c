"""Terminals behind `services.terminals.TerminalService`; their shells are the test."""

from itertools import count
from uuid import UUID

import trio

from backendai_mgr.domain.accounts import Caller
from backendai_mgr.domain.errors import Conflict, RunConflict
from backendai_mgr.domain.ids import is_run_id
from backendai_mgr.domain.sessions import PlacedSession
from backendai_mgr.shim.keyboard import Keyboard
from backendai_mgr.wire.rpc import RunSpec, RunStatus

from .services import FakeRun, FakeRuns

SPEC = RunSpec(mode="terminal")


class FakeTerminals:
    """``typed`` is what each terminal got, ``sizes`` what it was resized to. While ``room`` is 0 a terminal
    takes nothing; otherwise at most so much at once."""

    def __init__(self, runs: FakeRuns) -> None:
        self._runs = runs
        self._keyboards: dict[str, Keyboard] = {}
        self.typed: dict[str, bytes] = {}
        self.sizes: list[tuple[str, int, int]] = []
        self.room = 1 << 20
        self.refusal: Exception | None = None
        self._changed = trio.Event()

    def change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, condition) -> None:
        """Wait for what is true after a call."""
        with trio.fail_after(20):
            while not condition():
                await self._changed.wait()

    async def open(self, caller: Caller, reference: str, name: str | None) -> tuple[PlacedSession, RunStatus]:
        live = self._runs._enter(reference)
        if name is None:
            names = (f"terminal-{number}" for number in count(1))
            runs = self._runs.runs
            name = next(name for name in names if name not in runs or not runs[name].status.ended)
        run = self._runs.runs.setdefault(name, FakeRun(name, SPEC))
        if run.spec != SPEC:
            raise RunConflict("another")
        self.change()
        return live, run.status

    def _enter(self, session: str, run_id: str) -> None:
        UUID(session)
        self._runs._enter(session)
        if self.refusal is not None:
            refusal, self.refusal = self.refusal, None
            raise refusal
        if self._runs.runs[run_id].status.ended:
            raise Conflict("no terminal")

    async def type(
        self, caller: Caller, session: str, run_id: str, *, writer: str, offset: int | None, data: bytes
    ) -> int:
        await trio.lowlevel.checkpoint()
        self._enter(session, run_id)
        assert is_run_id(writer)
        assert len(data) <= 65536
        keyboard = self._keyboards.setdefault(run_id, Keyboard())
        if data and not self.room:
            with trio.move_on_after(0.05):
                await self._changed.wait()
        new = keyboard.take(writer, offset, data[: self.room])
        self.typed[run_id] = self.typed.get(run_id, b"") + new
        self.change()
        return keyboard.position(writer)

    async def resize(self, caller: Caller, session: str, run_id: str, rows: int, columns: int) -> None:
        await trio.lowlevel.checkpoint()
        self._enter(session, run_id)
        self.sizes.append((run_id, rows, columns))
        self.change()
