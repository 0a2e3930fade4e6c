from datetime import timedelta
from uuid import UUID, uuid4

import attrs
import pytest
import trio

from backendai_mgr.db.rows import uuid_range
from backendai_mgr.db.sessions import PgSessions
from backendai_mgr.domain.ids import SessionId
from backendai_mgr.domain.status import DEAD, LIVE, Status
from tests.db.samples import (
    AGENT,
    CALLER,
    GROUP,
    IMAGE,
    KEY,
    LATER,
    NOW,
    OTHER_KEY,
    USER,
    add_agent,
    fetch,
    fetchval,
    insert_session,
    move,
    new_session,
    python_image,
)

FACTS = {"domain": "default", "group": "default", "name": "work", "image": "python", "architecture": "x86_64"}


async def test_an_enqueued_session_reads_back_as_it_was_asked_for(db):
    sessions = PgSessions(db)
    new = new_session(tag="mine", startup_command="make")
    assert await sessions.enqueue(new) is True
    stored = await sessions.get(new.id)
    same = set(attrs.asdict(new)) & set(attrs.asdict(stored))
    assert {"id", "environ", "tag", "image", "created_at"} < same
    assert {name: getattr(stored, name) for name in same} == {name: getattr(new, name) for name in same}
    assert stored.requested_slots == stored.occupied_slots == new.slots
    assert (stored.status, stored.incarnation, stored.result) == (Status.PENDING, 0, "UNDEFINED")
    assert (stored.deadline, stored.agent_id, stored.terminated_at, stored.reasons) == (None, None, None, {})
    row = (await fetch(db, "SELECT * FROM sessions"))[0]
    assert (row["creation_id"], row["startup_command"], row["preopen_ports"]) == (
        "creation",
        "make",
        [8080, 8081],
    )
    assert await fetchval(db, "SELECT count(*) FROM events WHERE type = 'session_enqueued'") == 1
    assert await sessions.get(SessionId(uuid4())) is None


async def test_of_concurrent_sessions_of_one_name_exactly_one_is_stored(db):
    sessions = PgSessions(db)
    wins = []

    async def enqueue() -> None:
        new = new_session("same")
        if await sessions.enqueue(new):
            wins.append(new.id)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(enqueue)
    assert [row["id"] for row in await fetch(db, "SELECT id FROM sessions")] == wins
    assert await fetchval(db, "SELECT count(*) FROM kernels") == 1
    assert await fetchval(db, "SELECT count(*) FROM events") == 1


async def test_a_name_is_free_again_when_its_session_is_dead_and_never_taken_across_owners(db):
    sessions = PgSessions(db)
    first = new_session("name")
    assert await sessions.enqueue(first)
    assert await sessions.enqueue(new_session("name", access_key=OTHER_KEY))
    assert not await sessions.enqueue(new_session("name"))
    await sessions.move([move(first.id, Status.PENDING, Status.CANCELLED, 0)], now=LATER)
    assert await sessions.enqueue(new_session("name"))


async def test_facts_of_a_member_with_an_image_that_an_agent_offers(db):
    await add_agent(db, capacity={"cpu": "4", "mem": "8", "cuda.device": "1"})
    sessions = PgSessions(db)
    new = new_session()
    await sessions.enqueue(new)
    facts = await sessions.enqueue_facts(CALLER, **FACTS)
    assert (facts.domain_active, facts.group_id, facts.owner_is_member) == (True, GROUP, True)
    assert facts.scaling_groups == ["default"]
    assert facts.known_slots == {"cpu", "mem", "cuda.device"}
    assert facts.existing == await sessions.get(new.id)
    assert attrs.asdict(facts.image) == {
        "name": IMAGE,
        "architecture": "x86_64",
        "registry": "local",
        "labels": {"ai.backend.runtime-type": "python"},
        "resources": {"cpu": {"min": "1", "max": None}},
    }


@pytest.mark.parametrize(
    ("image", "architecture", "found"),
    [
        (IMAGE, "x86_64", True),
        (IMAGE, "aarch64", True),  # the only one of that name
        ("python", "aarch64", True),
        ("local/python:9", "x86_64", False),
    ],
)
async def test_images_are_found_by_alias_or_name(db, image, architecture, found):
    await add_agent(db)
    facts = await PgSessions(db).enqueue_facts(
        CALLER, **{**FACTS, "image": image, "architecture": architecture}
    )
    assert (facts.image is not None) == found


async def test_an_image_of_two_architectures_is_told_apart(db):
    other = attrs.evolve(python_image(aliases=()), architecture="aarch64")
    await add_agent(db, images=[python_image(), other])
    sessions = PgSessions(db)
    for architecture, found in [("aarch64", "aarch64"), ("x86_64", "x86_64"), ("riscv64", None)]:
        facts = await sessions.enqueue_facts(
            CALLER, **{**FACTS, "image": IMAGE, "architecture": architecture}
        )
        assert (facts.image and facts.image.architecture) == found


async def test_an_image_of_a_registry_that_the_domain_does_not_allow_is_none(db):
    await add_agent(db)
    await fetch(db, "UPDATE domains SET allowed_docker_registries = '{cr.backend.ai}'")
    assert (await PgSessions(db).enqueue_facts(CALLER, **FACTS)).image is None


async def test_facts_of_strangers(db):
    sessions = PgSessions(db)
    facts = await sessions.enqueue_facts(CALLER, **{**FACTS, "domain": "nowhere"})
    assert (facts.domain_active, facts.group_id, facts.owner_is_member) == (False, None, False)
    assert facts.scaling_groups == []
    assert facts.existing is None
    facts = await sessions.enqueue_facts(attrs.evolve(CALLER, user_id=uuid4()), **FACTS)
    assert (facts.group_id, facts.owner_is_member) == (GROUP, False)


async def test_scaling_groups_are_those_of_domain_project_and_key_that_are_active(db):
    await fetch(
        db, "INSERT INTO scaling_groups (name, is_active) VALUES ('a', true), ('b', true), ('c', false)"
    )
    await fetch(db, "INSERT INTO scaling_groups (name) VALUES ('unrelated')")
    await fetch(db, "INSERT INTO sgroups_for_groups VALUES ('b', $1)", GROUP)
    await fetch(db, "INSERT INTO sgroups_for_keypairs VALUES ('a', $1), ('c', $1)", KEY)
    facts = await PgSessions(db).enqueue_facts(CALLER, **FACTS)
    assert facts.scaling_groups == ["a", "b", "default"]


# ---------------------------------------------------------------- references

ONE = UUID("abcdef00-1111-4000-8000-000000000001")
TWO = UUID("abcdef00-2222-4000-8000-000000000002")
THREE = UUID("99999999-3333-4000-8000-000000000003")


async def seed(db) -> None:
    await add_agent(db)
    await insert_session(db, Status.RUNNING, session_id=ONE, name="train", created_at=NOW)
    await insert_session(db, Status.RUNNING, session_id=TWO, name="train-2", created_at=LATER)
    await insert_session(db, Status.TERMINATED, session_id=THREE, name="train", created_at=NOW)
    await insert_session(db, Status.RUNNING, name="train", owner=OTHER_KEY)


@pytest.mark.parametrize(
    ("reference", "include_dead", "found"),
    [
        ("train", False, [ONE]),  # the name itself wins over names that it begins
        ("train", True, [ONE, THREE]),
        ("trai", False, [TWO, ONE]),  # newest first
        ("train-2", False, [TWO]),
        ("abcdef00", False, [TWO, ONE]),
        ("abcdef00-1", False, [ONE]),
        (str(TWO), False, [TWO]),
        ("99999999", False, []),
        ("99999999", True, [THREE]),
        ("ABCDEF00", False, []),
        ("tr%n", False, []),
        ("_rain", False, []),
        ("", False, []),
        ("x" * 70, False, []),
    ],
)
async def test_references_match_by_id_then_name_then_prefix(db, reference, include_dead, found):
    await seed(db)
    matches = await PgSessions(db).match(KEY, reference, include_dead=include_dead)
    assert sorted(match.id for match in matches) == sorted(found)
    assert [match.created_at for match in matches] == sorted((m.created_at for m in matches), reverse=True)


async def test_an_id_prefix_wins_over_an_equal_name(db):
    await seed(db)
    (named,) = await insert_session(db, Status.RUNNING, name="abcdef00")
    assert {m.id for m in await PgSessions(db).match(KEY, "abcdef00", include_dead=False)} == {ONE, TWO}
    exact = await PgSessions(db).match(KEY, "abcdef00", include_dead=False, exact=True)
    assert [m.id for m in exact] == [named]


async def test_a_session_is_found_by_the_id_of_one_of_its_kernels(db):
    await add_agent(db)
    main, sub = await insert_session(db, Status.RUNNING, Status.RUNNING)
    assert [m.id for m in await PgSessions(db).match(KEY, str(sub), include_dead=False)] == [main]


async def test_at_most_ten_sessions_match(db):
    await add_agent(db)
    for index in range(12):
        await insert_session(
            db, Status.RUNNING, name=f"many-{index}", created_at=NOW + timedelta(seconds=index)
        )
    matches = await PgSessions(db).match(KEY, "many-", include_dead=False)
    assert [m.name for m in matches] == [f"many-{index}" for index in range(11, 1, -1)]


@pytest.mark.parametrize(
    ("reference", "include_dead", "found"),
    [
        ("train", True, [ONE]),  # the live one before the dead one
        ("trai", True, []),
        (str(ONE), False, [ONE]),
        (ONE.hex, False, [ONE]),
        (str(ONE)[:-1], False, []),
        (str(THREE), False, []),
        (str(THREE), True, [THREE]),
    ],
)
async def test_exact_references(db, reference, include_dead, found):
    await seed(db)
    matches = await PgSessions(db).match(KEY, reference, include_dead=include_dead, exact=True)
    assert [match.id for match in matches] == found


@pytest.mark.parametrize("prefix", ["a", "abcdef00", "abcdef00-", "abcdef00-1111-", str(ONE)])
def test_a_range_of_ids_holds_what_begins_with_the_prefix(prefix):
    first, last = uuid_range(prefix)
    assert str(first).startswith(prefix)
    assert str(last).startswith(prefix)
    assert first <= ONE <= last
    assert str(UUID(int=last.int + 1)).startswith(prefix) is False


@pytest.mark.parametrize("prefix", ["", "g", "abcdef001", "abcdef00--", "A", "-", str(ONE) + "0"])
def test_other_texts_have_no_range_of_ids(prefix):
    assert uuid_range(prefix) is None


# ---------------------------------------------------------------- lists and moves


async def test_a_list_goes_on_after_a_position_newest_first(db):
    await add_agent(db)
    for index in range(7):
        await insert_session(db, Status.RUNNING, created_at=NOW + timedelta(seconds=index // 2))
    await insert_session(db, Status.TERMINATED)
    await insert_session(db, Status.RUNNING, owner=OTHER_KEY)
    sessions = PgSessions(db)
    seen, after = [], None
    while page := await sessions.list(KEY, statuses=LIVE, limit=3, after=after):
        seen += [(s.created_at, s.id) for s in page]
        after = seen[-1]
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == len(set(seen)) == 7
    assert len(await sessions.list(None, statuses=LIVE, limit=100, after=None)) == 8
    assert len(await sessions.list(KEY, statuses=DEAD, limit=100, after=None)) == 1
    assert len(await sessions.live_owned()) == 8


async def test_where_a_session_is_or_was_is_known_if_it_has_had_an_agent(db):
    await add_agent(db)
    sessions = PgSessions(db)
    (running,) = await insert_session(db, Status.RUNNING, incarnation=5)
    (pending,) = await insert_session(db, Status.PENDING)
    (dead,) = await insert_session(db, Status.TERMINATED)
    live = await sessions.placed(running)
    assert (live.id, live.kernel_id, live.owner, live.status, live.incarnation, live.agent_id) == (
        running, running, KEY, Status.RUNNING, 5, AGENT,
    )  # fmt: skip
    assert await sessions.placed(pending) is None
    was = await sessions.placed(dead)
    assert (was.status, was.agent_id) == (Status.TERMINATED, AGENT)


async def test_the_events_of_a_session_tell_what_readers_filter_by(db):
    await add_agent(db)
    (kernel_id,) = await insert_session(db, Status.RUNNING, name="told")
    wanted = move(kernel_id, Status.RUNNING, Status.TERMINATED, info="self-terminated", exit_code=3)
    await PgSessions(db).move([wanted], now=LATER)
    rows = await fetch(db, "SELECT * FROM events WHERE session_id = $1 ORDER BY id", kernel_id)
    assert [row["type"] for row in rows] == ["kernel_terminated", "session_terminated"]
    common = {
        "reason": "self-terminated",
        "status": "TERMINATED",
        "exit_code": 3,
        "session_name": "told",
        "creation_id": "creation",
        "domain": "default",
        "group_id": str(GROUP),
        "user_id": str(USER),
    }
    assert rows[0]["payload"] == {**common, "cluster_role": "main", "cluster_idx": 1, "incarnation": 1}
    assert rows[1]["payload"] == common
    for row in rows:
        assert (row["kernel_id"], row["agent_id"], row["access_key"], row["time"]) == (
            kernel_id, AGENT, KEY, LATER,
        )  # fmt: skip


# ---------------------------------------------------------------- another name


async def test_a_running_session_is_renamed_and_others_learn_of_it(db):
    await add_agent(db)
    (running,) = await insert_session(db, Status.RUNNING, name="before")
    sessions = PgSessions(db)
    assert await sessions.rename(running, "after", now=LATER) == "renamed"
    assert (await sessions.get(running)).name == "after"
    (event,) = await fetch(db, "SELECT type, access_key, payload FROM events WHERE session_id = $1", running)
    assert (event["type"], event["access_key"]) == ("session_renamed", KEY)
    assert (event["payload"]["session_name"], event["payload"]["was"]) == ("after", "before")
    assert await sessions.rename(running, "after", now=LATER) == "renamed"
    assert len(await fetch(db, "SELECT 1 FROM events WHERE session_id = $1", running)) == 1


async def test_a_name_is_given_once_and_to_running_sessions_only(db):
    await add_agent(db)
    (running,) = await insert_session(db, Status.RUNNING, name="mine")
    await insert_session(db, Status.PREPARING, name="taken")
    await insert_session(db, Status.TERMINATED, name="free")
    await insert_session(db, Status.RUNNING, name="anothers", owner=OTHER_KEY)
    (ending,) = await insert_session(db, Status.TERMINATING)
    sessions = PgSessions(db)
    assert await sessions.rename(running, "taken", now=LATER) == "name-taken"
    assert await sessions.rename(ending, "never", now=LATER) == "not-running"
    assert await sessions.rename(SessionId(uuid4()), "never", now=LATER) == "not-running"
    assert (await sessions.get(running)).name == "mine"
    assert await sessions.rename(running, "free", now=LATER) == "renamed"
    assert await sessions.rename(running, "anothers", now=LATER) == "renamed"
