"""Join tokens, keys and agents that join, in PostgreSQL."""

from datetime import timedelta

import pytest
import trio

from backendai_mgr.db.agents import PgAgents
from backendai_mgr.db.joining import PgJoining, ensure_link_keys
from backendai_mgr.db.scheduling import PgScheduling
from backendai_mgr.domain.errors import Conflict, NotFound
from backendai_mgr.domain.ids import AgentId
from backendai_mgr.domain.joining import JoinRefused, JoinRequest, TokenText
from backendai_mgr.domain.status import Status
from backendai_mgr.scheduling.snapshot import TroubledAgent
from tests.db.samples import AGENT, LATER, NOW, add_agent, fetch, fetchval, insert_session, report

KEY, OTHER_KEY = "k" * 40, "o" * 40
HOUR = timedelta(hours=1)
ROW = "SELECT addr, scaling_group, status::text, public_key, joined_with FROM agents WHERE id = $1"


def token(number: int = 1) -> TokenText:
    return TokenText.make(bytes([number] * 6), bytes([number] * 24))


async def add_token(db, number: int = 1, *, uses: int = 1, now=NOW) -> TokenText:
    made = token(number)
    await PgJoining(db).add_token(made, scaling_group="default", uses=uses, expires_at=now + HOUR, now=now)
    return made


def request(agent_id=AGENT, addr="tcp://10.0.0.1:6001", key=KEY) -> JoinRequest:
    return JoinRequest(id=AgentId(agent_id), addr=addr, public_key=key, architecture="x86_64")


async def join(db, made: TokenText | None, **changes) -> str:
    outcome, _ = await PgJoining(db).join(made, request(**changes), now=NOW)
    return outcome


async def uses(db) -> list[int]:
    return [row["uses"] for row in await fetch(db, "SELECT uses FROM join_tokens ORDER BY id")]


async def test_all_workers_share_the_pair_that_the_first_one_stored(db):
    pairs = []

    async def start(number: int) -> None:
        pairs.append(await db.run(lambda conn: ensure_link_keys(conn, (f"p{number}", f"s{number}"))))

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(start, number)
    assert len({(pair.public, pair.secret) for pair in pairs}) == 1
    assert pairs[0].public[1:] == pairs[0].secret[1:]
    assert await fetchval(db, "SELECT count(*) FROM link_keys") == 1


async def test_the_secret_of_a_token_is_not_stored(db):
    made = await add_token(db)
    assert made.secret not in str(await fetch(db, "SELECT * FROM join_tokens"))


async def test_a_token_needs_a_scaling_group_that_exists(db):
    with pytest.raises(NotFound, match="nowhere"):
        await PgJoining(db).add_token(token(), scaling_group="nowhere", uses=1, expires_at=NOW, now=NOW)


async def test_tokens_are_forgotten_a_day_after_they_expired(db):
    first = await add_token(db)
    await join(db, first)
    await add_token(db, 2, now=NOW + timedelta(hours=24))
    assert len(await uses(db)) == 2
    await add_token(db, 3, now=NOW + timedelta(hours=26))
    assert len(await uses(db)) == 2
    assert await fetchval(db, "SELECT joined_with FROM agents") is None


async def test_an_agent_that_joins_is_lost_until_it_reports_and_the_workers_hear_of_it(db):
    made = await add_token(db)
    assert await join(db, made) == "new"
    (row,) = await fetch(db, ROW, AGENT)
    assert dict(row) == {
        "addr": "tcp://10.0.0.1:6001",
        "scaling_group": "default",
        "status": "LOST",
        "public_key": KEY,
        "joined_with": made.id,
    }
    assert await fetchval(db, "SELECT type FROM events ORDER BY id DESC LIMIT 1") == "agent_joined"
    assert await PgJoining(db).agent_key(AGENT) == KEY
    assert await PgJoining(db).agent_key(AgentId("i-unknown")) is None
    assert await uses(db) == [0]


async def test_repeating_takes_no_use_and_may_bring_a_new_address(db):
    made = await add_token(db)
    await join(db, made)
    assert await join(db, made, addr="tcp://10.0.0.2:6001") == "repeated"
    assert (await fetch(db, ROW, AGENT))[0]["addr"] == "tcp://10.0.0.2:6001"
    assert await uses(db) == [0]
    with pytest.raises(JoinRefused):
        await join(db, made, agent_id="i-two", key=OTHER_KEY)


async def test_a_refusal_changes_nothing(db):
    made = await add_token(db)
    await add_agent(db)
    await insert_session(db, Status.RUNNING)
    state = "SELECT a.*, k.agent_addr FROM agents a JOIN kernels k ON k.agent = a.id"
    before = await fetch(db, state)
    wrong = TokenText(id=made.id, secret="0" * 48)
    for given in (None, token(9), wrong):
        with pytest.raises(JoinRefused):
            await join(db, given)
    with pytest.raises(Conflict):
        await join(db, made)
    with pytest.raises(JoinRefused):
        await PgJoining(db).join(made, request(agent_id="i-two"), now=NOW + HOUR)
    assert await fetch(db, state) == before
    assert await uses(db) == [1]
    assert await fetchval(db, "SELECT count(*) FROM events WHERE type = 'agent_joined'") == 0


async def test_of_agents_that_come_together_as_many_join_as_the_token_allows(db):
    made = await add_token(db, uses=3)
    outcomes = []

    async def one(number: int) -> None:
        try:
            outcomes.append(await join(db, made, agent_id=f"i-{number}", key=f"{number}" * 40))
        except JoinRefused:
            outcomes.append("refused")

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(one, number)
    assert sorted(outcomes) == ["new"] * 3 + ["refused"] * 5
    assert await uses(db) == [0]
    assert await fetchval(db, "SELECT count(*) FROM agents") == 3


async def test_of_two_machines_that_claim_one_id_at_once_the_later_stays(db):
    made = [await add_token(db, number) for number in (1, 2)]
    async with trio.open_nursery() as nursery:
        for index, key in enumerate((KEY, OTHER_KEY)):
            nursery.start_soon(lambda i=index, k=key: join(db, made[i], key=k))
    assert await fetchval(db, "SELECT count(*) FROM agents") == 1
    assert await uses(db) == [0, 0]


async def test_who_takes_the_place_of_a_lost_agent_gets_its_sessions_calls(db):
    """Its kernels are gone with the machine; a report of the new one ends them."""
    await join(db, await add_token(db))
    await insert_session(db, Status.RUNNING)
    assert await join(db, await add_token(db, 2), key=OTHER_KEY, addr="tcp://10.0.0.9:6001") == "new"
    assert await fetchval(db, "SELECT agent_addr FROM kernels") == "tcp://10.0.0.9:6001"
    assert await PgJoining(db).agent_key(AGENT) == OTHER_KEY


async def test_a_machine_that_was_renamed_leaves_its_key_to_its_new_name(db):
    await join(db, await add_token(db))
    assert await join(db, await add_token(db, 2), agent_id="i-renamed") == "new"
    assert await PgJoining(db).agent_key(AGENT) is None
    assert await PgJoining(db).agent_key(AgentId("i-renamed")) == KEY
    assert await fetchval(db, "SELECT trouble FROM agents WHERE id = $1", AGENT) == (
        "Its machine has joined as i-renamed."
    )


async def test_the_local_agent_takes_its_name_back_without_a_key(db):
    await join(db, await add_token(db))
    await PgAgents(db).register(
        AGENT, addr="tcp://127.0.0.1:6001", scaling_group="default", architecture="x86_64", now=LATER
    )
    (row,) = await fetch(db, ROW, AGENT)
    assert (row["addr"], row["public_key"]) == ("tcp://127.0.0.1:6001", None)


async def test_trouble_is_kept_until_the_next_report(db):
    agents = PgAgents(db)
    await join(db, await add_token(db))
    (lease,) = await agents.lease("w", ttl=10)
    await agents.store_report(AGENT, lease.epoch, report(), now=NOW)
    await agents.note_trouble(AGENT, lease.epoch, "it hung up")
    assert await fetchval(db, "SELECT trouble FROM agents") == "it hung up"
    assert (await PgScheduling(db).snapshot(now=NOW)).troubled == []  # reports of before still count
    await agents.mark_lost(AGENT, lease.epoch, now=NOW)
    assert (await PgScheduling(db).snapshot(now=NOW)).troubled == [
        TroubledAgent(id=AGENT, scaling_group="default", trouble="it hung up")
    ]
    await agents.store_report(AGENT, lease.epoch, report(), now=NOW)
    assert await fetchval(db, "SELECT trouble FROM agents") is None
