"""Limits of a kernel's processes.

Used by `guest`, which imports it, and by `host` (see there for what holds of all modules in this folder).
"""

import resource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict


def lower(limits: "Dict[str, int]") -> None:
    """Lower our own limits (rlimits by name), which all that we start inherits."""
    for name, most in limits.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(kind, (most, most))
