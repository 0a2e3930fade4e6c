"""The agent is killed at each of its crash points; the next one puts things right."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest
import trio

import backendai_mgr
from backendai_mgr.agent.accounts import separate_accounts
from backendai_mgr.domain.status import KernelState
from backendai_mgr.runtime.paths import check_traversable
from backendai_mgr.shim.failpoint import VARIABLE
from backendai_mgr.wire.rpc import AgentRefusal, RunOrder
from tests.system.traces import traces

from .harness import PATIENCE, Site, destroy, ended, processes_of, removed, run, run_spec, shims_of, until
from .test_member import JOINING
from .victim import WITNESS

#: The checkout comes last on the path: it has the tests, while the package may be installed elsewhere.
VICTIM = f"import sys, runpy; sys.path.append({str(Path(__file__).parents[2])!r})\n" + (
    "runpy.run_module('tests.agent.victim', run_name='__main__', alter_sys=True)"
)


async def victim(site: Site, kernel_id, action, *more, failpoint="", skip=0) -> subprocess.CompletedProcess:
    """Run the action in an agent that kills itself at the failpoint, once it has passed it *skip* times."""
    with trio.fail_after(2 * PATIENCE):
        return await trio.run_process(
            [sys.executable, "-c", VICTIM, str(site.data_dir), str(kernel_id), action, *more],
            env={**os.environ, VARIABLE: f"{failpoint}=kill@{skip + 1}" if failpoint else ""},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


COLD = ["kernel.after_scratch", "kernel.after_shim_spawned"]
AFTER_END = ["destroy.after_retire", "destroy.after_archive", "destroy.before_remove", "destroy.after_remove"]
STARTED = "run.after_answer"
WARM = ["kernel.after_given", "kernel.after_assigned", "kernel.after_moved"]


def test_every_crash_point_is_reached_below() -> None:
    agent = Path(backendai_mgr.__file__).parent / "agent"
    names: set[str] = set()
    for source in agent.rglob("*.py"):
        names |= set(re.findall(r'failpoint\("([^"]+)"\)', source.read_text()))
    assert names == {*COLD, *WARM, *AFTER_END, "destroy.after_end", "restart.after_gone", STARTED, *JOINING}


@pytest.mark.parametrize("failpoint", WARM)
async def test_an_agent_that_died_while_giving_a_kernel_away_can_start_it_again(site, failpoint):
    kernel_id = uuid4()
    died = await victim(site, kernel_id, "create-warm", failpoint=failpoint)
    assert died.returncode == -signal.SIGKILL, died.stderr
    async with site.agent() as registry:
        spec = site.spec(kernel_id=kernel_id)
        assert (await registry.create_kernel(spec)).state is KernelState.RUNNING
        await until(lambda: len(shims_of(site.data_dir)) == 1)
        assert (await run(registry, spec, "r", "print('ok')"))[0] == "ok\n"
        await destroy(registry, site, spec)
    assert shims_of(site.data_dir) == []


@pytest.mark.parametrize("failpoint", COLD)
async def test_an_agent_that_died_while_starting_a_kernel_can_start_it_again(site, failpoint):
    kernel_id = uuid4()
    assert (await victim(site, kernel_id, "create", failpoint=failpoint)).returncode == -signal.SIGKILL
    async with site.agent() as registry:
        spec = site.spec(kernel_id=kernel_id)
        report = await registry.create_kernel(spec)
        assert report.state is KernelState.RUNNING
        assert len(shims_of(site.data_dir)) == 1
        assert (await run(registry, spec, "r", "print('ok')"))[0] == "ok\n"
        await destroy(registry, site, spec)
    assert processes_of(kernel_id) == []


@pytest.mark.parametrize(("failpoint", "skip"), [("restart.after_gone", 0), *((name, 1) for name in COLD)])
async def test_an_agent_that_died_while_restarting_a_kernel_keeps_its_files(site, failpoint, skip):
    kernel_id = uuid4()
    died = await victim(site, kernel_id, "restart", failpoint=failpoint, skip=skip)
    assert died.returncode == -signal.SIGKILL, died.stderr
    async with site.agent() as registry:
        spec = site.spec(kernel_id=kernel_id, incarnation=2)
        report = await registry.create_kernel(spec)
        assert (report.state, report.incarnation) == (KernelState.RUNNING, 2)
        assert len(shims_of(site.data_dir)) == 1
        assert (await run(registry, spec, "r", "print(open('kept').read())"))[0] == "kept\n"
        await destroy(registry, site, spec)
    assert processes_of(kernel_id) == []


async def test_an_agent_that_died_while_ending_a_kernel_reports_its_end_later(site):
    kernel_id = uuid4()
    result = await victim(site, kernel_id, "end", failpoint="destroy.after_end")
    assert result.returncode == -signal.SIGKILL
    async with site.agent() as registry:
        assert (await ended(registry, kernel_id)).exit.reason == "user-requested"
        await destroy(registry, site, site.spec(kernel_id=kernel_id))
    assert shims_of(site.data_dir) == []


async def test_a_run_whose_start_was_not_answered_is_found_again(site):
    kernel_id = uuid4()
    died = await victim(site, kernel_id, "run", failpoint=STARTED)
    assert died.returncode == -signal.SIGKILL, died.stderr
    async with site.agent() as registry:
        spec = site.spec(kernel_id=kernel_id)
        assert (await run(registry, spec, "r", WITNESS))[0] == "on\n"
        assert not (await registry.start_run(kernel_id, "r", RunOrder.of(1, run_spec(WITNESS)))).created
        assert (site.scratch(spec) / "work" / "starts").read_text() == "x"
        await destroy(registry, site, spec)
    assert processes_of(kernel_id) == []


@pytest.mark.parametrize("failpoint", AFTER_END)
async def test_an_agent_that_died_while_cleaning_up_is_followed_by_one_that_does_it(site, failpoint):
    kernel_id = uuid4()
    died = await victim(site, kernel_id, "end-wholly", failpoint=failpoint)
    assert died.returncode == -signal.SIGKILL, died.stderr
    async with site.agent() as registry:
        spec = site.spec(kernel_id=kernel_id)
        await removed(registry, site, spec)
        with pytest.raises(AgentRefusal, match="is over"):
            await registry.create_kernel(spec)
    assert processes_of(kernel_id) == []
    await until(lambda: not traces(site.data_dir))


async def test_an_ordinary_account_can_run_an_agent_too(site):
    uid = ["61001"] if separate_accounts() else []
    if uid and check_traversable(Path(backendai_mgr.__file__).parent, int(uid[0])):
        pytest.skip("the package lies where other accounts cannot go")
    if uid:
        os.chown(site.data_dir, int(uid[0]), int(uid[0]))
    result = await victim(site, uuid4(), "whole-life", *uid)
    assert result.stderr.decode() == ""
    assert result.stdout == b"done\n"
