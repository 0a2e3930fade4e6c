"""Use cases of terminals. A terminal is a run beside the others of its session, and is read as they are."""

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import trio

from ..domain.accounts import Caller
from ..domain.errors import Conflict, Unavailable
from ..domain.ids import is_run_id
from ..domain.requests import invalid
from ..domain.sessions import PlacedSession
from ..runtime.supervise import Backoff
from ..wire.rpc import RunSpec, RunStatus
from .agentports import AgentLink, Agents
from .agentwords import told_by_agent
from .directory import Directory
from .runs import RUN_REFUSALS, check_new, run_order

T = TypeVar("T")

#: A session's default terminal has such a name, with the next number when the one before has ended.
_DEFAULT = re.compile(r"terminal-([1-9][0-9]{0,8})\Z")
#: Others may open and end default terminals at the same time; so often the next number is tried.
_ATTEMPTS = 8
#: Seconds for which an agent or a session that is away is waited for.
PATIENCE = 60.0
_SPEC = RunSpec(mode="terminal")


class TerminalService:
    """Terminals in the caller's own sessions."""

    def __init__(self, directory: Directory, agents: Agents) -> None:
        self._directory = directory
        self._agents = agents

    async def open(self, caller: Caller, reference: str, name: str | None) -> tuple[PlacedSession, RunStatus]:
        """The terminal of this name, opened unless it was before; it may have ended.

        Without a name the session's default terminal, which lives. `RunConflict` when the name is another
        run's, `Conflict` when too many are open.
        """
        if name is not None:
            check_new(name, "terminal")
        live = await self._directory.find(caller.access_key, reference, exact=False)
        with told_by_agent(RUN_REFUSALS):
            link = self._link(live)
            if name is not None:
                return live, await self._start(link, live, name)
            number = _latest(await link.list_runs(live.kernel_id))
            for _ in range(_ATTEMPTS):
                run = await self._start(link, live, f"terminal-{number}")
                if not run.ended:
                    return live, run
                number += 1
        raise Conflict("The session's terminals end as soon as they are opened.")

    async def type(
        self, caller: Caller, session: str, run_id: str, *, writer: str, offset: int | None, data: bytes
    ) -> int:
        """Type into a terminal; how many bytes it has taken from this writer in all.

        ``offset`` is the position of the data in all that the writer sends: what was taken before is passed
        over, so that this may be repeated; None for a writer that does not count. While the terminal does
        not read, nothing more is taken. `Conflict` when it has ended.
        """
        if not is_run_id(writer):
            raise invalid("client", "1 to 64 letters, digits, dots, underscores and dashes")

        async def type_once() -> int:
            live = await self._directory.find(caller.access_key, session, exact=True)
            with told_by_agent(RUN_REFUSALS):
                return await self._link(live).type_input(
                    live.kernel_id, run_id, writer=writer, offset=offset, data=data
                )

        return await (type_once() if offset is None else _patiently(type_once))

    async def resize(self, caller: Caller, session: str, run_id: str, rows: int, columns: int) -> None:
        """Tell a terminal its size. `Conflict` when it has ended."""

        async def resize_once() -> None:
            live = await self._directory.find(caller.access_key, session, exact=True)
            with told_by_agent(RUN_REFUSALS):
                await self._link(live).resize_terminal(live.kernel_id, run_id, rows=rows, columns=columns)

        await _patiently(resize_once)

    async def _start(self, link: AgentLink, live: PlacedSession, name: str) -> RunStatus:
        return (await link.start_run(live.kernel_id, name, run_order(live, _SPEC))).run

    def _link(self, live: PlacedSession) -> AgentLink:
        return self._agents.link(live.agent_id, live.agent_addr)


def _latest(runs: Iterable[RunStatus]) -> int:
    """The number of the newest default terminal, 1 where there is none."""
    found = (_DEFAULT.match(run.run_id) for run in runs)
    return max((int(match[1]) for match in found if match), default=1)


async def _patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call, which may be repeated, while what it needs is away."""
    backoff = Backoff(first=0.1, longest=2.0)
    until = trio.current_time() + PATIENCE
    while True:
        began = trio.current_time()
        try:
            return await call()
        except Unavailable:
            if began >= until:
                raise
        await trio.sleep(backoff.after(trio.current_time() - began))
