import re
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio

from backendai_mgr.agent.build import prepare_data_dir, run_agent
from backendai_mgr.agent.config import AgentConfig
from backendai_mgr.runtime.config import ConfigError

from .harness import PATIENCE, run, shims_of


@pytest.fixture
def config(site):
    return AgentConfig(data_dir=site.data_dir, bind="127.0.0.1:0", pool_size=0)


@asynccontextmanager
async def running(config):
    """An agent; the address it listens on, and the events that stop it."""
    stop, end_kernels = trio.Event(), trio.Event()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            agent = partial(run_agent, config, stop=stop, end_kernels=end_kernels)
            yield await nursery.start(agent), stop, end_kernels


async def start_kernels(site):
    async with site.agent() as registry:
        for _ in range(2):
            spec = site.spec()
            await registry.create_kernel(spec)
            await run(registry, spec, "r", "1")


async def test_an_agent_that_is_stopped_tells_its_address_and_leaves_its_kernels(site, config):
    await start_kernels(site)
    before = shims_of(site.data_dir)
    with trio.fail_after(PATIENCE):
        async with running(config) as (started, stop, _):
            assert re.fullmatch(r"tcp://127\.0\.0\.1:[1-9]\d*", started["addr"])
            began = trio.current_time()
            stop.set()
        assert trio.current_time() - began < 3
    assert shims_of(site.data_dir) == before
    assert len(before) == 2


async def test_an_agent_that_is_told_to_end_its_kernels_leaves_no_process(site, config):
    await start_kernels(site)
    async with running(config) as (_, _, end_kernels):
        end_kernels.set()
    assert shims_of(site.data_dir) == []


@pytest.mark.parametrize("bind", ["0.0.0.0:6001", "[::]:6001"])
async def test_an_address_that_others_reach_needs_isolation_or_consent(config, bind):
    stop = trio.Event()
    cluster = {"advertised_addr": "192.0.2.1:6001", "manager_url": "http://127.0.0.1:1", "join_token": "t"}
    unisolated = attrs.evolve(config, bind=bind, isolation="none", **cluster)
    with pytest.raises(ConfigError, match="allow-unisolated"):
        await run_agent(unisolated, stop=stop, end_kernels=trio.Event())


async def test_an_address_that_is_taken_is_refused_in_a_sentence(config):
    async with running(config) as (started, stop, _):
        taken = attrs.evolve(
            config, data_dir=config.data_dir / "other", bind=started["addr"].removeprefix("tcp://")
        )
        with pytest.raises(ConfigError, match=r"agent\.bind.*in use"):
            await run_agent(taken, stop=trio.Event(), end_kernels=trio.Event())
        # The same of an encrypted link, and before the token is spent.
        joining = attrs.evolve(taken, manager_url="http://127.0.0.1:1", join_token="t")
        with pytest.raises(ConfigError, match=r"agent\.bind.*in use"):
            await run_agent(joining, stop=trio.Event(), end_kernels=trio.Event())
        stop.set()


def test_a_data_directory_that_kernels_accounts_cannot_pass_is_refused(site, monkeypatch):
    monkeypatch.setattr("backendai_mgr.agent.build.separate_accounts", lambda: True)
    closed = site.data_dir / "closed"
    closed.mkdir(0o700)
    site.data_dir.chmod(0o711)
    with pytest.raises(ConfigError, match=rf"data-dir.*{re.escape(str(closed))} \(mode 0700\)"):
        prepare_data_dir(closed / "below")
    closed.chmod(0o711)
    assert prepare_data_dir(closed / "below") == closed / "below"


def test_a_data_directory_that_cannot_be_made_is_refused(site):
    (site.data_dir / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made"):
        prepare_data_dir(site.data_dir / "file" / "below")


async def test_a_socket_folder_that_others_can_enter_is_refused(config):
    (config.data_dir / "run").mkdir()
    (config.data_dir / "run").chmod(0o755)
    try:
        with pytest.raises(ConfigError, match="0755"):
            await run_agent(config, stop=trio.Event(), end_kernels=trio.Event())
    finally:
        (config.data_dir / "run").chmod(0o700)
