"""An agent joins: at a real HTTP server, patient where that helps, in one sentence where it does not."""

import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

import attrs
import pytest
import trio
import trio.testing
import trustme

from backendai_mgr.agent.config import AgentConfig
from backendai_mgr.agent.joining import address_towards, join
from backendai_mgr.agent.membership import load_membership, own_keys, plan_link
from backendai_mgr.api.server.tls import server_context
from backendai_mgr.domain.status import AgentStatus
from backendai_mgr.runtime.config import ConfigError
from tests.api.harness import serving
from tests.fakes.joining import CLUSTER, MANAGER_KEY


@pytest.fixture
async def server():
    async with serving() as running:
        yield running


def token_of(server, **changes) -> str:
    return str(server.joins.add_token(1, **{"expires_at": datetime.now(UTC) + timedelta(hours=1)} | changes))


async def joined(tmp_path, url, token, *, patience=20.0, **settings):
    config = AgentConfig(
        id="i-2", bind="127.0.0.1:6001", manager_url=url, join_token=token, data_dir=tmp_path, **settings
    )
    plan = plan_link(config, load_membership(tmp_path), towards_manager=None)
    keys = own_keys(tmp_path)
    with trio.fail_after(60):
        return await join(config, plan, keys.public, tmp_path, patience=patience)


async def test_an_agent_joins_and_keeps_what_it_learned(server, tmp_path):
    token = token_of(server)
    membership = await joined(tmp_path, server.url + "/", token)
    assert (membership.cluster_id, membership.manager_public_key) == (CLUSTER, MANAGER_KEY)
    assert load_membership(tmp_path) == membership
    (request,) = server.joins.requests
    assert (request.id, request.addr) == ("i-2", "tcp://127.0.0.1:6001")
    assert request.public_key == own_keys(tmp_path).public
    secrets = {token, own_keys(tmp_path).secret}
    stored = (tmp_path / "link" / "cluster.json").read_text()
    assert not any(secret in stored for secret in secrets)


async def test_a_lost_reply_is_asked_for_again(server, tmp_path):
    token = token_of(server)
    await joined(tmp_path, server.url, token)
    (tmp_path / "link" / "cluster.json").unlink()
    assert (await joined(tmp_path, server.url, token)).cluster_id == CLUSTER
    assert len(server.joins.requests) == 2


async def test_a_refusal_ends_it_at_once_in_a_sentence(server, tmp_path):
    began = trio.current_time()
    with pytest.raises(ConfigError, match=r"refuses this agent \(401\): The join token is not valid\. Make"):
        await joined(tmp_path, server.url, "bmj-nonsense")
    assert trio.current_time() - began < 5
    assert load_membership(tmp_path) is None


async def test_what_the_refusal_is_about_is_told(server, tmp_path):
    token = token_of(server)
    await joined(tmp_path, server.url, token)
    (agent,) = server.joins.agents.values()
    server.joins.agents["i-2"] = attrs.evolve(agent, status=AgentStatus.ALIVE, public_key="o" * 40)
    with pytest.raises(ConfigError, match=r"\(409\): .*; id is taken by an agent that is alive"):
        await joined(tmp_path, server.url, token_of(server))


async def test_a_manager_that_is_away_is_waited_for(tmp_path):
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    came, memberships = trio.Event(), []

    async def come_in(token) -> None:
        memberships.append(await joined(tmp_path, f"http://127.0.0.1:{port}", token))
        came.set()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            token = f"bmj-{'01' * 6}-{'01' * 24}"
            nursery.start_soon(come_in, token)
            await trio.testing.wait_all_tasks_blocked(0.2)
            async with serving(port=port) as server:
                assert token_of(server) == token
                # The database is away, and then the server on its way out: both are for a while.
                server.joins.away = True
                await server.joins.asked.wait()
                server.joins.away = False
                await came.wait()
    assert memberships[0].cluster_id == CLUSTER


async def test_a_manager_that_stays_away_is_given_up(tmp_path):
    with pytest.raises(ConfigError, match=r"did not take this agent in within 0\.2 s: .*"):
        await joined(tmp_path, "http://127.0.0.1:1", "bmj-x", patience=0.2)


@asynccontextmanager
async def answering(reply: bytes):
    """A server that answers everything with these bytes, and hangs up."""

    async def answer(stream) -> None:
        async with stream:
            await stream.receive_some(65536)
            await stream.send_all(reply)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


def http(status: str, body: bytes) -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (http("200 OK", b"<html>"), "no manager of ours: its answer has no cluster_id"),
        (http("200 OK", b'{"cluster_id": 1}'), "no cluster_id"),
        (http("200 OK", json.dumps({"cluster_id": "c", "manager_public_key": "k"}).encode()), "CURVE key"),
        (http("200 OK", b"[" * 70000), "too long"),
        (http("404 Not Found", b"nothing"), r"refuses this agent \(404\): Not Found"),
        (http("301 Moved Permanently", b""), r"\(301\)"),
    ],
)
async def test_who_is_no_manager_is_told_from_one(tmp_path, reply, words):
    async with answering(reply) as url:
        with pytest.raises(ConfigError, match=words):
            await joined(tmp_path, url, "bmj-x")
    assert load_membership(tmp_path) is None


async def test_a_private_authority_is_named_and_a_certificate_that_is_not_trusted_ends_it_at_once(tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    (tmp_path / "nothing.pem").write_text("nothing")
    pem = tmp_path / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    async with serving(tls=server_context(pem, pem)) as server:
        token, url = token_of(server), f"https://{server.host}"
        for trusted in (None, tmp_path / "other.pem"):
            with pytest.raises(ConfigError, match=r"is not trusted .*`agent.manager-ca`"):
                await joined(tmp_path, url, token, manager_ca=trusted)
        for missing in ("nothing.pem", "absent.pem"):
            with pytest.raises(ConfigError, match=r"`agent.manager-ca`: .* holds no certificates"):
                await joined(tmp_path, url, token, manager_ca=tmp_path / missing)
        membership = await joined(tmp_path, url, token, manager_ca=tmp_path / "ca.pem")
        assert membership.cluster_id == CLUSTER
    async with answering(b"HTTP/1.1 400 Bad Request\r\n\r\n") as url:
        with pytest.raises(ConfigError, match="TLS"):
            await joined(tmp_path, url.replace("http", "https"), token)


async def test_the_address_that_leads_to_the_manager():
    assert await address_towards("https://127.0.0.1:8081") == "127.0.0.1"
    with pytest.raises(ConfigError, match="no way to"):
        await address_towards("https://[fe80::1]:8081")
