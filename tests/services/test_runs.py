import attrs
import pytest
import trio

from backendai_mgr.domain.errors import (
    AgentFailed,
    Conflict,
    InvalidParameters,
    NotFound,
    RunConflict,
    Unavailable,
)
from backendai_mgr.domain.status import RunState
from backendai_mgr.services.sessions import CreateRequest
from backendai_mgr.wire.records import Record
from backendai_mgr.wire.rpc import AgentRefusal, RunSpec

from .conftest import ADMIN, CALLER


async def test_a_run_starts_once_and_conflicts_with_another_body(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        _, first = await world.runs.put(CALLER, "test-session", "r1", RunSpec(code="1"))
        live, second = await world.runs.put(CALLER, str(session.id), "r1", RunSpec(code="1"))
        assert (first.created, second.created, live.id) == (True, False, session.id)
        with pytest.raises(RunConflict):
            await world.runs.put(CALLER, "test-session", "r1", RunSpec(code="2"))
        nursery.cancel_scope.cancel()


async def test_the_execute_path_reads_nothing_from_the_database(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await world.running()
        await world.runs.put(CALLER, "test-session", "r1", RunSpec(code="1"))
        world.store.down = True
        await world.runs.put(CALLER, "test-session", "r2", RunSpec(code="1"))
        await world.runs.get(CALLER, "test-session", "r2")
        world.store.down = False
        nursery.cancel_scope.cancel()


async def test_an_ended_session_is_dropped_from_the_directory(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await world.running()
        await world.runs.put(CALLER, "test-session", "r1", RunSpec(code="1"))
        await world.sessions.destroy(CALLER, "test-session", forced=False, owner_access_key=None)
        with pytest.raises(NotFound):
            await world.runs.put(CALLER, "test-session", "r2", RunSpec(code="1"))
        nursery.cancel_scope.cancel()


async def test_the_runs_of_an_ended_session_are_there_as_long_as_its_agent_keeps_them(world, autojump_clock):
    agent = world.agents["i-1"]
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        for name in ("r1", "r2"):
            await world.runs.put(CALLER, "test-session", name, RunSpec(code=name))
        await world.sessions.destroy(CALLER, "test-session", forced=False, owner_access_key=None)
        for name in ("test-session", str(session.id)):
            live, run = await world.runs.get(CALLER, name, "r1")
            assert (live.id, run.run_id) == (session.id, "r1")
        # A client that was not told that its run began asks again.
        _, again = await world.runs.put(CALLER, "test-session", "r1", RunSpec(code="r1"))
        assert (again.created, again.run.run_id) == (False, "r1")
        with pytest.raises(NotFound):
            await world.runs.put(CALLER, "test-session", "r1", RunSpec(code="another"))
        agent.silent = True
        with pytest.raises(Unavailable):
            await world.runs.put(CALLER, "test-session", "r1", RunSpec(code="r1"))
        agent.silent = False
        agent.refuse["get_run"] = AgentRefusal("no-such-kernel")
        with pytest.raises(NotFound, match="not kept") as gone:
            await world.runs.get(CALLER, "test-session", "r1")
        assert gone.value.kind == "run"
        nursery.cancel_scope.cancel()


async def test_runs_are_listed_in_pages_and_deleted_when_they_have_ended(world, autojump_clock):
    agent = world.agents["i-1"]
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        for number in range(5):
            await world.runs.put(CALLER, "test-session", f"r{number}", RunSpec(code="1"))
            key = (session.kernel_id, f"r{number}")
            agent.runs[key] = attrs.evolve(agent.runs[key], queued_at=number / 3)
        seen, after = [], None
        while True:
            _, page, after = await world.runs.list(CALLER, "test-session", limit=2, after=after)
            seen.append([run.run_id for run in page])
            if after is None:
                break
        assert seen == [["r4", "r3"], ["r2", "r1"], ["r0"]]
        for nonsense in ("", "x", "MS4w", "bmFuIHI=", "MS4wIC8v"):
            with pytest.raises(InvalidParameters) as refused:
                await world.runs.list(CALLER, "test-session", limit=2, after=nonsense)
            assert list(refused.value.data) == ["after"]
        with pytest.raises(Conflict, match="has not ended"):
            await world.runs.delete(CALLER, "test-session", "r1")
        agent.runs[key] = attrs.evolve(agent.runs[key], state=RunState.FINISHED)
        await world.runs.delete(CALLER, "test-session", "r4")
        with pytest.raises(NotFound):
            await world.runs.get(CALLER, "test-session", "r4")
        nursery.cancel_scope.cancel()


async def test_a_session_that_never_ran_has_no_runs(world):
    await world.sessions.create(CALLER, CreateRequest(name="session", image="python", enqueue_only=True))
    with pytest.raises(Conflict, match="not running yet"):
        await world.runs.get(CALLER, "session", "r1")
    await world.sessions.destroy(CALLER, "session", forced=False, owner_access_key=None)
    with pytest.raises(Conflict, match="CANCELLED and never ran"):
        await world.runs.get(CALLER, "session", "r1")


async def test_runs_need_exact_names_and_the_legacy_call_takes_prefixes(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await world.running()
        with pytest.raises(NotFound):
            await world.runs.put(CALLER, "test", "r1", RunSpec(code="1"))
        world.agents["i-1"].pieces = [([Record(0, 0, "stdout", b"1\n")], 2, True)]
        result = await world.runs.execute(CALLER, "test", mode="query", run_id=None, spec=RunSpec(code="1"))
        assert (result.status, result.exit_code, result.console) == ("finished", 0, [["stdout", "1\n"]])
        assert len(result.run_id) == 32
        with pytest.raises(NotFound):
            await world.runs.execute(ADMIN, "test", mode="query", run_id=None, spec=RunSpec(code=""))
        nursery.cancel_scope.cancel()


async def test_a_character_between_two_polls_comes_out_whole(world, autojump_clock):
    e = "é".encode()
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await world.running()
        world.agents["i-1"].pieces = [
            ([Record(0, 0, "stdout", b"a" + e[:1])], 2, False),
            ([Record(2, 0, "stdout", e[1:])], 3, True),
        ]
        first = await world.runs.execute(
            CALLER, "test-session", mode="query", run_id="r", spec=RunSpec(code="x")
        )
        assert (first.status, first.console) == ("continued", [["stdout", "a"]])
        second = await world.runs.execute(
            CALLER, "test-session", mode="continue", run_id="r", spec=RunSpec(code="")
        )
        assert (second.status, second.console) == ("finished", [["stdout", "é"]])
        assert not world.runs._folds
        nursery.cancel_scope.cancel()


SPEC = RunSpec(code="x")


@pytest.mark.parametrize(
    ("mode", "run_id", "field"),
    [("batch", "batch-job", "runId"), ("input", None, "runId"), ("", "r", "mode"),
     ("continue", None, "runId"),
     ("query", "a/b", "runId"), ("query", "x" * 65, "runId")],
)  # fmt: skip
async def test_bad_legacy_calls_name_the_field(world, mode, run_id, field):
    with pytest.raises(InvalidParameters) as caught:
        await world.runs.execute(CALLER, "test", mode=mode, run_id=run_id, spec=RunSpec(code=""))
    assert list(caught.value.data) == [field]


@pytest.mark.parametrize(
    ("code", "refusal"),
    [
        ("no-such-kernel", Unavailable),
        ("kernel-silent", Unavailable),
        ("kernel-ended", Conflict),
        ("stale-incarnation", Unavailable),
        ("queue-full", Conflict),
        ("bad-request", InvalidParameters),
        ("something-new", AgentFailed),
    ],
)
async def test_what_an_agent_refuses_is_told_in_our_words(world, autojump_clock, code, refusal):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await world.running()
        world.agents["i-1"].refuse["start_run"] = AgentRefusal(code, "because")
        with pytest.raises(refusal):
            await world.runs.put(CALLER, "test-session", "r1", RunSpec(code="1"))
        world.agents["i-1"].silent = True
        with pytest.raises(Unavailable):
            await world.runs.put(CALLER, "test-session", "r1", RunSpec(code="1"))
        nursery.cancel_scope.cancel()


async def test_a_session_that_does_not_run_yet_says_so(world):
    await world.sessions.create(CALLER, CreateRequest(name="session", image="python", enqueue_only=True))
    with pytest.raises(Conflict, match="not running yet"):
        await world.runs.put(CALLER, "session", "r1", RunSpec(code="1"))
