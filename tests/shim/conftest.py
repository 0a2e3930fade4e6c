from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from backendai_mgr.shim.effects import Effect
from tests.shim.client import Client, Shim, scratch_directory


@pytest.fixture(scope="session", autouse=True)
def effects_have_kinds() -> Iterator[None]:
    """Effects are tuples, which are equal whatever they are called; here their kinds have to be the same."""

    def same(a: Any, b: Any) -> bool:
        return type(a) is type(b) and tuple.__eq__(a, b)

    with pytest.MonkeyPatch.context() as patch:
        for kind in get_args(Effect):
            patch.setattr(kind, "__eq__", same)
            patch.setattr(kind, "__ne__", lambda a, b: not same(a, b))
        yield


@pytest.fixture
def make_shim() -> Iterator[Callable[..., Shim]]:
    """Make shims (not started) over scratch directories of their own; all are ended afterwards."""
    shims: list[Shim] = []
    with scratch_directory() as root:

        def make(argv: list[str] | None = None, **spec: Any) -> Shim:
            shims.append(Shim(Path(root) / str(len(shims)), argv, **spec))
            return shims[-1]

        try:
            yield make
        finally:
            for shim in shims:
                shim.close()


@pytest.fixture
def shim(make_shim: Callable[..., Shim]) -> Shim:
    """A shim whose kernel runs."""
    shim = make_shim()
    shim.running()
    return shim


@pytest.fixture
def client(shim: Shim) -> Client:
    assert shim.client is not None
    return shim.client
