import attrs
import pytest
import trio

from backendai_mgr.domain.errors import (
    Forbidden,
    InsufficientPrivilege,
    InvalidParameters,
    NotFound,
    QuotaExceeded,
    SessionExists,
    TooManyMatches,
    Unavailable,
)
from backendai_mgr.domain.status import Status
from backendai_mgr.services.sessions import CreateRequest
from backendai_mgr.services.stopping import end_all_sessions

from ..fakes.store import wall_clock
from .conftest import ADMIN, CALLER


def request(**changes):
    return attrs.evolve(CreateRequest(name="test-session", image="python"), **changes)


async def test_a_session_is_created_runs_and_ends(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        assert session.agent_id == "i-1"
        assert session.incarnation == 1
        stats = await world.sessions.destroy(CALLER, "test-session", forced=False, owner_access_key=None)
        assert stats["status"] == "terminated"
        assert world.store.sessions[session.id].reasons["info"] == "user-requested"
        assert world.agents["i-1"].destroyed == [(session.id, 1)]
        await world.running()  # the name is free again at once
        nursery.cancel_scope.cancel()


async def test_the_same_name_finds_the_live_session(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        session = await world.running()
        again = await world.sessions.create(CALLER, request())
        assert (again.created, again.session.id, again.status) == (False, session.id, "RUNNING")
        with pytest.raises(SessionExists) as caught:
            await world.sessions.create(CALLER, request(reuse=False))
        assert caught.value.data == {"existingSessionId": str(session.id)}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("changes", "refusal", "field"),
    [
        ({"name": "from-template"}, InvalidParameters, "name"),
        ({"type": "batch"}, InvalidParameters, "type"),
        ({"starts_at": "1d"}, InvalidParameters, "starts_at"),
        ({"dependencies": ["x"]}, InvalidParameters, "dependencies"),
        ({"callback_url": "http://x"}, InvalidParameters, "callback_url"),
        ({"preopen_ports": range(2000, 2017)}, InvalidParameters, "config.preopen_ports"),
        ({"bootstrap_script": "ls"}, InvalidParameters, "bootstrap_script"),
        ({"domain": "other"}, InvalidParameters, "domain"),
        ({"resources": {"gpu": 1}}, InvalidParameters, "config.resources.gpu"),
        ({"owner_access_key": "nobody"}, InvalidParameters, "owner_access_key"),
        ({"owner_access_key": ADMIN.access_key}, Forbidden, None),
        ({"agent_list": ["i-1"]}, InsufficientPrivilege, None),
        ({"mounts": ["data"]}, NotFound, None),
        ({"image": "unknown"}, NotFound, None),
        ({"scaling_group": "gpu"}, NotFound, None),
        ({"cluster_size": 2}, QuotaExceeded, None),
    ],
)
async def test_refused(world, changes, refusal, field):
    with pytest.raises(refusal) as caught:
        await world.sessions.create(CALLER, request(**changes))
    assert field is None or list(caught.value.data) == [field]
    assert not world.store.sessions


async def test_someone_who_is_no_member_is_refused(world):
    world.store.group_id = None
    with pytest.raises(InvalidParameters) as caught:
        await world.sessions.create(CALLER, request())
    assert list(caught.value.data) == ["group"]


async def test_enqueue_only_returns_at_once(world):
    creation = await world.sessions.create(CALLER, request(enqueue_only=True))
    assert creation.status == "PENDING"


async def test_a_wait_that_runs_out_leaves_the_session_queued(world, autojump_clock):
    creation = await world.sessions.create(CALLER, request(max_wait=5))
    assert (creation.status, creation.session.status) == ("TIMEOUT", Status.PENDING)


async def test_a_start_that_fails_says_so(world, autojump_clock):
    from backendai_mgr.wire.rpc import AgentRefusal

    world.agents["i-1"].refuse["create_kernel"] = AgentRefusal("create-failed", "no interpreter")
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        creation = await world.sessions.create(CALLER, request())
        assert creation.status == "CANCELLED"
        why = await world.sessions.why(CALLER, "test-session")
        assert why["sentence"] == "It could not be started: no interpreter."
        assert why["info"] == "failed-to-start"
        nursery.cancel_scope.cancel()


async def test_why_tells_what_a_session_waits_for(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        await world.sessions.create(CALLER, request(max_wait=1, resources={"cpu": 99}))
        why = await world.sessions.why(CALLER, "test-session")
        assert why["status"] == "PENDING"
        assert "large enough" in why["sentence"]
        nursery.cancel_scope.cancel()


async def test_a_pending_session_is_cancelled_by_destroy(world):
    await world.sessions.create(CALLER, request(enqueue_only=True))
    stats = await world.sessions.destroy(CALLER, "test-session", forced=False, owner_access_key=None)
    assert stats == {"status": "cancelled"}


async def test_destroy_is_refused_in_between_and_forced_by_admins_only(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "scheduler")
        await world.sessions.create(CALLER, request(max_wait=1))
        with pytest.raises(Forbidden, match="scheduled"):
            await world.sessions.destroy(CALLER, "test-session", forced=False, owner_access_key=None)
        with pytest.raises(InsufficientPrivilege):
            await world.sessions.destroy(CALLER, "test-session", forced=True, owner_access_key=None)
        stats = await world.sessions.destroy(
            ADMIN, "test-session", forced=True, owner_access_key=CALLER.access_key
        )
        assert stats["status"] == "terminated"
        nursery.cancel_scope.cancel()


async def test_other_peoples_sessions_are_not_found(world):
    await world.sessions.create(CALLER, request(enqueue_only=True))
    with pytest.raises(NotFound):
        await world.sessions.info(ADMIN, "test-session")


async def test_an_ambiguous_prefix_lists_its_matches(world):
    for name in ("test-one", "test-two"):
        await world.sessions.create(CALLER, request(name=name, enqueue_only=True))
    with pytest.raises(TooManyMatches) as caught:
        await world.sessions.info(CALLER, "test")
    assert {m["name"] for m in caught.value.data["matches"]} == {"test-one", "test-two"}


async def test_pages_hold_every_session_once(world, autojump_clock):
    for n in range(7):
        await world.sessions.create(CALLER, request(name=f"session-{n}", enqueue_only=True))
        await trio.sleep(1)
    names, after = [], None
    while True:
        page, after = await world.sessions.list(CALLER, statuses=(), limit=3, after=after)
        names += [s.name for s in page]
        if after is None:
            break
    assert names == [f"session-{n}" for n in reversed(range(7))]


@pytest.mark.parametrize("cursor", ["", "x", "!!!", "MjAyNiB4", "4pyT", "é"])
async def test_a_cursor_that_is_none_is_refused_by_name(world, cursor):
    with pytest.raises(InvalidParameters) as caught:
        await world.sessions.list(CALLER, statuses=(), limit=3, after=cursor)
    assert list(caught.value.data) == ["after"]


async def test_a_stop_wakes_those_who_wait_for_a_start(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery, "scheduler")

        async def create():
            with pytest.raises(Unavailable):
                await world.sessions.create(CALLER, request())

        nursery.start_soon(create)
        await world.until(lambda: world.store.sessions)
        world.hub.stop()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_ending_everything_ends_everything(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        running = await world.running("session-1")
        await world.sessions.create(
            CALLER, request(name="session-2", enqueue_only=True, resources={"cpu": 99})
        )
        left = await end_all_sessions(world.store, world.hub, now=wall_clock, timeout=10)
        assert left == 0
        assert {s.status for s in world.store.sessions.values()} == {Status.TERMINATED, Status.CANCELLED}
        assert world.store.sessions[running.id].reasons["info"] == "manager-shutdown"
        nursery.cancel_scope.cancel()
