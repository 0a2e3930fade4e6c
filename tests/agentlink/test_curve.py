"""The encrypted link: keys that are looked up, that change, that are wrong; and what is never dialled."""

from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio

from backendai_mgr.agent.server import serve_link
from backendai_mgr.agentlink.keys import LinkKeys
from backendai_mgr.agentlink.links import open_links
from backendai_mgr.domain.joining import KeyPair
from backendai_mgr.runtime.curve import CurveServer, new_key_pair
from backendai_mgr.services.ports import StoreUnavailable
from backendai_mgr.wire.rpc import AgentUnreachable
from tests.app.eventually import eventually
from tests.fakes.agent import FakeAgent

from .conftest import AGENT, INTERVAL, KERNEL, spec

ANY = "tcp://127.0.0.1:*"
OWN, OTHER, FIRST, SECOND = (KeyPair(public=p, secret=s) for p, s in (new_key_pair() for _ in range(4)))


class Keys:
    """The agents' keys as the database has them; ``away`` takes it away."""

    def __init__(self, **keys: str) -> None:
        self.keys = {AGENT: FIRST.public, **keys}
        self.asked = 0
        self.away = False

    async def agent_key(self, agent_id):
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.away:
            raise StoreUnavailable("it is away")
        return self.keys.get(agent_id)


@asynccontextmanager
async def serving(agent, pair: KeyPair | None = FIRST, bind=ANY, admits=(OWN.public,)):
    async def admitted(key: str) -> bool:
        return key in admits

    curve = None if pair is None else CurveServer(secret_key=pair.secret, admits=admitted)
    async with trio.open_nursery() as nursery:
        serve = partial(serve_link, agent, bind=bind, report_interval=INTERVAL, curve=curve)
        yield await nursery.start(serve)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def linked(keys, own: KeyPair = OWN):
    async with open_links(keys=LinkKeys(own, keys), report_interval=INTERVAL, silence=2.0) as links:
        yield links


async def until_trouble(link, words: str) -> None:
    async def told() -> bool:
        return link.trouble is not None and words in link.trouble

    with trio.fail_after(20):
        await eventually(told)


async def works(link) -> bool:
    async def answers() -> bool:
        try:
            return await link.list_runs(KERNEL) == []
        except AgentUnreachable:
            return False

    with trio.fail_after(20):
        await eventually(answers)
    return True


async def test_calls_reports_and_streams_over_an_encrypted_link():
    agent = FakeAgent()
    async with serving(agent) as endpoint, linked(Keys()) as links:
        link = links.link(AGENT, endpoint)
        with trio.fail_after(20):
            assert (await link.create_kernel(spec()))[2].id == KERNEL
            run = agent.add_run(KERNEL, "r")
            run.write(b"x" * 100_000)
            run.finish()
            async with link.reports(1, "w") as feed, link.stream(KERNEL, "r", offset=0) as stream:
                assert (await anext(aiter(feed))).kernels[0].id == KERNEL
                assert sum(len(item.data) for item in [item async for item in stream][:-1]) == 100_000
        assert link.trouble is None


@asynccontextmanager
async def tapped(endpoint: str):
    """An address that leads to *endpoint*, and all bytes that pass, in either direction."""
    seen = bytearray()

    async def copy(source, target) -> None:
        async for data in source:
            seen.extend(data)
            await target.send_all(data)
        await target.send_eof()

    async def serve(near) -> None:
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async with await trio.open_tcp_stream(host, int(port)) as far, trio.open_nursery() as nursery:
                nursery.start_soon(copy, near, far)
                nursery.start_soon(copy, far, near)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield f"tcp://127.0.0.1:{listener.socket.getsockname()[1]}", seen
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("pair", [FIRST, None], ids=["encrypted", "plain"])
async def test_who_listens_reads_a_plain_link_and_not_an_encrypted_one(pair):
    agent, key = FakeAgent(), pair and pair.public
    async with (
        serving(agent, pair) as endpoint,
        tapped(endpoint) as (address, seen),
        linked(Keys(**{AGENT: key})) as links,
    ):
        with trio.fail_after(20):
            await links.link(AGENT, address).complete(KERNEL, "secret_of_mine", 14)
    texts = [b"secret_of_mine", b"secret_of_mine()", b"complete"]
    assert [text in seen for text in texts] == [pair is None] * 3
    assert (b"CURVE" in seen) is (pair is not None)


@pytest.mark.parametrize(
    ("served", "admits", "held", "words"),
    [
        (FIRST, (OTHER.public,), FIRST.public, "does not admit our key"),
        (SECOND, (OWN.public,), FIRST.public, "another"),
        (None, (), FIRST.public, "no connection comes about"),  # its word may be lost when it hangs up
        (FIRST, (OWN.public,), None, ""),
    ],
    ids=["a manager with another key", "an agent with another key", "a plain agent", "a plain manager"],
)
async def test_who_does_not_match_is_refused_at_once_with_a_reason_and_logged_once(
    served, admits, held, words, caplog
):
    agent = FakeAgent()
    async with serving(agent, served, admits=admits) as endpoint, linked(Keys(**{AGENT: held})) as links:
        link = links.link(AGENT, endpoint)
        began = trio.current_time()
        with trio.fail_after(20), pytest.raises(AgentUnreachable, match="no connection comes about"):
            await link.list_runs(KERNEL)
        assert trio.current_time() - began < 5  # a call's own deadline is longer
        await until_trouble(link, words)
        with pytest.raises(AgentUnreachable):
            await link.get_run(KERNEL, "r")
    assert agent.calls == {}
    told = [record for record in caplog.records if record.name.endswith("agentlink.connection")]
    assert 1 <= len(told) <= 2  # a race of hanging up and explaining gives two wordings
    assert OWN.secret not in caplog.text + repr(link)


async def test_a_key_that_is_replaced_in_the_database_is_used_at_the_next_attempt():
    keys = Keys()
    async with serving(FakeAgent(), SECOND) as endpoint, linked(keys) as links:
        link = links.link(AGENT, endpoint)
        with trio.fail_after(20), pytest.raises(AgentUnreachable):
            await link.list_runs(KERNEL)
        keys.keys[AGENT] = SECOND.public
        assert await works(link)
        assert link.trouble is None


async def test_another_agent_at_the_old_address_is_not_spoken_to_until_the_right_one_is_back():
    intruder = FakeAgent()
    keys = Keys()
    async with linked(keys) as links:
        async with serving(FakeAgent()) as endpoint:
            link = links.link(AGENT, endpoint)
            assert await works(link)
        async with serving(intruder, SECOND, endpoint):
            await until_trouble(link, "another")
            with pytest.raises(AgentUnreachable):
                await link.list_runs(KERNEL)
        async with serving(FakeAgent(), FIRST, endpoint):
            assert await works(link)
    assert intruder.calls == {}


async def test_while_the_database_is_away_known_agents_keep_their_keys_and_unknown_ones_wait():
    keys = Keys()
    async with serving(FakeAgent(), admits=(admitted := set())) as endpoint, linked(keys) as links:
        known, unknown = links.link(AGENT, endpoint), links.link("i-new", endpoint)
        with trio.fail_after(20), pytest.raises(AgentUnreachable, match="admit"):
            await known.list_runs(KERNEL)
        keys.away = True
        with trio.fail_after(20), pytest.raises(AgentUnreachable, match="cannot be looked up"):
            await unknown.list_runs(KERNEL)
        admitted.add(OWN.public)
        assert await works(known)
        keys.away = False
        keys.keys["i-new"] = FIRST.public
        assert await works(unknown)


async def test_the_database_is_asked_at_dialling_and_not_at_each_call():
    keys = Keys()
    async with serving(FakeAgent()) as endpoint, linked(keys) as links:
        for _ in range(20):
            await links.link(AGENT, endpoint).list_runs(KERNEL)
    assert keys.asked == 1


@pytest.mark.parametrize("addr", ["tcp://192.0.2.1:6001", "tcp://node01:6001"])
async def test_an_agent_without_a_key_is_not_dialled_off_loopback(addr, caplog):
    async with linked(Keys(**{AGENT: None})) as links, open_links(report_interval=INTERVAL) as plain:
        for link in (links.link(AGENT, addr), plain.link(AGENT, addr)):
            with trio.fail_after(20), pytest.raises(AgentUnreachable, match="has to join"):
                await link.list_runs(KERNEL)
            assert "has to join with a token" in link.trouble
    assert "has to join with a token" in caplog.text


async def test_an_agent_tells_of_those_that_it_refuses_now_and_then(caplog):
    async with serving(FakeAgent()) as endpoint, linked(Keys(), own=OTHER) as links:
        link = links.link(AGENT, endpoint)
        for _ in range(3):
            links.connection(AGENT, endpoint).trouble = None  # so that the next attempt shows
            await until_trouble(link, "no connection")
    told = [record.getMessage() for record in caplog.records if record.name.endswith("agent.server")]
    assert len([text for text in told if "its key is not admitted" in text]) == 1
