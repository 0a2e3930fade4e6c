"""Figures as tables for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from .figures import Change, Row


def number(value: float | None) -> str:
    """Three significant digits, thousands grouped; a dash for None."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.01 or value == 0 else f"{value:.1g}"


def percent(share: float | None, *, sign: bool = False) -> str:
    """A share as per cent; a dash for None."""
    return "-" if share is None else f"{share * 100:{'+' if sign else ''}.0f} %"


def figures_table(rows: Sequence[Row], machine: Mapping[str, Any]) -> Table:
    """One line per row; CPU is that of the program per operation, in milliseconds."""
    table = Table(title=machine_line(machine))
    for column in ("row", ""):
        table.add_column(column)
    for column in ("median", "p99"):
        table.add_column(column, justify="right")
    table.add_column("unit")
    table.add_column("runs", justify="right")
    table.add_column("CPU ms", justify="right")
    table.add_column("reference")
    for column in ("its median", "ratio", "CPU ratio"):
        table.add_column(column, justify="right")
    for row in rows:
        reference = row.reference
        table.add_row(
            *(row.name, row.title, number(row.median), number(row.p99), row.unit, str(row.runs)),
            number(row.cpu_per_operation),
            "" if reference is None else reference.name,
            "" if reference is None else number(reference.median),
            percent(row.ratio) if row.ratio is not None else "",
            percent(row.cpu_ratio) if row.cpu_ratio is not None else "",
        )
    return table


def changes_table(changes: Sequence[Change]) -> Table:
    """Each row beside its earlier figures; what is more than noise is said in a word."""
    table = Table(title="change against the earlier figures: + is better")
    table.add_column("row")
    table.add_column("unit")
    for column in ("before", "now", "ratio before", "ratio now", "change", "change of CPU"):
        table.add_column(column, justify="right")
    table.add_column("")
    for change in changes:
        row, before = change.row, change.before
        word = "new" if before is None else ""
        if change.told_apart:
            word = "better" if (change.change or 0) > 0 else "worse"
        table.add_row(
            row.name,
            row.unit,
            number(None if before is None else before.median),
            number(row.median),
            percent(None if before is None else before.ratio),
            percent(row.ratio),
            percent(change.change, sign=True),
            percent(change.cpu_change, sign=True),
            word,
        )
    return table


def machine_line(machine: Mapping[str, Any]) -> str:
    return (
        f"{machine['date']}: {machine['cpus']} CPUs ({machine['cpu']}), {machine['memory_gib']} GiB,"
        f" Linux {machine['kernel']}, Python {machine['python']}"
    )
