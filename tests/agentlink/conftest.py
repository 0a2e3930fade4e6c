"""Client and server together, over loopback TCP."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

import pytest
import trio

from backendai_mgr.agent.server import serve_link
from backendai_mgr.agentlink.links import open_links
from backendai_mgr.wire.rpc import KernelSpec
from tests.fakes.agent import FakeAgent

INTERVAL = 0.1
KERNEL = UUID(int=1)
AGENT = "i-test"


def spec(kernel_id: UUID = KERNEL, incarnation: int = 1) -> KernelSpec:
    return KernelSpec(
        kernel_id=kernel_id,
        session_id=kernel_id,
        incarnation=incarnation,
        cluster_id="c",
        session_name="s",
        image="local/python:3.11",
        architecture="x86_64",
        slots={"cpu": "1"},
        environ={"A": "ä"},
    )


@asynccontextmanager
async def serving(
    agent: FakeAgent, bind: str = "tcp://127.0.0.1:*", report_interval: float = INTERVAL
) -> AsyncIterator[str]:
    """The link server of *agent*; its endpoint. The port is free again afterwards."""
    async with trio.open_nursery() as nursery:
        serve = partial(serve_link, agent, bind=bind, report_interval=report_interval)
        yield await nursery.start(serve)
        nursery.cancel_scope.cancel()


@pytest.fixture
def agent() -> FakeAgent:
    return FakeAgent()


@pytest.fixture
async def endpoint(agent, nursery) -> str:
    return await nursery.start(partial(serve_link, agent, bind="tcp://127.0.0.1:*", report_interval=INTERVAL))


@pytest.fixture
async def links():
    async with open_links(report_interval=INTERVAL, silence=2.0) as links:
        yield links


@pytest.fixture
def link(links, endpoint):
    return links.link(AGENT, endpoint)
