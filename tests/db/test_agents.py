from datetime import UTC, datetime, timedelta

import pytest
import trio

from backendai_mgr.db.agents import PgAgents
from backendai_mgr.db.images import split_name
from backendai_mgr.domain.errors import NotFound
from backendai_mgr.domain.ids import AgentId
from backendai_mgr.domain.status import AgentStatus, Status
from backendai_mgr.services.ports import StaleEpoch
from tests.db.samples import (
    AGENT,
    LATER,
    NOW,
    add_agent,
    fetch,
    fetchval,
    insert_session,
    kernel_report,
    move,
    python_image,
    report,
)


async def register(db, agent_id=AGENT, **changes) -> None:
    values = {"addr": "tcp://one:6001", "scaling_group": "default", "architecture": "x86_64", "now": NOW}
    await PgAgents(db).register(agent_id, **{**values, **changes})


async def expire(db) -> None:
    await fetch(db, "UPDATE agent_leases SET expires_at = clock_timestamp() - interval '1 second'")


# ---------------------------------------------------------------- registration


async def test_a_new_agent_is_lost_until_it_reports(db):
    await register(db)
    (lease,) = await PgAgents(db).lease("w1", ttl=10)
    assert (lease.agent_id, lease.addr, lease.status, lease.epoch, lease.fresh) == (
        AGENT, "tcp://one:6001", AgentStatus.LOST, 1, True,
    )  # fmt: skip


async def test_registering_again_writes_only_what_changed_and_tells_its_kernels(db):
    await add_agent(db)
    (kernel_id,) = await insert_session(db, Status.RUNNING)
    before = await fetchval(db, "SELECT xmin::text FROM agents")
    await register(db, addr="tcp://i-one:6001")
    assert await fetchval(db, "SELECT xmin::text FROM agents") == before
    await register(db, addr="tcp://moved:6001")
    row = (await fetch(db, "SELECT addr, status::text FROM agents"))[0]
    assert (row["addr"], row["status"]) == ("tcp://moved:6001", "ALIVE")
    assert await fetchval(db, "SELECT agent_addr FROM kernels WHERE id = $1", kernel_id) == "tcp://moved:6001"


async def test_an_unknown_scaling_group_is_refused(db):
    with pytest.raises(NotFound, match="nowhere"):
        await register(db, scaling_group="nowhere")


# ---------------------------------------------------------------- leases


async def test_a_lease_has_one_owner_until_it_expires(db):
    await register(db)
    agents = PgAgents(db)
    (first,) = await agents.lease("w1", ttl=10)
    (renewed,) = await agents.lease("w1", ttl=10)
    assert (renewed.epoch, renewed.fresh) == (first.epoch, False)
    assert await agents.lease("w2", ttl=10) == []
    await expire(db)
    (taken,) = await agents.lease("w2", ttl=10)
    assert (taken.epoch, taken.fresh) == (first.epoch + 1, True)
    assert await agents.lease("w1", ttl=10) == []


async def test_the_epoch_leaps_over_what_an_agent_has_seen(db):
    """As after the database was set back."""
    other = AgentId("i-other")
    for agent in (AGENT, other):
        await register(db, agent)
    agents = PgAgents(db)

    async def epochs(owner="w1", **above):
        return {lease.agent_id: lease.epoch for lease in await agents.lease(owner, ttl=10, **above)}

    assert await epochs() == {AGENT: 1, other: 1}
    assert await epochs(above={AGENT: 41, AgentId("i-unknown"): 7}) == {AGENT: 42, other: 1}
    assert await epochs(above={AGENT: 41}) == {AGENT: 42, other: 1}
    assert await epochs("w2", above={AGENT: 99}) == {}, "it is not theirs"
    await expire(db)
    assert await epochs("w2", above={AGENT: 41}) == {AGENT: 43, other: 2}


async def test_a_released_lease_is_free_at_once_and_its_epoch_grows(db):
    await register(db)
    agents = PgAgents(db)
    (first,) = await agents.lease("w1", ttl=1000)
    await agents.release("w1")
    (taken,) = await agents.lease("w2", ttl=10)
    assert taken.epoch == first.epoch + 1


async def test_workers_that_ask_at_once_share_nothing(db):
    for n in range(20):
        await register(db, AgentId(f"i-{n:02}"))
    held: dict[str, list] = {}

    async def ask(owner: str) -> None:
        held[owner] = [lease.agent_id for lease in await PgAgents(db).lease(owner, ttl=10)]

    async with trio.open_nursery() as nursery:
        for n in range(6):
            nursery.start_soon(ask, f"w{n}")
    everything = [agent for leases in held.values() for agent in leases]
    assert len(everything) == len(set(everything)) == 20


async def test_after_a_takeover_the_old_holder_writes_nothing(db):
    epoch = await add_agent(db)
    (kernel_id,) = await insert_session(db, Status.RUNNING)
    await expire(db)
    agents = PgAgents(db)
    (taken,) = await agents.lease("w2", ttl=10)
    before = await fetch(db, "SELECT * FROM agents")
    ending = [move(kernel_id, Status.RUNNING, Status.TERMINATED)]
    with pytest.raises(StaleEpoch):
        await agents.store_report(AGENT, epoch, report(version="9"), now=LATER)
    with pytest.raises(StaleEpoch):
        await agents.apply_moves(AGENT, epoch, ending, now=LATER)
    with pytest.raises(StaleEpoch):
        await agents.mark_lost(AGENT, epoch, now=LATER)
    assert await fetch(db, "SELECT * FROM agents") == before
    assert await agents.apply_moves(AGENT, taken.epoch, ending, now=LATER) == ending


async def test_a_takeover_waits_for_the_holder_that_is_writing(db):
    epoch = await add_agent(db)
    await expire(db)
    agents = PgAgents(db)
    writing, finish = trio.Event(), trio.Event()
    order = []

    async def holder() -> None:
        async with db.dedicated() as connection:
            await connection.run(lambda conn: conn.execute("BEGIN"), timeout=5)
            held = await connection.run(
                lambda conn: conn.fetchval(
                    "SELECT 1 FROM agent_leases WHERE agent_id = $1 AND epoch = $2 FOR SHARE", AGENT, epoch
                ),
                timeout=5,
            )
            assert held == 1
            writing.set()
            await finish.wait()
            order.append("written")
            await connection.run(lambda conn: conn.execute("COMMIT"), timeout=5)

    async def taker() -> None:
        await writing.wait()
        leases = await agents.lease("w2", ttl=10)
        order.append(f"taken {len(leases)}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(holder)
        nursery.start_soon(taker)
        await writing.wait()
        with trio.fail_after(10):
            while await fetchval(db, "SELECT count(*) FROM pg_locks WHERE NOT granted") == 0:
                await trio.lowlevel.checkpoint()
        finish.set()
    assert order == ["written", "taken 1"]


# ---------------------------------------------------------------- reports


async def test_a_report_makes_the_agent_alive_and_known(db):
    await register(db)
    agents = PgAgents(db)
    (lease,) = await agents.lease("w1", ttl=10)
    await agents.store_report(AGENT, lease.epoch, report(missing={"cgroup": "no controller"}), now=LATER)
    row = (await fetch(db, "SELECT *, status::text AS word FROM agents"))[0]
    assert (row["word"], row["status_changed"], row["lost_at"]) == ("ALIVE", LATER, None)
    assert row["available_slots"] == {"cpu": "4", "mem": "8589934592"}
    assert (row["version"], row["boot"], row["missing"]) == ("0.1.0", "boot-1", {"cgroup": "no controller"})
    image = (await fetch(db, "SELECT * FROM images"))[0]
    assert (image["name"], image["registry"], image["image"], image["tag"]) == (
        "local/python:3.11", "local", "python", "3.11",
    )  # fmt: skip
    assert [row["type"] for row in await fetch(db, "SELECT type FROM events")] == ["agent_started"]


async def test_an_equal_report_writes_nothing(db):
    epoch = await add_agent(db)
    tables = ("agents", "images", "image_aliases", "agent_images", "events", "agent_leases")
    before = [await fetch(db, f"SELECT *, xmin, xmax FROM {table}") for table in tables]
    await PgAgents(db).store_report(AGENT, epoch, report(seq=2, stats={"load": 1}), now=LATER)
    assert [await fetch(db, f"SELECT *, xmin, xmax FROM {table}") for table in tables] == before


async def test_a_changed_report_is_an_event_that_says_so(db):
    epoch = await add_agent(db)
    await PgAgents(db).store_report(AGENT, epoch, report(capacity={"cpu": "64"}), now=LATER)
    assert await fetchval(db, "SELECT available_slots FROM agents") == {"cpu": "64"}
    assert [row["type"] for row in await fetch(db, "SELECT type FROM events ORDER BY id")] == [
        "agent_started", "agent_changed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "after"),
    [("LOST", "ALIVE"), ("RESTARTING", "ALIVE"), ("UPDATING", "UPDATING"), ("UNHEALTHY", "UNHEALTHY")],
)
async def test_a_report_ends_silence_but_not_what_somebody_decided(db, status, after):
    epoch = await add_agent(db)
    await fetch(db, "UPDATE agents SET status = $1::text::agentstatus", status)
    await PgAgents(db).store_report(AGENT, epoch, report(), now=LATER)
    assert await fetchval(db, "SELECT status::text FROM agents") == after


async def test_an_agent_is_lost_once(db):
    epoch = await add_agent(db)
    agents = PgAgents(db)
    assert await agents.mark_lost(AGENT, epoch, now=LATER) is True
    assert await agents.mark_lost(AGENT, epoch, now=LATER) is False
    assert await fetchval(db, "SELECT lost_at FROM agents") == LATER
    assert await fetchval(db, "SELECT count(*) FROM events WHERE type = 'agent_lost'") == 1


async def test_images_that_are_gone_from_the_agent_are_no_longer_offered(db):
    epoch = await add_agent(db, images=[python_image("3.11"), python_image("3.12", aliases=())])
    await PgAgents(db).store_report(AGENT, epoch, report(images=[python_image("3.12", ())]), now=LATER)
    assert [row["name"] for row in await fetch(db, "SELECT name FROM agent_images")] == ["local/python:3.12"]
    assert await fetchval(db, "SELECT count(*) FROM images") == 2
    await PgAgents(db).store_report(AGENT, epoch, report(images=[]), now=LATER)
    assert await fetch(db, "SELECT name FROM agent_images") == []


async def test_agents_that_report_the_same_images_at_once_do_not_collide(db):
    names = [AgentId(f"i-{n}") for n in range(8)]
    for name in names:
        await register(db, name)
    agents = PgAgents(db)
    epochs = {lease.agent_id: lease.epoch for lease in await agents.lease("w1", ttl=10)}
    images = [python_image(f"3.{n}", (f"python3.{n}",)) for n in range(10)]

    async def tell(n: int, name: AgentId) -> None:
        mine = images[n:] + images[:n]
        await agents.store_report(name, epochs[name], report(images=mine), now=LATER)

    async with trio.open_nursery() as nursery:
        for n, name in enumerate(names):
            nursery.start_soon(tell, n, name)
    assert await fetchval(db, "SELECT count(*) FROM images") == 10
    assert await fetchval(db, "SELECT count(*) FROM agent_images") == 80


async def test_activity_of_running_kernels_is_kept_coarsely(db):
    epoch = await add_agent(db)
    (kernel_id,) = await insert_session(db, Status.RUNNING, incarnation=2, created_at=NOW)
    agents = PgAgents(db)
    told = []
    for seconds, incarnation in [(5, 2), (60, 2), (65, 2), (30, 2), (600, 1)]:
        active = (NOW + timedelta(seconds=seconds)).timestamp()
        kernels = [kernel_report(kernel_id, incarnation, last_active=active)]
        await agents.store_report(AGENT, epoch, report(kernels=kernels), now=LATER)
        told.append(await fetchval(db, "SELECT last_active FROM kernels"))
    minute = datetime.fromtimestamp(NOW.timestamp() + 60, UTC)
    assert told == [None, minute, minute, minute, minute]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("local/python:3.11", ("local", "python", "3.11")),
        ("cr.backend.ai/stable/python:3.9-ubuntu", ("cr.backend.ai", "stable/python", "3.9-ubuntu")),
        ("host:5000/a/b:1", ("host:5000", "a/b", "1")),
        ("python", ("", "python", "")),
    ],
)
def test_the_parts_of_a_canonical_name(name, parts):
    assert split_name(name) == parts
