"""Agents join over HTTP: what they get, and what they are refused with."""

import logging
import socket
import ssl
from datetime import UTC, datetime, timedelta

import attrs
import pytest
import trio
import trustme

from backendai_mgr.api.server.tls import server_context
from backendai_mgr.domain.status import AgentStatus
from tests.fakes.joining import CLUSTER, MANAGER_KEY

from .harness import serving

PATH = "/agents/join"


@pytest.fixture
def token(server):
    return server.joins.add_token(1, expires_at=datetime.now(UTC) + timedelta(hours=1))


def body(valid, **changes):
    return {
        "id": "i-2",
        "addr": "tcp://127.0.0.1:6001",
        "public_key": "k" * 40,
        "architecture": "x86_64",
        "token": str(valid),
    } | changes


@pytest.fixture
async def anyone(server):
    async with server.client(auth=None) as unsigned:
        yield unsigned


async def test_an_agent_joins_and_may_repeat_that_for_as_long_as_its_token_lives(server, anyone, token):
    for _ in range(3):
        reply = await anyone.post(PATH, json=body(token))
        assert reply.status_code == 200
        assert reply.json() == {
            "cluster_id": CLUSTER,
            "manager_public_key": MANAGER_KEY,
            "scaling_group": "default",
        }
    assert server.joins.tokens[token.id].uses == 0
    assert server.joins.requests[0].addr == "tcp://127.0.0.1:6001"
    server.joins.tokens[token.id] = attrs.evolve(server.joins.tokens[token.id], expires_at=datetime.now(UTC))
    assert (await anyone.post(PATH, json=body(token))).status_code == 401


async def test_what_is_wrong_with_a_token_is_not_told(server, anyone, token, caplog):
    expired = server.joins.add_token(2, expires_at=datetime.now(UTC))
    used_up = server.joins.add_token(3, expires_at=datetime.now(UTC) + timedelta(hours=1), uses=0)
    wrong_secret = str(token)[:-1] + "f"
    replies = []
    caplog.set_level(logging.INFO)
    for text in (str(expired), str(used_up), wrong_secret, "", "nonsense", "bmj-" + "0" * 61):
        reply = await anyone.post(PATH, json=body(text))
        assert reply.status_code == 401
        assert reply.headers["content-type"] == "application/problem+json"
        replies.append(reply.content)
    assert len(set(replies)) == 1
    assert b"join token is not valid" in replies[0]
    assert server.joins.requests == []
    # The operator is told, and not the token.
    assert "127.0.0.1 may not join: the token has expired" in caplog.text
    assert str(token)[-20:] not in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""), ("id", "a b"), ("id", "x" * 65), ("id", 7), ("id", None),
        ("addr", "10.0.0.1:6001"), ("addr", "tcp://node01:6001"), ("addr", "tcp://0.0.0.0:6001"),
        ("addr", "tcp://10.0.0.1:0"), ("addr", ["tcp://10.0.0.1:6001"]),
        ("public_key", "k" * 39), ("public_key", "#" * 40), ("public_key", "\u00e4" * 40),
        ("architecture", ""), ("architecture", "X86/64"),
        ("token", None), ("token", 1), ("token", "a\0b"),
        ("colour", "red"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named(server, anyone, token, field, value):
    reply = await anyone.post(PATH, json=body(token, **{field: value}))
    assert reply.status_code == 400
    assert reply.json()["type"].endswith("invalid-api-params")
    assert list(reply.json()["data"]) == [field]
    assert server.joins.tokens[token.id].uses == 1


async def test_missing_fields_are_named(anyone, token):
    reply = await anyone.post(PATH, json={"token": str(token)})
    assert set(reply.json()["data"]) == {"id", "addr", "public_key", "architecture"}


async def test_a_large_body_is_refused(anyone, token):
    reply = await anyone.post(PATH, json=body(token, id="x" * 9000))
    assert reply.status_code == 413


@pytest.mark.parametrize(
    ("known", "field"),
    [({"id": "i-2", "public_key": "o" * 40}, "id"), ({"id": "i-1", "public_key": "k" * 40}, "public_key")],
)
async def test_the_place_of_an_agent_that_is_alive_is_a_conflict(server, anyone, token, known, field):
    agent_of = server.joins.agents
    await anyone.post(PATH, json=body(token))
    (first,) = agent_of.values()
    agent_of.clear()
    agent_of[known["id"]] = attrs.evolve(first, status=AgentStatus.ALIVE, joined_with=None, **known)
    other = server.joins.add_token(2, expires_at=datetime.now(UTC) + timedelta(hours=1))
    reply = await anyone.post(PATH, json=body(other))
    assert reply.status_code == 409
    assert list(reply.json()["data"]) == [field]
    assert server.joins.tokens[other.id].uses == 1


async def test_while_the_database_is_away_or_the_server_stops_agents_are_told_to_come_again(
    server, anyone, token
):
    server.joins.away = True
    reply = await anyone.post(PATH, json=body(token))
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")
    server.joins.away = False
    server.health.draining = True
    reply = await anyone.post(PATH, json=body(token))
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "2")


def own_address() -> str | None:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return probe.getsockname()[0]


async def test_from_another_machine_only_https_is_taken(tmp_path):
    address = own_address()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    authority = trustme.CA()
    certificate = authority.issue_cert(address)
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with trio.fail_after(60):
        async with serving(address=address) as plain, plain.client(auth=None) as anyone:
            token = plain.joins.add_token(1, expires_at=datetime.now(UTC) + timedelta(hours=1))
            # Before the body is looked at.
            for sent in ({"json": body(token)}, {"content": b"{"}):
                reply = await anyone.post(PATH, **sent)
                assert reply.status_code == 403
                assert "HTTPS" in reply.json()["msg"]
            assert plain.joins.requests == []
        pem = tmp_path / "server.pem"
        async with serving(address=address, tls=server_context(pem, pem)) as secure:
            token = secure.joins.add_token(1, expires_at=datetime.now(UTC) + timedelta(hours=1))
            trust = ssl.create_default_context(cafile=tmp_path / "ca.pem")
            async with secure.client(auth=None, verify=trust, base_url=f"https://{secure.host}") as anyone:
                reply = await anyone.post(PATH, json=body(token))
                assert reply.status_code == 400  # a loopback address of another machine
                assert list(reply.json()["data"]) == ["addr"]
                reply = await anyone.post(PATH, json=body(token, addr=f"tcp://{address}:6001"))
                assert reply.status_code == 200
