import json
import os
import signal
from contextlib import suppress
from functools import partial

import pytest
import trio

from backendai_mgr.agent.accounts import separate_accounts
from backendai_mgr.agent.scratch import read_json
from backendai_mgr.domain.status import KernelState
from backendai_mgr.runtime.paths import socket_dir
from backendai_mgr.wire.rpc import AgentRefusal

from .harness import (
    PATIENCE,
    destroy,
    ended,
    new_site,
    processes_of,
    read_all,
    removed,
    run,
    shims_of,
    start,
    text,
)

STRAY = "import subprocess; subprocess.Popen(['setsid', 'sleep', '1000']); print('started')"


async def gather(*calls):
    """The results of the calls, made at the same time."""
    results = [None] * len(calls)

    async def call(index, make):
        results[index] = await make()

    async with trio.open_nursery() as nursery:
        for index, make in enumerate(calls):
            nursery.start_soon(call, index, make)
    return results


def kernels(registry):
    return {report.id: report for report in registry.make_report().kernels}


# ---------------------------------------------------------------- creation


async def test_a_created_kernel_runs_code_and_is_reported(registry, site):
    spec = site.spec()
    report = await registry.create_kernel(spec)
    assert (report.id, report.incarnation, report.state) == (spec.kernel_id, 1, KernelState.RUNNING)
    assert (report.session_id, report.cluster_id) == (spec.session_id, "test")
    assert kernels(registry)[spec.kernel_id].state is KernelState.RUNNING
    out, status = await run(registry, spec, "first", "print(1 + 1)")
    assert (out, status.state, status.exit_code) == ("2\n", "finished", 0)


async def test_two_creations_at_once_start_one_kernel(registry, site):
    spec = site.spec()
    create = partial(registry.create_kernel, spec)
    reports = await gather(create, create, create)
    assert [report.state for report in reports] == [KernelState.RUNNING] * 3
    assert len(shims_of(site.data_dir)) == 1
    assert (await registry.create_kernel(spec)).state is KernelState.RUNNING
    assert len(shims_of(site.data_dir)) == 1


async def test_a_cancelled_creation_goes_on(registry, site):
    spec = site.spec()
    with trio.move_on_after(0):
        await registry.create_kernel(spec)
    assert (await registry.create_kernel(spec)).state is KernelState.RUNNING
    assert len(shims_of(site.data_dir)) == 1


async def test_a_lower_incarnation_is_refused(registry, site):
    spec = site.spec(incarnation=3)
    await registry.create_kernel(spec)
    with pytest.raises(AgentRefusal, match="stale-incarnation"):
        await registry.create_kernel(site.spec(kernel_id=spec.kernel_id, incarnation=2))
    assert kernels(registry)[spec.kernel_id].incarnation == 3


async def test_an_ended_and_acknowledged_incarnation_never_starts_again(site):
    async with site.agent() as registry:
        spec = site.spec()
        await registry.create_kernel(spec)
        await destroy(registry, site, spec)
        with pytest.raises(AgentRefusal, match="stale-incarnation"):
            await registry.create_kernel(spec)
    async with site.agent() as registry:
        with pytest.raises(AgentRefusal, match="stale-incarnation"):
            await registry.create_kernel(spec)
        assert kernels(registry) == {}


async def test_a_creation_that_arrives_after_its_destruction_is_refused(registry, site):
    spec = site.spec()
    await registry.destroy_kernel(spec.kernel_id, spec.incarnation, "user-requested")
    with pytest.raises(AgentRefusal, match="stale-incarnation"):
        await registry.create_kernel(spec)
    assert not site.scratch(spec).exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"image": "local/cobol:1"}, "local/cobol:1"), ({"architecture": "z80"}, "z80")],
)
async def test_what_cannot_be_started_is_refused_and_leaves_nothing(registry, site, changes, reason):
    spec = site.spec(**changes)
    with pytest.raises(AgentRefusal, match=rf"create-failed.*{reason}"):
        await registry.create_kernel(spec)
    await removed(registry, site, spec)
    assert kernels(registry) == {}
    fixed = site.spec(kernel_id=spec.kernel_id)
    assert (await registry.create_kernel(fixed)).state is KernelState.RUNNING


async def test_an_interpreter_that_dies_at_once_is_a_failed_creation(registry, site):
    spec = site.spec(environ={"PYTHONHOME": "/nowhere"})
    with pytest.raises(AgentRefusal, match=r"(?s)create-failed: .*exit code 1.*encodings"):
        await registry.create_kernel(spec)
    await removed(registry, site, spec)
    assert shims_of(site.data_dir) == []


async def test_the_environment_is_the_users_and_ours_and_nothing_of_the_agents(site, monkeypatch):
    monkeypatch.setenv("AGENT_SECRET", "x")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    async with site.agent() as registry:
        spec = site.spec(environ={"MINE": "ü", "BACKENDAI_KERNEL_ID": "forged", "LANG": "C"})
        await registry.create_kernel(spec)
        await start(registry, spec, "env", "import os, json; print(json.dumps(dict(os.environ)))")
        records, _ = await read_all(registry, spec.kernel_id, "env")
        environ = json.loads(text(records))
    assert not {"AGENT_SECRET", "PYTHONUNBUFFERED"} & environ.keys()
    assert (environ["MINE"], environ["LANG"]) == ("ü", "C")
    assert environ["BACKENDAI_KERNEL_ID"] == str(spec.kernel_id)
    assert environ["BACKENDAI_SESSION_ID"] == str(spec.session_id)
    assert environ["BACKENDAI_SESSION_NAME"] == "mysession"
    assert environ["OMP_NUM_THREADS"] == "1"
    assert environ["HOME"] == "/home/work"


async def test_plain_processes_do_where_nothing_can_be_enclosed(site):
    site.sandboxed = False
    async with site.agent() as registry:
        spec = site.spec()
        await registry.create_kernel(spec)
        out, _ = await run(registry, spec, "a", "import os; print(os.getcwd(), os.environ['HOME'])")
        assert set(out.split()) == {str(site.scratch(spec) / "work")}
        await run(registry, spec, "b", STRAY)
        await destroy(registry, site, spec)
        assert processes_of(spec.kernel_id) == []


async def test_a_kernel_can_use_its_own_folder_and_not_what_the_agent_keeps(registry, site):
    spec, other = site.spec(environ={"SECRET": "1"}), site.spec()
    await registry.create_kernel(spec)
    await registry.create_kernel(other)
    kept = [str(site.scratch(each) / name) for each in (spec, other) for name in ("spec.json", "runs", "")]
    out, _ = await run(
        registry,
        spec,
        "files",
        "import os\n"
        "open(os.path.expanduser('~/a'), 'w').write('x'); print(open('a').read())\n"
        f"for path in {kept!r}:\n"
        "    print(os.access(path, os.R_OK))\n"
        f"print(os.access({str(site.scratch(other) / 'work')!r}, os.X_OK))\n"
        f"print(os.access({str(socket_dir(site.data_dir))!r}, os.X_OK))\n"
        "print(os.getuid(), os.getgid(), os.getgroups())\n",
    )
    lines = out.splitlines()
    assert lines[0] == "x"
    if separate_accounts():
        assert set(lines[1:9]) == {"False"}
        uid = int(lines[9].split()[0])
        assert lines[9] == f"{uid} {uid} []"
        assert uid >= 20000
        assert (await run(registry, other, "uid", "import os; print(os.getuid())"))[0] != f"{uid}\n"


# ---------------------------------------------------------------- end


async def test_destruction_leaves_no_process_socket_or_file_but_the_runs_once_acknowledged(registry, site):
    spec = site.spec()
    await registry.create_kernel(spec)
    assert (await run(registry, spec, "stray", STRAY))[0] == "started\n"
    await start(registry, spec, "endless", "import time\nwhile True: time.sleep(1)")
    assert len(processes_of(spec.kernel_id)) >= 2
    await registry.destroy_kernel(spec.kernel_id, 1, "user-requested")
    report = await ended(registry, spec.kernel_id)
    assert report.exit.reason == "user-requested"
    assert processes_of(spec.kernel_id) == []
    assert (await registry.get_run(spec.kernel_id, "endless")).state == "lost"
    registry.acknowledge([(spec.kernel_id, 1)])
    assert kernels(registry) == {}
    await removed(registry, site, spec)
    assert shims_of(site.data_dir) == []
    assert list(socket_dir(site.data_dir).iterdir()) == []
    assert (await registry.get_run(spec.kernel_id, "endless")).state == "lost"
    with pytest.raises(AgentRefusal, match="no-such-kernel"):
        await registry.files(spec.kernel_id).list(".")


async def test_a_destruction_during_the_start_ends_the_kernel(registry, site):
    spec = site.spec()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def create():
            with suppress(AgentRefusal):  # or it had come to run
                await registry.create_kernel(spec)
                await ended(registry, spec.kernel_id)
                registry.acknowledge([(spec.kernel_id, 1)])

        seen = await registry.wait_changed(-1)
        while spec.kernel_id not in kernels(registry):
            seen = await registry.wait_changed(seen)
        await registry.destroy_kernel(spec.kernel_id, 1, "user-requested")
    await removed(registry, site, spec)
    assert shims_of(site.data_dir) == []


async def test_a_kernel_that_ends_itself_is_reported_with_its_exit_code(registry, site):
    spec = site.spec()
    await registry.create_kernel(spec)
    await start(registry, spec, "suicide", "import os; os._exit(7)")
    report = await ended(registry, spec.kernel_id)
    assert (report.exit.reason, report.exit.exit_code) == ("self-terminated", 7)
    status = await registry.get_run(spec.kernel_id, "suicide")
    assert (status.state, status.exit_code) == ("lost", None)


async def test_a_killed_shim_ends_its_kernel_and_its_runs_stay_readable(registry, site):
    spec = site.spec()
    await registry.create_kernel(spec)
    await run(registry, spec, "stray", STRAY)
    await start(registry, spec, "cut", "import time\nprint('before', flush=True)\ntime.sleep(1000)")
    first = await registry.read_output(spec.kernel_id, "cut", offset=0, max_bytes=100, wait=PATIENCE)
    assert text(first.records) == "before\n"
    results = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def reader():
            results.append(await read_all(registry, spec.kernel_id, "cut"))

        os.kill(read_json(site.scratch(spec) / "shim.json")["pid"], signal.SIGKILL)
    ((records, status),) = results
    assert (text(records), status.state, status.exit_code) == ("before\n", "lost", None)
    assert (await ended(registry, spec.kernel_id)).exit.reason == "lost"
    assert processes_of(spec.kernel_id) == []
    assert {run.run_id for run in await registry.list_runs(spec.kernel_id)} == {"stray", "cut"}
    assert (await registry.get_run(spec.kernel_id, "stray")).state == "finished"
    again = await start(registry, spec, "cut", "import time\nprint('before', flush=True)\ntime.sleep(1000)")
    assert again.state == "lost"
    with pytest.raises(AgentRefusal, match="run-conflict"):
        await start(registry, spec, "cut", "other")
    with pytest.raises(AgentRefusal, match="kernel-ended"):
        await start(registry, spec, "late", "1")
    assert await registry.interrupt_run(spec.kernel_id, None) is None
    registry.acknowledge([(spec.kernel_id, 1)])
    await removed(registry, site, spec)


async def test_only_ends_of_this_very_incarnation_are_acknowledged(registry, site):
    spec = site.spec(incarnation=2)
    await registry.create_kernel(spec)
    registry.acknowledge([(spec.kernel_id, 2)])  # it has not ended
    await registry.destroy_kernel(spec.kernel_id, 1, "belated")  # an earlier life
    assert kernels(registry)[spec.kernel_id].state is KernelState.RUNNING
    await registry.destroy_kernel(spec.kernel_id, 2, "user-requested")
    await ended(registry, spec.kernel_id)
    registry.acknowledge([(spec.kernel_id, 1), (spec.kernel_id, 3)])
    assert kernels(registry)[spec.kernel_id].state is KernelState.ENDED


async def test_a_later_incarnation_replaces_the_kernel_and_keeps_its_runs(registry, site):
    spec = site.spec()
    await registry.create_kernel(spec)
    await run(registry, spec, "old", "x = 1; open('kept', 'w').write('kept'); print('old')")
    await start(registry, spec, "cut", "import time; print('so far', flush=True); time.sleep(1000)")
    await start(registry, spec, "queued", "print('never')")
    await registry.read_output(spec.kernel_id, "cut", offset=0, max_bytes=100, wait=PATIENCE)
    later = site.spec(kernel_id=spec.kernel_id, incarnation=2)
    create = partial(registry.create_kernel, later)
    await gather(create, create)
    assert len(shims_of(site.data_dir)) == 1
    assert [(r.incarnation, r.state) for r in kernels(registry).values()] == [(2, KernelState.RUNNING)]
    assert text((await read_all(registry, spec.kernel_id, "old"))[0]) == "old\n"
    for run_id, printed in (("cut", "so far\n"), ("queued", "")):
        records, status = await read_all(registry, spec.kernel_id, run_id)
        assert (status.state, status.reason, text(records)) == ("lost", "restarted", printed)
    assert [r.run_id for r in await registry.list_runs(spec.kernel_id)] == ["queued", "cut", "old"]
    again = await start(registry, later, "queued", "print('never')")
    assert (again.state, again.incarnation) == ("lost", 1), "it is not run again by itself"
    out, _ = await run(registry, later, "new", "print('x' in globals(), open('kept').read())")
    assert out == "False kept\n"
    registry.acknowledge([(spec.kernel_id, 1)])
    with pytest.raises(AgentRefusal, match="stale-incarnation"):
        await start(registry, spec, "for-the-old-one", "1")
    await destroy(registry, site, later)


async def test_a_next_life_that_fails_to_start_leaves_the_files_to_another_try(registry, site):
    spec = site.spec()
    await registry.create_kernel(spec)
    await run(registry, spec, "old", "open('kept', 'w').write('kept'); print('old')")
    broken = site.spec(kernel_id=spec.kernel_id, incarnation=2, image="local/nothing:1")
    with pytest.raises(AgentRefusal, match="no image local/nothing:1"):
        await registry.create_kernel(broken)
    report = await ended(registry, spec.kernel_id)
    assert (report.incarnation, report.exit.reason) == (2, "failed-to-start")
    later = site.spec(kernel_id=spec.kernel_id, incarnation=2)
    await registry.create_kernel(later)
    assert (await run(registry, later, "new", "print(open('kept').read())"))[0] == "kept\n"
    assert text((await read_all(registry, spec.kernel_id, "old"))[0]) == "old\n"
    dying = site.spec(
        kernel_id=spec.kernel_id,
        incarnation=3,
        environ={"PYTHONHOME": "/nonexistent"},
    )
    with pytest.raises(AgentRefusal, match="while it was starting"):
        await registry.create_kernel(dying)
    report = await ended(registry, spec.kernel_id)
    assert (report.incarnation, report.exit.reason) == (3, "failed-to-start")
    await destroy(registry, site, dying)


async def test_all_kernels_can_be_ended_at_once_and_their_ends_are_still_reported_later(site):
    async with site.agent() as registry:
        specs = [site.spec() for _ in range(3)]
        await gather(*(partial(registry.create_kernel, spec) for spec in specs))
        with trio.fail_after(PATIENCE):
            await registry.end_all("manager-shutdown")
        assert shims_of(site.data_dir) == []
    async with site.agent() as registry:
        reports = kernels(registry)
        assert {reports[spec.kernel_id].exit.reason for spec in specs} == {"manager-shutdown"}
        registry.acknowledge([(spec.kernel_id, 1) for spec in specs])
        for spec in specs:
            await removed(registry, site, spec)


# ---------------------------------------------------------------- reports


async def test_reports_count_up_and_tell_what_is_occupied(registry, site):
    first = registry.make_report()
    spec = site.spec(slots={"cpu": "1.5", "mem": "100000000"})
    await registry.create_kernel(spec)
    second = registry.make_report()
    assert second.boot == first.boot
    assert second.seq > first.seq
    assert (first.occupied, second.occupied) == ({}, {"cpu": "1.5", "mem": "100000000"})
    assert second.capacity == {"cpu": "4", "mem": "1073741824"}
    await registry.destroy_kernel(spec.kernel_id, 1, "user-requested")
    await ended(registry, spec.kernel_id)
    assert registry.make_report().occupied == {}


async def test_a_change_wakes_whoever_waits_for_one(registry, site):
    seen = await registry.wait_changed(-1)
    with trio.move_on_after(0.01) as scope:
        await registry.wait_changed(seen)
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.create_kernel, site.spec())
        assert await registry.wait_changed(seen) > seen


async def test_a_very_long_data_directory_works():
    with new_site("/".join(["d" * 30] * 4)) as site:
        assert len(str(site.data_dir)) > 120
        async with site.agent() as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            assert (await run(registry, spec, "r", "print('ok')"))[0] == "ok\n"
            await destroy(registry, site, spec)
