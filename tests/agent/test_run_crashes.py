"""The shim is killed at each crash point of a run's path while many ask for it: it starts once at most."""

import re
from pathlib import Path

import pytest
import trio

import backendai_mgr
from backendai_mgr.domain.status import RunState
from backendai_mgr.wire.rpc import AgentRefusal, RunOrder, Started

from .harness import destroy, ended, read_all, run, run_spec

ASKING = 8
SAME = "open('starts', 'a').write('x'); print('y' * 100)"
OTHER = "open('starts', 'a').write('z'); print('other')"


def points() -> list[str]:
    """From the arrival of the order to the note of the run's end. Batch runs have one point of their own."""
    names: set[str] = set()
    for source in (Path(backendai_mgr.__file__).parent / "shim").glob("*.py"):
        names |= set(re.findall(r'failpoint\("((?:run|runlog)\.[^"]+)"\)', source.read_text()))
    return sorted(names - {"run.after_execute"})


async def ask_at_once(registry, kernel_id, *, incarnation) -> tuple[list[str], list[str]]:
    """(which of two bodies got in, what the others were told) when many clients ask at the same time."""
    taken, told = [], []

    async def ask(number: int) -> None:
        name, code = ("other", OTHER) if number % 4 == 3 else ("same", SAME)
        try:
            answer = await registry.start_run(kernel_id, "r", RunOrder.of(incarnation, run_spec(code)))
        except AgentRefusal as refusal:
            told.append(refusal.code)
        else:
            assert isinstance(answer, Started)
            taken.append(name)

    async with trio.open_nursery() as nursery:
        for number in range(ASKING):
            nursery.start_soon(ask, number)
    return taken, told


def test_the_points_are_those_of_a_run() -> None:
    assert {"run.before_meta", "run.after_meta", "run.after_send", "run.after_status"} <= set(points())


@pytest.mark.parametrize("point", points())
async def test_a_shim_killed_on_the_path_of_a_run(site, point):
    site.failpoints = f"{point}=kill"
    async with site.agent() as registry:
        spec = site.spec()
        await registry.create_kernel(spec)
        taken, told = await ask_at_once(registry, spec.kernel_id, incarnation=1)
        report = await ended(registry, spec.kernel_id)
        assert report.exit.reason == "lost"
        assert len({*taken}) <= 1
        assert {*told} <= {"kernel-ended", "run-conflict"}
        listed = [run.run_id for run in await registry.list_runs(spec.kernel_id)]
        assert listed == ([] if point in ("run.before_meta", "run.after_claim") else ["r"])

    site.failpoints = None
    async with site.agent() as registry:
        again = site.spec(kernel_id=spec.kernel_id, incarnation=2)
        await registry.create_kernel(again)
        later, told = await ask_at_once(registry, spec.kernel_id, incarnation=2)
        assert len({*taken, *later}) == 1, "one body has the id, before and after"
        assert {*told} == {"run-conflict"}
        records, status = await read_all(registry, spec.kernel_id, "r")
        starts = site.scratch(spec) / "work" / "starts"
        count = starts.read_text() if starts.exists() else ""
        assert count in ("", "x" if later[0] == "same" else "z")
        if status.state == RunState.FINISHED:
            assert (len(count), sum(len(record.data) for record in records)) == (1, status.end_offset)
        assert status.state in (RunState.FINISHED, RunState.LOST)
        assert (await run(registry, again, "next", "print('well')"))[0] == "well\n"
        await destroy(registry, site, again)
