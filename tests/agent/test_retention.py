"""What is kept of runs that have ended, and what goes first: as a decision, and on the disk."""

from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.agent.retention import KeptRun, KeptSession, Limits, Plan, Retention, plan
from backendai_mgr.shim import runfile
from backendai_mgr.wire.rpc import AgentRefusal, RunPlace

from .harness import PATIENCE, destroy, read_all, removed, run, start, text

NOW = 1_000_000.0


def kept(name: str, ended_at: float | None, size: int) -> KeptRun:
    return KeptRun(Path("/runs") / name, ended_at, size)


def session(*runs: KeptRun, ended_at: float | None = None) -> KeptSession:
    return KeptSession(folder=Path("/session"), runs=runs, ended_at=ended_at)


A, B, C = kept("a", 1.0, 10), kept("b", 2.0, 10), kept("c", 3.0, 10)
RUNS = kept("running", None, 100)


@pytest.mark.parametrize(
    ("sessions", "limits", "expected"),
    [
        ([session(A, B, C)], Limits(), Plan()),
        ([session(C, A, B)], Limits(session_bytes=29), Plan(outputs=[A])),
        ([session(C, A, B)], Limits(session_bytes=10), Plan(outputs=[A, B])),
        ([session(C, A, B)], Limits(session_bytes=0), Plan(outputs=[A, B, C])),
        # What runs counts, and stays.
        ([session(RUNS, A, B)], Limits(session_bytes=115), Plan(outputs=[A])),
        ([session(RUNS)], Limits(session_bytes=0, all_bytes=0), Plan()),
        # Of all sessions the oldest, whosever it is; what goes for its session's sake is not counted twice.
        ([session(B), session(A, C)], Limits(all_bytes=29), Plan(outputs=[A])),
        ([session(B), session(A, C)], Limits(all_bytes=15), Plan(outputs=[A, B])),
        ([session(B), session(A, C)], Limits(session_bytes=10, all_bytes=20), Plan(outputs=[A])),
        # Too many runs: the oldest go altogether.
        ([session(C, A, B, RUNS)], Limits(session_runs=2), Plan(runs=[A.folder])),
        ([session(C, A, B)], Limits(session_runs=2, session_bytes=10), Plan(runs=[A.folder], outputs=[B])),
        # The time after the session's end.
        ([session(A, ended_at=NOW - 60)], Limits(after_end=60.0), Plan(sessions=[Path("/session")])),
        ([session(A, ended_at=NOW - 60)], Limits(after_end=61.0), Plan()),
        ([session(A), session(B, ended_at=0.0)], Limits(all_bytes=10), Plan(sessions=[Path("/session")])),
    ],
)
def test_the_oldest_goes_first(sessions, limits, expected):
    assert plan(sessions, limits, NOW) == expected


runs = st.builds(kept, st.uuids().map(str), st.none() | st.floats(0, NOW), st.integers(0, 100))
limits = st.builds(
    Limits,
    after_end=st.floats(0, NOW),
    session_bytes=st.integers(0, 400),
    all_bytes=st.integers(0, 1000),
    session_runs=st.integers(0, 6),
)


@given(st.lists(st.tuples(st.lists(runs, max_size=8), st.none() | st.floats(0, NOW)), max_size=5), limits)
def test_whatever_there_is_the_limits_hold_afterwards_and_nothing_goes_in_vain(sessions, limits):
    given_sessions = [
        KeptSession(folder=Path(f"/{number}"), runs=some, ended_at=ended_at)
        for number, (some, ended_at) in enumerate(sessions)
    ]
    going = plan(given_sessions, limits, NOW)
    staying = [each for each in given_sessions if each.folder not in going.sessions]
    for each in given_sessions:
        over = each.ended_at is not None and each.ended_at + limits.after_end <= NOW
        assert (each.folder in going.sessions) == over
    dropped = {run.folder for run in going.outputs}
    assert len(dropped) == len(going.outputs), "nothing is dropped twice"
    assert not dropped & set(going.runs)
    gone = dropped | set(going.runs)
    for each in staying:
        ended = [run for run in each.runs if run.ended_at is not None]
        assert len([run for run in ended if run.folder not in going.runs]) <= limits.session_runs
        left = [run for run in each.runs if run.folder not in gone]
        assert sum(run.bytes for run in left) <= limits.session_bytes or not any(
            run.bytes for run in left if run.ended_at is not None
        )
    left = [run for each in staying for run in each.runs if run.folder not in gone]
    assert sum(run.bytes for run in left) <= limits.all_bytes or not any(
        run.bytes for run in left if run.ended_at is not None
    )
    assert all(run.ended_at is not None and run.bytes for run in going.outputs)


async def test_the_runs_of_a_kernel_that_is_gone_can_be_read_until_their_time_is_over(site):
    with trio.fail_after(2 * PATIENCE):
        async with site.agent() as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            await run(registry, spec, "ended", "print('hello')\n1/0")
            await start(registry, spec, "cut", "print('so far', flush=True)\nimport time; time.sleep(1000)")
            await registry.read_output(spec.kernel_id, "cut", offset=0, max_bytes=9, wait=PATIENCE)
            await destroy(registry, site, spec)
            await told(registry, spec)
        async with site.agent() as registry:
            assert registry.make_report().kernels == []
            await told(registry, spec)
            await registry.delete_run(spec.kernel_id, "cut")
            with pytest.raises(AgentRefusal, match="no-such-run"):
                await registry.get_run(spec.kernel_id, "cut")
            for run_id in ("cut", "never"):
                with pytest.raises(AgentRefusal, match="no-such-run"):
                    await registry.delete_run(spec.kernel_id, run_id)
            assert [each.run_id for each in await registry.list_runs(spec.kernel_id)] == ["ended"]
        Retention(registry._store.folders_of_runs, Limits(after_end=0.0)).enforce()
        async with site.agent() as registry:
            with pytest.raises(AgentRefusal, match="no-such-kernel"):
                await registry.get_run(spec.kernel_id, "ended")


async def told(registry, spec):
    """The runs are told as they were."""
    assert [each.run_id for each in await registry.list_runs(spec.kernel_id)] == ["cut", "ended"]
    records, status = await read_all(registry, spec.kernel_id, "ended")
    assert text(records) == "hello\n"
    assert (status.state, status.exit_code) == ("finished", 1)
    records, status = await read_all(registry, spec.kernel_id, "cut", offset=3)
    assert (text(records), status.state, status.reason) == ("far\n", "lost", "user-requested")
    with pytest.raises(AgentRefusal, match="no-such-kernel"):
        await start(registry, spec, "late", "1")


async def test_a_reader_goes_on_while_the_runs_are_put_away(registry, site):
    spec = site.spec()
    await registry.create_kernel(spec)
    await run(registry, spec, "r", "for n in range(5000): print(n)")
    await registry.destroy_kernel(spec.kernel_id, 1, "user-requested")
    await registry.read_output(spec.kernel_id, "r", offset=0, max_bytes=1000, wait=0)
    records, offset = [], 0
    registry.acknowledge([(spec.kernel_id, 1)])
    with trio.fail_after(PATIENCE):
        while True:
            chunk = await registry.read_output(spec.kernel_id, "r", offset=offset, max_bytes=100, wait=0)
            records += chunk.records
            offset = chunk.next_offset
            if offset == chunk.run.end_offset:
                break
            await trio.lowlevel.checkpoint()
        await removed(registry, site, spec)
    assert text(records) == "".join(f"{n}\n" for n in range(5000))


async def test_a_session_over_its_bytes_loses_the_oldest_output_and_tells_where_it_was(registry, site):
    spec = site.spec()
    await registry.create_kernel(spec)
    for name in ("a", "b", "c"):
        await run(registry, spec, name, f"print('{name}' * 9999)")
    retention = Retention(registry._store.folders_of_runs, Limits(session_bytes=25_000))
    retention.enforce()
    assert retention.stats()["kept"] == 3
    assert 20_000 <= retention.stats()["bytes"] <= 25_000
    assert 10_000 <= retention.stats()["dropped_bytes"] <= 12_000
    records, status = await read_all(registry, spec.kernel_id, "a")
    assert [(record.offset, record.gap, record.data) for record in records] == [(0, 10_000, b"")]
    assert (status.state, status.exit_code) == ("finished", 0)
    for name in ("b", "c"):
        assert text((await read_all(registry, spec.kernel_id, name))[0]) == name * 9999 + "\n"
    retention.enforce()
    assert retention.stats()["dropped_bytes"] <= 12_000, "once"
    again = await start(registry, spec, "a", "print('a' * 9999)")
    assert again.state == "finished", "its id stays used"


async def test_of_too_many_runs_the_oldest_are_forgotten(registry, site):
    spec = site.spec()
    await registry.create_kernel(spec)
    for name in ("a", "b", "c"):
        await run(registry, spec, name, "print(1)")
    retention = Retention(registry._store.folders_of_runs, Limits(session_runs=2))
    retention.enforce()
    assert (retention.stats()["kept"], retention.stats()["removed"]) == (2, 1)
    folders = [folder for folder, _ in registry._store.folders_of_runs()]
    assert sum(1 for folder in folders for path in folder.iterdir() if path.name != runfile.NEXT) == 2


async def test_lists_go_on_behind_a_run_and_know_more_than_the_shim_remembers(registry, site, monkeypatch):
    monkeypatch.setattr("backendai_mgr.agent.runs._LISTED", 2)
    spec = site.spec()
    await registry.create_kernel(spec)
    for number in range(4):
        await run(registry, spec, f"r{number}", "1")
    await start(registry, spec, "now", "import time; time.sleep(1000)")
    first = await registry.list_runs(spec.kernel_id, limit=3)
    assert [each.run_id for each in first] == ["now", "r3", "r2"]
    assert first[0].state == "running"
    place = RunPlace(queued_at=first[-1].queued_at, run_id=first[-1].run_id)
    rest = await registry.list_runs(spec.kernel_id, after=place)
    assert [each.run_id for each in rest] == ["r1", "r0"]


async def test_a_kernel_that_comes_back_brings_its_runs_with_it(site):
    """Its end was known and done with when a restart asked for the next incarnation."""
    with trio.fail_after(2 * PATIENCE):
        async with site.agent() as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            await run(registry, spec, "old", "print('old')")
            await destroy(registry, site, spec)
            later = site.spec(kernel_id=spec.kernel_id, incarnation=2)
            await registry.create_kernel(later)
            assert text((await read_all(registry, spec.kernel_id, "old"))[0]) == "old\n"
            assert (await start(registry, later, "old", "print('old')")).incarnation == 1
            assert (await run(registry, later, "new", "print('new')"))[0] == "new\n"
            await destroy(registry, site, later)
            assert {each.run_id for each in await registry.list_runs(spec.kernel_id)} == {"old", "new"}
