"""One running system for the tests that only use it; tests that stop or kill things start their own."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import ORDINARY, Installation, Up, install_for, temporary_dir
from .traces import nothing_left


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The program as the tests themselves see it."""
    return Installation()


@pytest.fixture(scope="session")
def shared_up(installation: Installation) -> Iterator[Up]:
    with (
        temporary_dir() as folder,
        nothing_left(folder / "data"),
        Up(installation, folder / "data") as up,
    ):
        yield up


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short path that other accounts may pass through. Systems have their data in
    ``data`` there, of which nothing is left running."""
    with temporary_dir() as path, nothing_left(path / "data"):
        yield path


@pytest.fixture(scope="session")
def ordinary() -> Iterator[tuple[Installation, Path]]:
    """The program as an ordinary account has it, and a folder of that account."""
    if os.geteuid() != 0:
        with temporary_dir() as folder:
            yield Installation(), folder
        return
    with temporary_dir() as shared, temporary_dir(ORDINARY) as folder:
        installation = install_for(ORDINARY, shared)
        assert installation is not None, "no interpreter of this version that other accounts can run"
        yield installation, folder
