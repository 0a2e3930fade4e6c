"""The environment of a kernel, for a host that was started before they were known.

Loaded by `host` (see there for what holds of all modules in this folder).
"""

import os
import sys
from time import tzset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict


def configure(order: "Dict[str, Any]") -> None:
    """Take on the environment of a kernel, as if started with it."""
    os.environ.clear()
    os.environ.update(order["env"])
    tzset()
    sys.path_importer_cache.clear()
    ours = [entry for entry in order["env"].get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[1:1] = [entry for entry in ours if entry not in sys.path]
    site = sys.modules.get("site")  # type: Any
    if site is not None and site.ENABLE_USER_SITE and not sys.flags.no_user_site:
        site.USER_BASE = site.USER_SITE = None
        site.addusersitepackages(set(sys.path))
