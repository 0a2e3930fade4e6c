"""The benchmark's tables, and its results file."""

from pathlib import Path
from typing import Any

import pytest

from bench.figures import Reference, Row, compare
from bench.results import Results, ResultsError, select, this_machine
from bench.table import changes, figures, number, percent

MACHINE = {
    "date": "2026-01-31",
    "cpus": 2,
    "cpu": "some",
    "memory_gib": 8,
    "kernel": "6.1",
    "python": "3.11.7",
}


def row(**fields: Any) -> Row:
    found = {"name": "requests-1", "title": "requests", "unit": "/s", "better": "higher"}
    return Row(**{**found, "median": 1234.5, "p99": 1000.0, "runs": 7, **fields})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (0.01234, "0.0123"),
        (1.2345, "1.23"),
        (99.94, "99.9"),
        (99.96, "100"),
        (1234567.8, "1,234,568"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "sign", "text"),
    [(None, False, "-"), (0.784, False, "78 %"), (0.5, True, "+50 %"), (-0.25, True, "-25 %")],
)
def test_shares(share: float | None, sign: bool, text: str) -> None:
    assert percent(share, sign=sign) == text


def test_a_row_with_a_reference() -> None:
    reference = Reference(name="bare", median=2000.0, cpu_per_operation=0.5)
    cells = figures([row(reference=reference, ratio=0.617, cpu_ratio=0.6, cpu_per_operation=0.83)], MACHINE)
    (found,) = cells.rows
    assert found == (
        *("requests-1", "requests", "1,234", "1,000", "/s", "7", "0.83"),
        *("bare: 2,000", "62 %", "60 %"),
    )
    assert cells.title.startswith("2026-01-31, 2 CPUs (some)")


def test_what_was_measured_once_has_no_percentile() -> None:
    (found,) = figures([row(runs=1)], MACHINE).rows
    assert found[3] == ""
    assert found[6:] == ("", "", "", "")


def test_markdown_has_a_rule_and_as_many_cells_in_each_line() -> None:
    lines = figures([row(), row(name="other")], MACHINE).markdown().splitlines()[2:]
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {11}
    assert set(lines[1]) <= set("| -:")


def test_changes_say_which_are_more_than_noise() -> None:
    now = [row(median=200.0), row(name="slower", median=50.0), row(name="same"), row(name="new")]
    before = [row(median=100.0), row(name="slower", median=100.0), row(name="same")]
    words = {cells[0]: (cells[6], cells[-1]) for cells in changes(compare(now, before), MACHINE).rows}
    assert words == {
        "requests-1": ("+100 %", "better"),
        "slower": ("-50 %", "worse"),
        "same": ("+0 %", ""),
        "new": ("", "new"),
    }


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    reference = Reference(name="bare", median=2.0, cpu_per_operation=None)
    rows = [row(reference=reference, ratio=0.5, cpu_seconds={"worker": 1.5}), row(name="plain")]
    Results(this_machine(), rows).write(tmp_path / "results.json")
    found = Results.read(tmp_path / "results.json")
    assert found.rows == rows
    assert found.machine["cpus"] >= 1


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"format": 1, "machine": {}, "rows": [{}]}', '{"format": 9}']
)
def test_what_holds_no_results_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=r"results\.json"):
        Results.read(path)
    with pytest.raises(ResultsError, match="cannot be read"):
        Results.read(tmp_path / "absent")


def test_cases_are_chosen_by_parts_of_their_names() -> None:
    names = ["requests-1", "requests-8", "start-warm"]
    assert select(names, []) == names
    assert select(names, ["requests"]) == ["requests-1", "requests-8"]
    assert select(names, ["s-8", "*warm"]) == ["requests-8", "start-warm"]
    assert select(names, ["nothing"]) == []
