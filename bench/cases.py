"""A case: rows that are measured together."""

from collections.abc import Awaitable, Callable, Sequence

import attrs

from .figures import Row
from .harness import PLAIN, Effort, Settings, System


@attrs.frozen
class Case:
    """``measure`` makes the rows, whose names begin with the case's, on a system with these settings."""

    name: str
    measure: Callable[[System, Effort], Awaitable[Sequence[Row]]]
    settings: Settings = PLAIN
