"""Each test has a system of its own, as root and as an ordinary user, and leaves nothing on the machine."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import installation, ordinary  # noqa: F401  (fixtures)
from tests.system.harness import Installation, processes_of, temporary_dir, wait_until

from .traces import traces


@pytest.fixture(params=["as root", "as an ordinary user"])
def site(request: pytest.FixtureRequest) -> Iterator[tuple[Installation, Path]]:
    """An installation, and a folder that it may use; afterwards nothing is left of it."""
    before = traces()
    if request.param == "as an ordinary user":
        program, shared = request.getfixturevalue("ordinary")
        folder = shared / f"{os.urandom(4).hex()}"
        yield program, folder
    elif os.geteuid() != 0:
        pytest.skip("only root can act as root")
    else:
        with temporary_dir() as folder:
            yield request.getfixturevalue("installation"), folder / "data"
    wait_until(lambda: not processes_of(folder), 20, f"no process is left: {processes_of(folder)}")
    wait_until(lambda: traces() <= before, 20, f"nothing is left: {traces() - before}")
