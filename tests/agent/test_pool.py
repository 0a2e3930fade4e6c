"""Kernels that were ready before anybody asked."""

import os
import signal

import pytest
import trio

from backendai_mgr.agent.accounts import separate_accounts
from backendai_mgr.domain.status import KernelState

from .harness import (
    Site,
    destroy,
    new_site,
    processes_of,
    removed,
    run,
    shims_of,
    until,
)


@pytest.fixture
def site():
    with new_site() as site:
        site.pool_size = 2
        yield site


def pool(registry) -> dict:
    (stats,) = registry.make_report().stats["pool"].values()
    return stats


async def full(registry, site: Site) -> None:
    """Until the pool is full."""
    await until(lambda: pool(registry)["ready"] == site.pool_size)


def ready_folders(site: Site) -> list[str]:
    return os.listdir(site.data_dir / "ready")


async def test_a_ready_kernel_is_taken_and_replaced(site):
    async with site.agent() as registry:
        await full(registry, site)
        before = shims_of(site.data_dir)
        assert len(before) == 2
        spec = site.spec(environ={"GREETING": "hello"})
        report = await registry.create_kernel(spec)
        assert (report.state, report.incarnation) == (KernelState.RUNNING, 1)
        out, status = await run(
            registry,
            spec,
            "a",
            "import os; print(os.environ['GREETING'], os.environ['BACKENDAI_KERNEL_ID'], os.getcwd())\n"
            "import subprocess; print(subprocess.run('echo $GREETING', shell=True, text=True,"
            " capture_output=True).stdout)",
        )
        assert out.split() == ["hello", str(spec.kernel_id), "/home/work", "hello"]
        assert status.state == "finished"
        assert {k: pool(registry)[k] for k in ("hits", "misses")} == {"hits": 1, "misses": 0}
        await full(registry, site)
        assert pool(registry)["refill_seconds"] > 0
        assert len(shims_of(site.data_dir)) == 3
        await destroy(registry, site, spec)
        await removed(registry, site, spec)
        assert len(shims_of(site.data_dir)) == 2
    assert shims_of(site.data_dir) == []
    assert ready_folders(site) == []


async def test_each_ready_kernel_has_an_account_of_its_own(site):
    async with site.agent() as registry:
        await full(registry, site)
        uids = []
        for _ in range(2):
            spec = site.spec()
            await registry.create_kernel(spec)
            out, _ = await run(registry, spec, "a", "import os; open('x', 'w'); print(os.getuid())")
            uids.append(int(out))
        assert pool(registry)["hits"] == 2
        assert len(set(uids)) == (2 if separate_accounts() else 1)


async def test_an_empty_pool_starts_cold(site):
    async with site.agent() as registry:
        await full(registry, site)
        specs = [site.spec() for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for spec in specs:
                nursery.start_soon(registry.create_kernel, spec)
        stats = pool(registry)
        assert stats["hits"] + stats["misses"] == 5
        assert stats["misses"] >= 1
        for spec in specs:
            assert (await run(registry, spec, "a", "print(6 * 7)"))[0] == "42\n"


@pytest.mark.parametrize(
    "environ", [{"PYTHONHASHSEED": "7"}, {"PYTHONSAFEPATH": "1"}, {"LD_LIBRARY_PATH": "/nowhere"}]
)
async def test_what_can_only_be_given_at_the_start_starts_cold(site, environ):
    async with site.agent() as registry:
        await full(registry, site)
        spec = site.spec(environ=environ)
        await registry.create_kernel(spec)
        (name, value), *_ = environ.items()
        assert (await run(registry, spec, "a", f"import os; print(os.environ[{name!r}])"))[0] == f"{value}\n"
        assert pool(registry)["hits"] == 0


async def test_a_dead_member_is_replaced_and_never_given_away(site):
    async with site.agent() as registry:
        await full(registry, site)
        dead = shims_of(site.data_dir)
        for pid in dead:
            os.kill(pid, signal.SIGKILL)
        spec = site.spec()
        await registry.create_kernel(spec)
        assert (await run(registry, spec, "a", "print(6 * 7)"))[0] == "42\n"
        await full(registry, site)
        assert not set(dead) & set(shims_of(site.data_dir))
        await until(lambda: len(ready_folders(site)) == 2)


async def test_a_kernel_from_the_pool_is_adopted_and_restarts(site):
    async with site.agent() as registry:
        await full(registry, site)
        spec = site.spec()
        await registry.create_kernel(spec)
        await run(registry, spec, "a", "x = 5; open('kept', 'w').write('y')")
    async with site.agent() as registry:
        assert (await run(registry, spec, "b", "x"))[0] == "5\n"
        again = site.spec(kernel_id=spec.kernel_id, incarnation=2)
        await registry.create_kernel(again)
        assert (await run(registry, again, "c", "'x' in dir(), open('kept').read()"))[0] == "(False, 'y')\n"
        await destroy(registry, site, again)
    assert processes_of(spec.kernel_id) == []


async def test_what_a_killed_agent_had_ready_is_ended_by_the_next(site):
    with trio.CancelScope() as scope:
        async with site.agent() as registry:
            await full(registry, site)
            # As a killed agent would: no farewell to the members.
            left = shims_of(site.data_dir)
            site.backend._pool._discard = _nothing
            scope.cancel()
    assert sorted(shims_of(site.data_dir)) == sorted(left)
    site.pool_size = 0
    async with site.agent():
        await until(lambda: not shims_of(site.data_dir))
        await until(lambda: not ready_folders(site))


async def _nothing(member) -> None:
    await trio.lowlevel.checkpoint()
