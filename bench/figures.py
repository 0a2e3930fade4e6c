"""What is measured as values: series of runs, rows of the table, their statistics. Pure."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import attrs

Better = Literal["lower", "higher"]


@attrs.define
class Series:
    """What one subject did in all rounds.

    ``values`` has one figure per run. ``cpu`` holds the seconds that its processes spent, by the role of the
    process, on all ``operations`` together. ``load`` is the most that the load generator used of a processor.
    """

    values: list[float] = attrs.field(factory=list)
    operations: float = 0
    cpu: dict[str, float] = attrs.field(factory=dict)
    load: float = 0

    def add(
        self, values: Sequence[float], operations: float, cpu: Mapping[str, float], load: float = 0
    ) -> None:
        """Add a round."""
        self.values += values
        self.operations += operations
        for role, seconds in cpu.items():
            self.cpu[role] = self.cpu.get(role, 0) + seconds
        self.load = max(self.load, load)

    @property
    def cpu_per_operation(self) -> float | None:
        """Milliseconds of all processes; None when nothing was counted."""
        if not self.operations or not self.cpu:
            return None
        return sum(self.cpu.values()) / self.operations * 1000


@attrs.frozen(kw_only=True)
class Reference:
    """What a row was measured beside: its median in the row's unit, its milliseconds of CPU per operation."""

    name: str
    median: float
    cpu_per_operation: float | None = None


@attrs.frozen(kw_only=True)
class Row:
    """A line of the table, and a member of ``rows`` in the results file.

    ``p99``: 99 of 100 runs were as good or better. ``ratio`` is the speed as a share of the reference's,
    ``cpu_ratio`` the same of the work that a second of CPU does: 1 is as fast as the reference, more is
    faster. CPU is that of the program's processes (``cpu_seconds`` by their role), not of the load generator:
    ``load`` is the most that it used of a processor.
    """

    name: str
    title: str
    unit: str
    better: Better
    median: float
    p99: float
    runs: int
    cpu_seconds: Mapping[str, float] = attrs.Factory(dict)
    cpu_per_operation: float | None = None
    reference: Reference | None = None
    ratio: float | None = None
    cpu_ratio: float | None = None
    load: float = 0

    @classmethod
    def of(
        cls,
        name: str,
        title: str,
        unit: str,
        better: Better,
        series: Series,
        *,
        beside: tuple[str, Series] | None = None,
    ) -> Self:
        """The row of a *series*, *beside* a reference's (name, series) of the same rounds."""
        reference = ratio = cpu_ratio = None
        if beside is not None:
            reference = Reference(
                name=beside[0],
                median=statistics.median(beside[1].values),
                cpu_per_operation=beside[1].cpu_per_operation,
            )
            ratio = speed_ratio(series.values, beside[1].values, better)
            if series.cpu_per_operation and reference.cpu_per_operation:
                cpu_ratio = reference.cpu_per_operation / series.cpu_per_operation
        return cls(
            name=name,
            title=title,
            unit=unit,
            better=better,
            median=statistics.median(series.values),
            p99=percentile(series.values, 99, better),
            runs=len(series.values),
            cpu_seconds={role: round(seconds, 3) for role, seconds in series.cpu.items()},
            cpu_per_operation=series.cpu_per_operation,
            reference=reference,
            ratio=ratio,
            cpu_ratio=cpu_ratio,
            load=round(series.load, 3),
        )

    @classmethod
    def load_from(cls, found: Mapping[str, Any]) -> Self:
        """The inverse of `attrs.asdict`."""
        reference = found["reference"]
        return cls(**{**found, "reference": None if reference is None else Reference(**reference)})


def percentile(values: Sequence[float], percent: float, better: Better) -> float:
    """The value that *percent* of 100 runs reached or bettered: the nearest rank, nothing is interpolated."""
    ranked = sorted(values, reverse=better == "higher")
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def speed_ratio(values: Sequence[float], reference: Sequence[float], better: Better) -> float:
    """The speed as a share of the reference's: the median over pairs of runs that were neighbours in time.

    Noise that slows both for a while does not show in their ratio.
    """
    pairs = zip(values, reference, strict=True)
    return statistics.median(own / other if better == "higher" else other / own for own, other in pairs)


@attrs.frozen(kw_only=True)
class Change:
    """A row against an earlier one. ``change`` and ``cpu_change`` are shares: +0.1 is ten per cent better."""

    row: Row
    before: Row | None
    change: float | None = None
    cpu_change: float | None = None

    @property
    def told_apart(self) -> bool:
        """Whether the change is more than this kind of measurement varies by itself."""
        return self.change is not None and abs(self.change) > NOISE


#: Wall-clock figures of two runs differ by so much although nothing changed.
NOISE = 0.3


def compare(rows: Sequence[Row], earlier: Sequence[Row]) -> list[Change]:
    """Each of *rows* against the earlier one of its name.

    By their ratios where both have one, since those hold on different machines; otherwise by their medians.
    """
    before = {row.name: row for row in earlier}
    return [_change(row, before.get(row.name)) for row in rows]


def _change(row: Row, before: Row | None) -> Change:
    if before is None:
        return Change(row=row, before=None)
    if row.ratio and before.ratio:
        change = row.ratio / before.ratio - 1
    elif not row.median or not before.median:
        return Change(row=row, before=before)
    elif row.better == "higher":
        change = row.median / before.median - 1
    else:
        change = before.median / row.median - 1
    cpu_change = None
    if row.cpu_ratio and before.cpu_ratio:
        cpu_change = row.cpu_ratio / before.cpu_ratio - 1
    elif row.cpu_per_operation and before.cpu_per_operation:
        cpu_change = before.cpu_per_operation / row.cpu_per_operation - 1
    return Change(row=row, before=before, change=change, cpu_change=cpu_change)
