"""Rows for people to read."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

_UNITS = ((86400, "d"), (3600, "h"), (60, "m"))


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns under *titles*; only a terminal's width cuts anything off."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # Not a terminal: no width, so that nothing is cut off for a program that reads this.
    console = Console(markup=False, highlight=False)
    console.print(table, soft_wrap=not console.is_terminal, crop=console.is_terminal)


def age(since: datetime) -> str:
    """How long ago that was, in its largest unit."""
    return duration((datetime.now(UTC) - since).total_seconds())


def duration(seconds: float) -> str:
    """So many seconds in the largest unit that they fill."""
    whole = max(0, int(seconds))
    return next((f"{whole // length}{unit}" for length, unit in _UNITS if whole >= length), f"{whole}s")


def size(count: int) -> str:
    """So many bytes in the largest unit that they fill."""
    for length, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} B"
