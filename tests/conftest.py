"""Under ``CI=true`` a skipped test must be listed, with its reason, in ``tests/allowed-skips.txt``."""

import os
from pathlib import Path

import pytest

ALLOWED = Path(__file__).with_name("allowed-skips.txt")


def _allowed() -> set[tuple[str, str]]:
    """Lines are ``path::test: reason`` (parameters in brackets left out); ``#`` begins a comment."""
    pairs = set()
    for line in ALLOWED.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            test, _, reason = line.partition(": ")
            pairs.add((test.strip(), reason.strip()))
    return pairs


class _Skips:
    def __init__(self) -> None:
        self.unlisted: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        pair = (report.nodeid.partition("[")[0], reason.removeprefix("Skipped: "))
        if pair not in _allowed():
            self.unlisted.append(": ".join(pair))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.unlisted:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.unlisted:
            terminalreporter.write_line(f"skipped without being listed in {ALLOWED.name}: {line}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(_Skips())
