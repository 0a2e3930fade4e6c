"""The benchmark itself, quickly, as `nox -s bench` starts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.figures import Row
from bench.results import Results, this_machine

from .conftest import BENCH

pytestmark = pytest.mark.system


def test_two_cases_are_measured_and_compared(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "bench").symlink_to(BENCH)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "path"), "PYTHONSAFEPATH": "1"}
    results, earlier = tmp_path / "results.json", tmp_path / "earlier.json"
    before = Row(
        name="requests-1", title="", unit="/s", better="higher", median=1.0, p99=1.0, runs=7, ratio=0.001
    )
    Results(this_machine(), [before]).write(earlier)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "--quick", "--only", "requests-1", "--only", "websocket-runs"),
            *("--output", str(results), "--compare", str(earlier), "--markdown"),
        ],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = {row.name: row for row in Results.read(results).rows}
    assert set(rows) == {"requests-1", "requests-1-asgi", "execute-websocket-runs"}
    for row in rows.values():
        assert row.median > 0
        assert row.ratio is not None
        assert row.ratio > 0
        assert row.cpu_seconds["worker"] > 0
    assert rows["execute-websocket-runs"].runs == 6
    figures, changes = (line for line in done.stdout.splitlines() if line.startswith("| requests-1 |"))
    assert "bare Quart-Trio" in figures
    assert changes.endswith("| better |")
