"""Tracebacks as users expect them: with the source text of all runs, and without what runs them.

Loaded by `host` (see there for what holds of all modules in this folder).
"""

import linecache
import sys
import types
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import AbstractSet, Deque, Optional, Tuple  # noqa: F401

SOURCE_BYTES = 32 * 1024 * 1024  # of past runs, kept for tracebacks and inspect
_sources = linecache.cache
_WRITABLE_TRACEBACKS = sys.version_info >= (3, 7)


class Sources:
    """The source text of past runs where tracebacks look for it, bounded."""

    def __init__(self) -> None:
        self._kept = deque()  # type: Deque[Tuple[str, int]]
        self._size = 0

    def add(self, name: str, code: str) -> None:
        _sources[name] = (len(code), None, [line + "\n" for line in code.split("\n")], name)
        self._kept.append((name, len(code)))
        self._size += len(code)
        while self._size > SOURCE_BYTES and len(self._kept) > 1:
            name, size = self._kept.popleft()
            self._size -= size
            _sources.pop(name, None)


def clean(error: BaseException, ours: "AbstractSet[str]") -> None:
    """Keep frames of our files out of the tracebacks of an exception, and of those chained to it or in it."""
    seen = set()
    left = [error]
    while left:
        error = left.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        error.__traceback__ = _without_our_frames(error.__traceback__, ours)
        parts = getattr(error, "exceptions", ())
        more = (error.__cause__, error.__context__) + (parts if isinstance(parts, tuple) else ())
        left.extend([other for other in more if isinstance(other, BaseException)])


def _without_our_frames(
    trace: "Optional[types.TracebackType]", ours: "AbstractSet[str]"
) -> "Optional[types.TracebackType]":
    """Cut what runs user code off the head of a traceback, and our own functions out of the rest."""
    start = trace
    while start is not None and not start.tb_frame.f_code.co_filename.startswith("<run-"):
        start = start.tb_next
    if start is None:  # nothing of the run in it: a SyntaxError, or an interrupt at an await
        start = trace
        while start is not None and start.tb_frame.f_code.co_filename in ours:
            start = start.tb_next
    here = start
    while here is not None:
        following = here.tb_next
        if following is not None and following.tb_frame.f_code.co_filename in ours and _WRITABLE_TRACEBACKS:
            here.tb_next = following.tb_next
        else:
            here = following
    return start
