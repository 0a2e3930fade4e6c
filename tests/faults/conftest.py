"""Each test has a system of its own, as root and as an ordinary user, and leaves nothing on the machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import installation, ordinary  # noqa: F401  (fixtures)
from tests.system.harness import Installation, temporary_dir
from tests.system.traces import nothing_left


@pytest.fixture(params=["as root", "as an ordinary user"])
def site(request: pytest.FixtureRequest) -> Iterator[tuple[Installation, Path]]:
    """An installation, and a data directory for it; afterwards nothing is left of the system there."""
    if request.param == "as an ordinary user":
        program, shared = request.getfixturevalue("ordinary")
        data_dir = shared / os.urandom(4).hex()
        with nothing_left(data_dir):
            yield program, data_dir
    elif os.geteuid() != 0:
        pytest.skip("only root can act as root")
    else:
        with temporary_dir() as folder, nothing_left(folder / "data"):
            yield request.getfixturevalue("installation"), folder / "data"
