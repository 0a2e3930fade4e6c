"""Whether this worker takes work, and what is wrong with it."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import trio

from ..domain.ids import AgentId
from ..wire.reports import Report
from .agents import AgentKeeper
from .hub import Hub


class Health:
    """State of the worker as probes and new requests see it."""

    def __init__(self, hub: Hub, keeper: AgentKeeper, *, awaited: Collection[AgentId] = ()) -> None:
        """``awaited`` agents must have reported before this worker counts as ready."""
        self._hub = hub
        self._keeper = keeper
        self._awaited = awaited
        #: New work is refused with 503: the worker is about to stop.
        self.draining = False
        #: Set when streams must close, resumably.
        self.stopping = trio.Event()

    def problems(self) -> Mapping[str, str]:
        """Component -> what is wrong with it; empty when ready."""
        found = {}
        if self.draining:
            found["server"] = "The server is stopping."
        if not self._hub.connected:
            found["database"] = "The database cannot be reached."
        if any(agent_id not in self._keeper.reports for agent_id in self._awaited):
            found["agent"] = "The agent has not reported yet."
        return found

    def on_report(self, listener: Callable[[AgentId, int, Report], None]) -> None:
        """Call *listener* with each report of an agent that this worker keeps, and the epoch of its lease."""
        self._keeper.on_report(listener)

    def details(self) -> Mapping[str, Any]:
        """For ``/readyz?verbose``: also the agents that this worker keeps, and what they cannot do."""
        return {
            "worker": self._keeper.owner,
            "draining": self.draining,
            "database": self._hub.connected,
            "agents": {
                agent_id: {"version": report.version, "capacity": report.capacity, "missing": report.missing}
                for agent_id, report in self._keeper.reports.items()
            },
        }
