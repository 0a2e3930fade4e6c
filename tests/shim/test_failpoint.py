from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from backendai_mgr.shim import failpoint
from tests.shim.client import ROOT


@pytest.fixture(autouse=True)
def _none_afterwards() -> Iterator[None]:
    yield
    failpoint.enable("")


def test_does_nothing_unless_enabled() -> None:
    failpoint.failpoint("a.b")


def test_error_raises_at_that_name_only() -> None:
    failpoint.enable("a.b=error")
    failpoint.failpoint("a.c")
    with pytest.raises(failpoint.FailpointError, match=r"a\.b"):
        failpoint.failpoint("a.b")


def test_nth_hit_only() -> None:
    failpoint.enable("a.b=error@2, x=error")
    failpoint.failpoint("a.b")
    with pytest.raises(failpoint.FailpointError):
        failpoint.failpoint("a.b")
    failpoint.failpoint("a.b")


@pytest.mark.parametrize(
    "spec", ["a", "a=", "a=stop", "=kill", "a=kill@", "a=kill@0", "a=kill@x", "a=kill,b"]
)
def test_unreadable_specification_changes_nothing(spec: str) -> None:
    failpoint.enable("a.b=error")
    with pytest.raises(ValueError, match="specification"):
        failpoint.enable(spec)
    with pytest.raises(failpoint.FailpointError):
        failpoint.failpoint("a.b")


def test_kill_by_environment() -> None:
    code = "from backendai_mgr.shim.failpoint import failpoint; failpoint('x'); print('alive')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={"BACKENDAI_FAILPOINTS": "x=kill"}, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == b""
