"""One running system for the tests that only use it; tests that stop or kill things start their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import Installation, Up, temporary_dir


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The program as the tests themselves see it."""
    return Installation()


@pytest.fixture(scope="session")
def shared_up(installation: Installation) -> Iterator[Up]:
    with temporary_dir() as folder, Up(installation, folder / "data") as up:
        yield up


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder with a short path that other accounts may pass through."""
    with temporary_dir() as path:
        yield path
