"""Named crash points, shared with the shim: see `backendai_mgr.shim.failpoint`."""

from ..shim.failpoint import failpoint

__all__ = ["failpoint"]
