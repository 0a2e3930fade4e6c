"""An agent that goes away and comes back finds its kernels as they are."""

import os
import signal

import pytest
import trio

from backendai_mgr.agent.processes import Process
from backendai_mgr.agent.scratch import DataDirInUse, read_json
from backendai_mgr.domain.status import KernelState
from backendai_mgr.wire.rpc import AgentRefusal

from .harness import (
    PATIENCE,
    destroy,
    ended,
    processes_of,
    read_all,
    removed,
    run,
    shims_of,
    start,
    text,
)


async def kill_shim(site, spec):
    """SIGKILL the kernel's shim, and wait until it is dead."""
    process = Process.hold(read_json(site.scratch(spec) / "shim.json")["pid"])
    process.kill()
    with trio.fail_after(PATIENCE):
        await process.wait()
    process.close()


async def test_kernels_keep_their_state_and_lose_no_output_while_no_agent_is_there(site):
    async with site.agent() as registry:
        boot = registry.make_report().boot
        spec = site.spec(slots={"cpu": "2", "mem": "100000000"})
        await registry.create_kernel(spec)
        await run(registry, spec, "set", "value = 42")
        code = (
            "import os, time\n"
            "for i in range(3000):\n"
            "    print(i)\n"
            "    while i == 1000 and not os.path.exists('go'): time.sleep(0.005)\n"
        )
        await start(registry, spec, "long", code)
        await registry.read_output(spec.kernel_id, "long", offset=0, max_bytes=100, wait=PATIENCE)
        poll = await registry.poll_run(spec.kernel_id, "long", wait=0, max_bytes=7)
    (site.scratch(spec) / "work" / "go").touch()
    async with site.agent() as registry:
        report = registry.make_report()
        assert report.boot != boot
        assert [(k.id, k.state) for k in report.kernels] == [(spec.kernel_id, KernelState.RUNNING)]
        assert report.kernels[0].session_id == spec.session_id
        assert report.occupied == {"cpu": "2", "mem": "100000000"}
        assert (await registry.create_kernel(spec)).state is KernelState.RUNNING
        records, status = await read_all(registry, spec.kernel_id, "long")
        assert text(records) == "".join(f"{i}\n" for i in range(3000))
        assert status.state == "finished"
        more = await registry.poll_run(spec.kernel_id, "long", wait=0, max_bytes=7)
        assert more.records[0].offset == poll.next_offset
        assert (await run(registry, spec, "get", "print(value)"))[0] == "42\n"
        await destroy(registry, site, spec)
        assert processes_of(spec.kernel_id) == []


async def test_a_kernel_that_died_meanwhile_is_reported_until_that_is_acknowledged(site):
    async with site.agent() as registry:
        spec = site.spec()
        await registry.create_kernel(spec)
        await run(registry, spec, "done", "print('kept')")
        await start(registry, spec, "cut", "import time; time.sleep(1000)")
    await kill_shim(site, spec)
    for _ in range(2):
        async with site.agent() as registry:
            (report,) = registry.make_report().kernels
            assert (report.state, report.exit.reason) == (KernelState.ENDED, "lost")
            assert text((await read_all(registry, spec.kernel_id, "done"))[0]) == "kept\n"
            assert (await registry.get_run(spec.kernel_id, "cut")).state == "lost"
    async with site.agent() as registry:
        registry.acknowledge([(spec.kernel_id, 1)])
        await removed(registry, site, spec)
    assert processes_of(spec.kernel_id) == []


async def test_an_end_that_nobody_acknowledged_is_reported_by_the_next_agent_with_its_reason(site):
    async with site.agent() as registry:
        spec = site.spec()
        await registry.create_kernel(spec)
        await registry.destroy_kernel(spec.kernel_id, 1, "idle-timeout")
        await ended(registry, spec.kernel_id)
    async with site.agent() as registry:
        (report,) = registry.make_report().kernels
        assert (report.state, report.exit.reason) == (KernelState.ENDED, "idle-timeout")
        registry.acknowledge([(spec.kernel_id, 1)])
        await removed(registry, site, spec)
    assert shims_of(site.data_dir) == []


async def test_a_kernel_whose_end_was_acknowledged_just_before_the_agent_died_is_cleaned_away(site):
    async with site.agent() as registry:
        spec = site.spec()
        await registry.create_kernel(spec)
        await registry.destroy_kernel(spec.kernel_id, 1, "user-requested")
        await ended(registry, spec.kernel_id)
        registry.acknowledge([(spec.kernel_id, 1)])
    async with site.agent() as registry:
        assert registry.make_report().kernels == []
        await removed(registry, site, spec)
    assert shims_of(site.data_dir) == []


async def test_another_process_with_the_shims_number_is_not_taken_for_it(site):
    async with site.agent() as registry:
        spec = site.spec()
        await registry.create_kernel(spec)
    await kill_shim(site, spec)
    path = site.scratch(spec) / "shim.json"
    text_of_shim = path.read_text().replace(str(read_json(path)["pid"]), str(os.getpid()))
    path.write_text(text_of_shim)
    async with site.agent() as registry:
        assert (await ended(registry, spec.kernel_id)).exit.reason == "lost"


@pytest.mark.parametrize("content", [None, "", "{}", '{"kernel_id": 5}'])
async def test_a_folder_that_was_left_half_made_is_removed(site, content):
    async with site.agent():
        spec = site.spec()
    folder = site.scratch(spec)
    folder.mkdir()
    if content is not None:
        (folder / "kernel.json").write_text(content)
    async with site.agent() as registry:
        assert registry.make_report().kernels == []
        assert not folder.exists()
        assert (await registry.create_kernel(spec)).state is KernelState.RUNNING


async def test_one_data_directory_has_one_agent(site):
    async with site.agent():
        with pytest.raises(DataDirInUse, match="in use"):
            async with site.agent():
                pass


async def test_a_shim_that_hangs_while_it_is_told_to_end_is_killed(site, monkeypatch):
    monkeypatch.setattr("backendai_mgr.agent.kernel.END_TIMEOUT", 0.2)
    async with site.agent() as registry:
        spec = site.spec()
        await registry.create_kernel(spec)
        os.kill(read_json(site.scratch(spec) / "shim.json")["pid"], signal.SIGSTOP)
        await destroy(registry, site, spec)
    assert processes_of(spec.kernel_id) == []
    assert shims_of(site.data_dir) == []


async def test_a_shim_that_hangs_is_found_and_killed(site, monkeypatch):
    monkeypatch.setattr("backendai_mgr.agent.kernel.HEARTBEAT", 0.05)
    monkeypatch.setattr("backendai_mgr.agent.shimlink.ANSWER_TIMEOUT", 0.2)
    async with site.agent() as registry:
        spec = site.spec()
        await registry.create_kernel(spec)
        os.kill(read_json(site.scratch(spec) / "shim.json")["pid"], signal.SIGSTOP)
        with pytest.raises(AgentRefusal, match="kernel-silent"):
            await registry.list_runs(spec.kernel_id)
        assert (await ended(registry, spec.kernel_id)).exit.reason == "lost"
        assert processes_of(spec.kernel_id) == []
