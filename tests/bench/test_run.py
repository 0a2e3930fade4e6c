"""The benchmark itself, quickly, as `nox -s bench` starts it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.results import Results

from .conftest import BENCH

pytestmark = pytest.mark.system


def test_two_cases_are_measured_and_compared(tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "bench").symlink_to(BENCH)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "path"), "PYTHONSAFEPATH": "1"}
    results = tmp_path / "results.json"
    cases = ("--only", "requests-1", "--only", "execute-websocket-runs")

    def bench(*arguments: str) -> str:
        command = [sys.executable, "-m", "bench", "--quick", *cases, *arguments]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    bench("--output", str(results))
    rows = {row.name: row for row in Results.read(results).rows}
    assert set(rows) == {"requests-1", "requests-1-asgi", "execute-websocket-runs"}
    for row in rows.values():
        assert row.median > 0
        assert row.ratio is not None
        assert row.ratio > 0
        assert row.cpu_seconds["worker"] > 0
    assert rows["execute-websocket-runs"].runs == 6
    shown = bench("--compare", str(results), "--markdown")
    assert shown.count("| requests-1 |") == 2
