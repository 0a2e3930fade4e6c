"""The environment of a kernel, for a host that was started before it was known.

Loaded by `host` (see there for what holds of all modules in this folder).
"""

import os
import sys
from time import tzset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict  # noqa: F401


def configure(env: "Dict[str, str]") -> None:
    """Take on the environment of a kernel, as if started with it."""
    os.environ.clear()
    os.environ.update(env)
    tzset()
    sys.path_importer_cache.clear()
    ours = [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[1:1] = [entry for entry in ours if entry not in sys.path]
    site = sys.modules.get("site")  # type: Any
    # The guest was started without, lest it obeyed the user's files before it had the user's account.
    if site is not None and sys.prefix == sys.base_prefix and "PYTHONNOUSERSITE" not in env:
        site.ENABLE_USER_SITE = True
        site.USER_BASE = site.USER_SITE = None
        site.addusersitepackages(set(sys.path))
