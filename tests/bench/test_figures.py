"""Statistics, ratios and comparisons of the benchmark, as pure functions."""

import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import Better, Row, Series, compare, percentile, speed_ratio

SOME = st.lists(st.floats(min_value=0.001, max_value=1e6), min_size=1, max_size=300)


@pytest.mark.parametrize(
    ("values", "percent", "better", "found"),
    [
        ([5.0], 99, "lower", 5.0),
        ([3.0, 1.0, 2.0], 50, "lower", 2.0),
        (list(map(float, range(1, 101))), 99, "lower", 99.0),
        (list(map(float, range(1, 201))), 99, "lower", 198.0),
        (list(map(float, range(1, 101))), 99, "higher", 2.0),
        ([10.0, 20.0, 30.0], 99, "higher", 10.0),
    ],
)
def test_percentiles(values: list[float], percent: float, better: Better, found: float) -> None:
    assert percentile(values, percent, better) == found


@given(values=SOME, better=st.sampled_from(["lower", "higher"]))
def test_p99_was_reached_or_bettered_by_99_of_100_runs(values: list[float], better: Better) -> None:
    bound = percentile(values, 99, better)
    good = sum(value <= bound if better == "lower" else value >= bound for value in values)
    assert bound in values
    assert good >= 0.99 * len(values)


@pytest.mark.parametrize(
    ("values", "reference", "better", "ratio"),
    [
        ([50.0], [100.0], "higher", 0.5),
        ([4.0], [1.0], "lower", 0.25),
        # A disturbance that slows both does not show.
        ([50.0, 5.0, 50.0], [100.0, 10.0, 100.0], "higher", 0.5),
        # One that hits a single run is outvoted.
        ([50.0, 5.0, 50.0], [100.0, 100.0, 100.0], "higher", 0.5),
    ],
)
def test_speed_as_a_share_of_the_references(
    values: list[float], reference: list[float], better: Better, ratio: float
) -> None:
    assert speed_ratio(values, reference, better) == pytest.approx(ratio)


def test_rounds_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        speed_ratio([1.0, 2.0], [1.0], "lower")


def series(values: list[float], cpu: float = 0, operations: float = 0) -> Series:
    found = Series()
    found.add(values, operations, {"worker": cpu})
    return found


def test_a_row_tells_speed_and_work_beside_its_reference() -> None:
    ours = Series()
    ours.add([500.0], 500, {"worker": 0.4, "agent": 0.1}, load=0.2)
    ours.add([700.0], 700, {"worker": 0.7}, load=0.1)
    row = Row.of("r", "R", "/s", "higher", ours, beside=("bare", series([1000.0, 1000.0], 1.0, 2000)))
    assert (row.median, row.p99, row.runs, row.load) == (600, 500, 2, 0.2)
    assert row.cpu_seconds == {"worker": 1.1, "agent": 0.1}
    assert row.cpu_per_operation == pytest.approx(1.0)  # milliseconds
    assert row.reference is not None
    assert row.reference.cpu_per_operation == pytest.approx(0.5)
    assert row.ratio == pytest.approx(0.6)
    assert row.cpu_ratio == pytest.approx(0.5)


def test_a_row_without_cpu_or_reference_has_no_ratios() -> None:
    row = Row.of("memory", "M", "MiB", "lower", Series(values=[64.0]))
    assert (row.cpu_per_operation, row.reference, row.ratio, row.cpu_ratio) == (None, None, None, None)


def row(name: str = "r", better: Better = "higher", **fields: Any) -> Row:
    found = {"title": name, "unit": "u", "median": 100.0, "p99": 90.0, "runs": 3, **fields}
    return Row(name=name, better=better, **found)


@pytest.mark.parametrize(
    ("now", "before", "change", "told_apart"),
    [
        (row(median=150.0), row(median=100.0), 0.5, True),
        (row(median=110.0), row(median=100.0), 0.1, False),
        (row(median=60.0), row(median=100.0), -0.4, True),
        (row(better="lower", median=5.0), row(better="lower", median=10.0), 1.0, True),
        (row(better="lower", median=20.0), row(better="lower", median=10.0), -0.5, True),
        # A faster machine makes both faster: the ratio tells that nothing changed.
        (row(median=200.0, ratio=0.5), row(median=100.0, ratio=0.5), 0.0, False),
        (row(median=0.0), row(median=100.0), None, False),
    ],
)
def test_changes(now: Row, before: Row, change: float | None, told_apart: bool) -> None:
    (found,) = compare([now], [before])
    assert found.change == (None if change is None else pytest.approx(change))
    assert found.told_apart == told_apart


def test_changes_of_cpu() -> None:
    (by_work,) = compare([row(cpu_per_operation=0.5)], [row(cpu_per_operation=1.0)])
    assert by_work.cpu_change == pytest.approx(1.0)
    (by_ratio,) = compare(
        [row(cpu_per_operation=0.5, cpu_ratio=0.8)], [row(cpu_per_operation=1.0, cpu_ratio=0.8)]
    )
    assert by_ratio.cpu_change == pytest.approx(0.0)


def test_rows_are_paired_by_name() -> None:
    new, same = compare([row("new"), row("same")], [row("same"), row("gone")])
    assert new.before is None
    assert (new.change, new.told_apart) == (None, False)
    assert same.change == pytest.approx(0)


@given(values=SOME)
def test_the_median_lies_between_the_runs(values: list[float]) -> None:
    found = Row.of("r", "R", "ms", "lower", Series(values=values))
    assert min(values) <= found.median <= max(values)
    assert found.median == statistics.median(values)
