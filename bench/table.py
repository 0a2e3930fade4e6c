"""Figures as tables, for terminals and for README.md."""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from rich.table import Table

from .figures import Change, Row

_LEFT = ("row", "what", "unit", "reference", "")


@attrs.frozen
class Cells:
    """A table's text. Columns of numbers are set flush right."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def rich(self) -> Table:
        """For a terminal."""
        table = Table(title=self.title)
        for column in self.columns:
            table.add_column(column, justify="left" if column in _LEFT else "right")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a file."""
        rules = tuple("---" if column in _LEFT else "--:" for column in self.columns)
        lines = [f"| {' | '.join(row)} |" for row in (self.columns, rules, *self.rows)]
        return "\n".join([f"{self.title}.", "", *lines])


def number(value: float | None) -> str:
    """Three significant digits, thousands grouped; a dash for None."""
    if value is None:
        return "-"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def percent(share: float | None, *, sign: bool = False) -> str:
    """A share as per cent; a dash for None."""
    return "-" if share is None else f"{share * 100:{'+' if sign else ''}.0f} %"


def figures(rows: Sequence[Row], machine: Mapping[str, Any]) -> Cells:
    """A line per row; CPU is that of the program, per operation."""
    columns = ("row", "what", "median", "p99", "unit", "runs", "CPU ms", "reference", "ratio", "CPU ratio")
    return Cells(machine_line(machine), columns, [_figures(row) for row in rows])


def _figures(row: Row) -> tuple[str, ...]:
    beside, ratios = "", ("", "")
    if row.reference is not None:
        beside = f"{row.reference.name}: {number(row.reference.median)}"
        ratios = percent(row.ratio), percent(row.cpu_ratio)
    return (
        *(row.name, row.title, number(row.median), number(row.p99) if row.runs > 1 else "", row.unit),
        *(str(row.runs), "" if row.cpu_per_operation is None else number(row.cpu_per_operation)),
        *(beside, *ratios),
    )


def changes(found: Sequence[Change], earlier: Mapping[str, Any]) -> Cells:
    """Each row beside its earlier figures; what is more than noise is said in a word."""
    columns = ("row", "unit", "before", "now", "ratio before", "ratio now", "change", "change of CPU", "")
    return Cells(f"against {machine_line(earlier)}; + is better", columns, [_change(one) for one in found])


def _change(change: Change) -> tuple[str, ...]:
    row, before = change.row, change.before
    if before is None:
        return (row.name, row.unit, "", number(row.median), "", percent(row.ratio), "", "", "new")
    word = ""
    if change.told_apart:
        word = "better" if change.change is not None and change.change > 0 else "worse"
    return (
        *(row.name, row.unit, number(before.median), number(row.median)),
        *(percent(before.ratio), percent(row.ratio)),
        *(percent(change.change, sign=True), percent(change.cpu_change, sign=True), word),
    )


def machine_line(machine: Mapping[str, Any]) -> str:
    """When and where."""
    return (
        f"{machine['date']}, {machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gib']} GiB,"
        f" Linux {machine['kernel']}, Python {machine['python']}"
    )
