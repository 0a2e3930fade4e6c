from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from backendai_mgr.agent.registry import KernelRegistry

from .harness import PATIENCE, Site, new_site


@pytest.fixture
def site() -> Iterator[Site]:
    with new_site() as site:
        yield site


@pytest.fixture
async def registry(site: Site) -> AsyncIterator[KernelRegistry]:
    with trio.fail_after(2 * PATIENCE):
        async with site.agent() as registry:
            yield registry
