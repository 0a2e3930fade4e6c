"""A kernel ends when its time is up, counted from its own start and not from its agent's."""

import trio

from backendai_mgr.domain.status import KernelState

from .harness import PATIENCE, ended, read_all, start


async def test_a_kernel_ends_when_its_time_is_up_and_its_run_is_told_why(site):
    site.session_lifetime = 0.5
    with trio.fail_after(2 * PATIENCE):
        async with site.agent() as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            await start(registry, spec, "long", "import time; time.sleep(1000)")
            report = await ended(registry, spec.kernel_id)
            assert report.exit.reason == "lifetime-exceeded"
            _, run = await read_all(registry, spec.kernel_id, "long")
            assert (run.state, run.reason) == ("lost", "lifetime-exceeded")


async def test_the_time_goes_on_while_no_agent_is_there(site):
    with trio.fail_after(2 * PATIENCE):
        async with site.agent() as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
        site.session_lifetime = 1000.0
        async with site.agent() as registry:
            (report,) = registry.make_report().kernels
            assert report.state is KernelState.RUNNING
        site.session_lifetime = 0.001
        async with site.agent() as registry:
            assert (await ended(registry, spec.kernel_id)).exit.reason == "lifetime-exceeded"


async def test_a_restart_begins_a_new_lifetime(site):
    site.session_lifetime = 1.0
    with trio.fail_after(2 * PATIENCE):
        async with site.agent() as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            began = trio.current_time()
            await registry.create_kernel(site.spec(kernel_id=spec.kernel_id, incarnation=2))
            report = await ended(registry, spec.kernel_id)
            assert (report.incarnation, report.exit.reason) == (2, "lifetime-exceeded")
            assert trio.current_time() - began >= 0.95, "not the first one's remainder"
