"""Which image an alias means, and what agents that differ do to each other's images."""

import attrs
import pytest
import trio

from backendai_mgr.db.agents import PgAgents
from backendai_mgr.db.scheduling import PgScheduling
from backendai_mgr.db.sessions import PgSessions
from backendai_mgr.domain.ids import AgentId
from backendai_mgr.scheduling.planner import plan

from .samples import (
    CALLER,
    LATER,
    NOW,
    add_agent,
    fetch,
    fetchval,
    new_session,
    python_image,
    report,
)

OLD, NEW = AgentId("i-old"), AgentId("i-new")
ALIAS = "SELECT i.name FROM image_aliases a JOIN images i ON i.id = a.image WHERE a.alias = 'python'"


async def meaning(db):
    """The version that "python" stands for."""
    return (await fetchval(db, ALIAS)).removeprefix("local/python:")


async def test_an_alias_moves_to_a_newer_version_and_not_to_an_older_one(db):
    await add_agent(db, OLD, images=[python_image("3.9")])
    assert await meaning(db) == "3.9"
    await add_agent(db, NEW, images=[python_image("3.11")])
    assert await meaning(db) == "3.11"
    await add_agent(db, AgentId("i-third"), images=[python_image("3.10")])
    assert await meaning(db) == "3.11"


@pytest.mark.parametrize(
    ("older", "newer"),
    [("3.9", "3.11"), ("3.11", "3.11.1"), ("9-ubuntu20.04", "10-ubuntu18.04"), ("latest", "1"), ("a", "b")],
)
async def test_versions_are_compared_number_by_number(db, older, newer):
    await add_agent(db, images=[python_image(newer), python_image(older)])
    assert await meaning(db) == newer


async def test_only_agents_that_live_count(db):
    await add_agent(db, OLD, images=[python_image("3.9")])
    epoch = await add_agent(db, NEW, images=[python_image("3.11")])
    agents = PgAgents(db)
    await agents.mark_lost(NEW, epoch, now=LATER)
    assert await meaning(db) == "3.9"
    await agents.store_report(NEW, epoch, report(images=[python_image("3.11")]), now=LATER)
    assert await meaning(db) == "3.11"


async def test_an_alias_follows_its_agent_when_that_offers_something_else(db):
    await add_agent(db, OLD, images=[python_image("3.9")])
    epoch = await add_agent(db, NEW, images=[python_image("3.11")])
    agents = PgAgents(db)
    await agents.store_report(NEW, epoch, report(images=[python_image("3.11", aliases=())]), now=LATER)
    assert await meaning(db) == "3.9"
    await agents.store_report(NEW, epoch, report(images=[python_image("3.8")]), now=LATER)
    assert await meaning(db) == "3.9"


async def test_of_two_reports_at_once_the_newest_version_wins(db):
    agents = PgAgents(db)
    names = [AgentId(f"i-{n}") for n in range(8)]
    epochs = {name: await add_agent(db, name, images=[]) for name in names}

    async def tell(n: int, name: AgentId) -> None:
        await agents.store_report(name, epochs[name], report(images=[python_image(f"3.{n}")]), now=LATER)

    async with trio.open_nursery() as nursery:
        for n, name in enumerate(names):
            nursery.start_soon(tell, n, name)
    assert await meaning(db) == "3.7"


async def test_an_alias_stands_for_the_architecture_that_is_asked_for(db):
    other = attrs.evolve(python_image(), architecture="aarch64")
    await add_agent(db, images=[python_image(), other])
    for architecture, found in [("x86_64", "x86_64"), ("aarch64", "aarch64"), ("riscv64", "x86_64")]:
        facts = await PgSessions(db).enqueue_facts(
            CALLER, domain="default", group="default", name="w", image="python", architecture=architecture
        )
        assert facts.image.architecture == found


async def test_agents_that_differ_in_an_image_do_not_write_it_again_and_again(db):
    one = python_image()
    two = attrs.evolve(one, digest="sha256:other")
    epochs = {OLD: await add_agent(db, OLD, images=[one]), NEW: await add_agent(db, NEW, images=[two])}
    images = {OLD: one, NEW: two}
    before = await fetch(db, "SELECT config_digest, xmin::text FROM images")
    assert [row["config_digest"] for row in before] == ["sha256:other"]
    for seq in range(2, 5):
        for name, epoch in epochs.items():
            told = report(seq=seq, images=[images[name]], stats={"load": seq})
            await PgAgents(db).store_report(name, epoch, told, now=LATER)
    assert await fetch(db, "SELECT config_digest, xmin::text FROM images") == before


@pytest.mark.parametrize("others", [False, True])
async def test_a_session_waits_for_an_image_that_nobody_offers_any_more(db, others):
    epoch = await add_agent(db, NEW, images=[python_image("3.11")])
    await PgAgents(db).mark_lost(NEW, epoch, now=LATER)
    if others:
        await add_agent(db, OLD, images=[python_image("3.9", aliases=())])
    sessions = PgSessions(db)
    facts = await sessions.enqueue_facts(
        CALLER, domain="default", group="default", name="w", image="python", architecture="x86_64"
    )
    assert facts.image.name == "local/python:3.11"
    await sessions.enqueue(new_session(image=facts.image.name))
    (waiting,) = plan(await PgScheduling(db).snapshot(now=NOW)).waiting
    if others:
        assert waiting.data["cause"] == "no-image"
        assert "offers the image local/python:3.11" in waiting.sentence
    else:
        assert waiting.data["cause"] == "no-agent"
