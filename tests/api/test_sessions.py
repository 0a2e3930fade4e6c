"""Session endpoints: what they ask of the service, and what they make of its answer."""

import json

import attrs
import pytest

from backendai_mgr.domain.errors import AgentFailed, Conflict
from backendai_mgr.domain.status import Status
from tests.fakes.services import SESSION_ID, a_session


async def test_a_new_session_is_201(server, client):
    reply = await client.post("/session", json={"name": "new-session", "image": "python"})
    answer = reply.json()
    assert reply.status_code == 201
    assert answer == {
        "sessionId": str(server.sessions.sessions["new-session"].id),
        "sessionName": "new-session",
        "status": "RUNNING",
        "servicePorts": [{"name": "sshd", "protocol": "tcp", "ports": [2200]}],
        "created": True,
    }


@pytest.mark.parametrize("path", ["/session", "/session/_/create"])
async def test_a_live_one_is_200_and_has_its_ports_twice(client, path):
    reply = await client.post(path, json={"name": "my-session", "image": "python"})
    assert reply.status_code == 200
    assert reply.json()["created"] is False
    assert reply.json()["service_ports"][0]["host_ports"] == [1]
    assert reply.json()["servicePorts"][0]["ports"] == [2200]


async def test_ports_of_a_session_that_does_not_run(server, client):
    server.sessions.sessions["my-session"] = a_session(status=Status.PENDING)
    reply = await client.post("/session", json={"name": "my-session", "image": "python"})
    assert reply.json()["servicePorts"] == []
    assert reply.json()["status"] == "PENDING"


async def request_of(server, client, body):
    text = body if isinstance(body, str) else json.dumps(body)
    reply = await client.post("/session", content=text, headers={"Content-Type": "application/json"})
    assert reply.status_code in (200, 201), reply.text
    return server.sessions.calls[-1][1]


async def test_the_body_of_the_official_client(server, client):
    """As its 22.03 release sends it, nulls and all."""
    request = await request_of(
        server,
        client,
        {
            "tag": None, "clientSessionToken": "abcd", "config": {
                "mounts": [], "environ": {"A": "1"}, "resources": {"cpu": "2", "mem": "1g"},
                "resource_opts": {"shmem": "64m"}, "scalingGroup": None, "mount_map": {},
                "preopen_ports": ["8080"], "agentList": [],
            },
            "dependencies": None, "callback_url": None, "clusterSize": "1", "clusterMode": "single-node",
            "starts_at": None, "bootstrap_script": None, "owner_access_key": None, "domain": "default",
            "group": "default", "type": "interactive", "enqueueOnly": "YES", "maxWaitSeconds": "5",
            "reuseIfExists": None, "startupCommand": None, "lang": "python", "architecture": "x86_64",
        },
    )  # fmt: skip
    given = attrs.asdict(request)
    assert given == given | {
        "name": "abcd", "image": "python", "architecture": "x86_64", "domain": "default", "cluster_size": 1,
        "enqueue_only": True, "max_wait": 5, "reuse": False, "environ": {"A": "1"}, "agent_list": [],
        "resources": {"cpu": "2", "mem": "1g"}, "resource_opts": {"shmem": "64m"}, "preopen_ports": [8080],
        "dependencies": (), "scaling_group": None, "mount_map": {},
    }  # fmt: skip


async def test_defaults(server, client):
    request = await request_of(server, client, {"name": "abcd", "image": "python"})
    given = attrs.asdict(request)
    assert given == given | {
        "type": "interactive", "group": "default", "domain": None, "cluster_size": 1, "reuse": True,
        "enqueue_only": False, "max_wait": 0, "cluster_mode": "single-node", "mounts": (), "resources": {},
    }  # fmt: skip


async def test_fractions_stay_exact(server, client):
    body = '{"name": "abcd", "image": "python", "config": {"resources": {"cuda.shares": 0.1, "cpu": 2}}}'
    request = await request_of(server, client, body)
    assert request.resources == {"cuda.shares": "0.1", "cpu": 2}


async def test_the_first_alias_wins(server, client):
    request = await request_of(server, client, {"clientSessionToken": "abcd", "lang": "a"})
    assert (request.name, request.image) == ("abcd", "a")


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (True, True),
        ("T", True),
        ("on", True),
        ("1", True),
        (False, False),
        ("None", False),
        (None, False),
        ("0", False),
    ],
)
async def test_words_for_booleans(server, client, word, value):
    request = await request_of(server, client, {"name": "abcd", "image": "a", "enqueueOnly": word})
    assert request.enqueue_only is value


async def test_a_body_hides_the_query(server, client):
    reply = await client.request(
        "DELETE", "/session/my-session?forced=false&x=1", json={"forced": "true", "owner_access_key": "K"}
    )
    assert reply.json() == {"stats": {"status": "terminated", "version": 2}}
    assert server.sessions.calls == [("destroy", "my-session", True, "K")]


async def test_without_a_body_the_query_counts(server, client):
    await client.delete("/session/my-session?forced=yes")
    await client.delete("/session/my-session")
    assert server.sessions.calls == [
        ("destroy", "my-session", True, None),
        ("destroy", "my-session", False, None),
    ]


async def test_info(client):
    info = (await client.get(f"/session/{SESSION_ID}?owner_access_key=ignored")).json()
    assert info["image"] == info["lang"] == "local/python:3.11"
    assert info["status"] == "RUNNING"
    assert info["statusInfo"] == "None"
    assert info["creationTime"] == "2022-03-15T01:02:03+00:00"
    assert info["terminationTime"] is None
    assert info["age"] > 0
    assert json.loads(info["occupiedSlots"]) == {"cpu": "1"}
    assert json.loads(info["environ"]) == ["A=b"]
    assert set(info) == {
        "domainName", "groupId", "userId", "lang", "image", "architecture", "registry", "tag", "containerId",
        "occupiedSlots", "occupiedShares", "environ", "status", "statusInfo", "statusData", "age",
        "creationTime", "terminationTime", "numQueriesExecuted", "lastStat", "servicePorts",
    }  # fmt: skip


async def test_match(client):
    reply = await client.get("/session/_/match?id=my")
    assert reply.json() == {"matches": [{"id": str(SESSION_ID), "name": "my-session", "status": "RUNNING"}]}
    assert (await client.get("/session/_/match?id=other")).json() == {"matches": []}


async def test_why(client):
    assert (await client.get("/session/my-session/why")).json()["sentence"] == "It is running."


async def test_list(server, client):
    reply = await client.get("/sessions?status=RUNNING,PENDING&limit=10&after=abc")
    assert server.sessions.calls == [("list", {Status.RUNNING, Status.PENDING}, 10, "abc")]
    assert reply.json()["next"] == "more"
    (item,) = reply.json()["sessions"]
    assert (item["id"], item["name"], item["status"]) == (str(SESSION_ID), "my-session", "RUNNING")
    await client.get("/sessions")
    assert server.sessions.calls[-1] == ("list", set(), 50, None)


async def test_a_restart_is_answered_without_content(server, client):
    reply = await client.patch("/session/my-session?owner_access_key=x")
    assert (reply.status_code, reply.content) == (204, b"")
    assert server.sessions.calls[-1] == ("restart", "my-session")
    assert (await client.patch("/session/nobody")).status_code == 404
    server.sessions.refusal = Conflict("Session 'my-session' is PENDING.")
    assert (await client.patch("/session/my-session")).status_code == 409
    server.sessions.refusal = AgentFailed("restart", "It could not be started.")
    reply = await client.patch("/session/my-session")
    assert reply.status_code == 500
    assert reply.json()["type"].endswith("/kernel-restart-failed")
    assert reply.json()["agent-details"]["exception"] == "It could not be started."
    server.health.draining = True
    assert (await client.patch("/session/my-session")).status_code == 503


async def test_a_session_is_renamed_by_query_or_body(server, client):
    for path, body in (
        ("/session/my-session/rename?name=new-name", None),
        ("/session/my-session/rename", {"name": "new-name"}),
        ("/session/my-session/rename", {"clientSessionToken": "new-name"}),
    ):
        reply = await client.post(path, **({} if body is None else {"json": body}))
        assert (reply.status_code, reply.content) == (204, b"")
        assert server.sessions.calls[-1] == ("rename", "my-session", "new-name")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "name"),
        ("?name=x", "name"),
        ("?name=-bad-", "name"),
        ("?name=from-template", "name"),
        ("?x=1", "x"),
    ],
)
async def test_a_wrong_new_name_is_refused_by_its_field(client, query, field):
    reply = await client.post(f"/session/my-session/rename{query}")
    assert reply.status_code == 400
    assert field in reply.json()["data"]
