"""Who is told what becomes of a kernel and its runs."""

from __future__ import annotations

from typing import Protocol, TypedDict

from backendai_mgr.shim.run import Run


class Exit(TypedDict):
    """How a kernel ended: `exit_code` as a shell counts it, -N for signal N, None if it never ran."""

    reason: str
    exit_code: int | None


class Audience(Protocol):
    """Who is told of changes."""

    def kernel_changed(self) -> None: ...
    def run_changed(self, run: Run) -> None: ...
    def log_grew(self, run: Run) -> None: ...
