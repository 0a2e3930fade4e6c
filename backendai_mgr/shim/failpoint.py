"""Named crash points on the steps that must survive a crash.

``failpoint("run.after_meta")`` does nothing unless that name was enabled, by the environment variable
``BACKENDAI_FAILPOINTS`` or by `enable`.  Names are string literals at the call, so that a test can enumerate
them from the source and kill the process at each.

A specification is a comma-separated list of ``NAME=ACTION`` or ``NAME=ACTION@N`` (only at the Nth hit,
counted from 1).  Actions: ``kill`` (SIGKILL to this process) and ``error`` (raise `FailpointError`).
"""

from __future__ import annotations

import os
import signal

VARIABLE = "BACKENDAI_FAILPOINTS"


class FailpointError(Exception):
    """Raised at a crash point whose action is ``error``."""


class _Rule:
    __slots__ = ("action", "hits", "only_at")

    def __init__(self, action: str, only_at: int | None) -> None:
        self.action = action
        self.only_at = only_at
        self.hits = 0


# The one piece of process-wide state: a crash point is about the process, whoever calls it.
_rules: dict[str, _Rule] = {}


def failpoint(name: str) -> None:
    """Crash here if a test asked for it; a dictionary's truth test otherwise."""
    if _rules:
        _hit(name)


def enable(spec: str) -> None:
    """Replace the enabled crash points by those of `spec` (empty: none).

    Raises ValueError for a specification that cannot be read; then nothing changes.
    """
    rules = {}
    for item in filter(None, (part.strip() for part in spec.split(","))):
        name, _, action = item.partition("=")
        action, at, nth = action.partition("@")
        if not name or action not in ("kill", "error") or (at and not (nth.isdecimal() and int(nth) > 0)):
            raise ValueError(f"not a failpoint specification: {item!r}")
        rules[name] = _Rule(action, int(nth) if at else None)
    _rules.clear()
    _rules.update(rules)


def _hit(name: str) -> None:
    rule = _rules.get(name)
    if rule is None:
        return
    rule.hits += 1
    if rule.only_at not in (None, rule.hits):
        return
    if rule.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise FailpointError(name)


enable(os.environ.get(VARIABLE, ""))
