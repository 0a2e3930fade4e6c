"""Bad requests that are special to one endpoint; what can be wrong with any is in `badinput`."""

import json

import pytest

from .harness import signed_headers

CREATE = {"name": "new-session", "image": "python"}
RUN = "/session/my-session/runs/r9"


def raw(text):
    return {"content": text if isinstance(text, bytes) else text.encode(), "headers": JSON}


JSON = {"Content-Type": "application/json"}


def create(**changes):
    return {"json": CREATE | changes}


def execute(**members):
    return {"json": {"mode": "query", "code": "1", "runId": None} | members}


def put(**members):
    return {"json": {"mode": "query", "code": "1"} | members}


S, E = "/session", "/session/my-session"
OUT = RUN.replace("r9", "r1") + "/output"
#: name: (method, path, what is sent, the field that the reply names)
FIELDS = {
    "an empty query instead of a body": ("POST", S + "?image=a", {}, "name"),
    "an alias beside its name": ("POST", S, create(clientSessionToken="abcd"), "clientSessionToken"),
    "an alias is named as it was given": ("POST", S, create(clusterSize=0), "clusterSize"),
    "a destruction's body": ("DELETE", E, raw('{"forced": 7}'), "forced"),
    "a step of another type": ("POST", E, execute(mode="batch", options={"exec": 1}), "options.exec"),
    "a long step": ("POST", E, execute(mode="batch", options={"exec": "x" * 100_001}), "options.exec"),
    "options that are a list": ("POST", E, execute(options=[1]), "options"),
    "a run that goes on without an id": ("POST", E, execute(mode="continue"), "runId"),
    "a cursor that is none": ("POST", E + "/complete", {"json": {"options": {"col": -1}}}, "options.col"),
    "a query without code": ("PUT", RUN, {"json": {"mode": "query"}}, "code"),
    "a batch run with code": ("PUT", RUN, put(mode="batch"), "code"),
    "a query with steps": ("PUT", RUN, put(build="make"), "build"),
    "a batch run of nothing": ("PUT", RUN, {"json": {"mode": "batch"}}, "exec"),
    "an answer without a text": ("POST", RUN + "/input", {"json": {"offset": 0}}, "text"),
    "an exact fraction out of range": ("PUT", RUN, raw('{"code": "1", "timeout": 1e29}'), "timeout"),
    "a piece of no upload": ("PUT", E + "/files/f?offset=1", {}, "upload"),
    "too many downloads": ("POST", E + "/download", {"json": {"files": ["f"] * 6}}, "files"),
    "past the end of all output": ("GET", OUT + "?offset=99", {}, "offset"),
}


@pytest.mark.parametrize(("method", "path", "sent", "field"), FIELDS.values(), ids=FIELDS)
async def test_a_parameter_is_refused_by_name(server, client, method, path, sent, field):
    await client.put("/session/my-session/runs/r1", json={"code": "1"})
    server.runs.runs["r1"].end()
    server.sessions.calls.clear()
    sent = {"content": b"", **sent}
    if "json" in sent:  # the client's own encoder refuses surrogates
        del sent["content"]
        sent = raw(json.dumps(sent["json"]))
    reply = await client.request(method, path, **sent)
    problem = reply.json()
    assert (reply.status_code, problem["type"]) == (400, "https://api.backend.ai/probs/invalid-api-params")
    assert problem["title"] == "Missing or invalid API parameters."
    assert list(problem["data"]) == [field]
    assert not server.sessions.calls
    assert list(server.runs.runs) == ["r1"]
    assert (await client.get("/auth?echo=good")).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "data"),
    [
        ("GET", "/nowhere", 404, "url-not-found", "/nowhere"),
        ("GET", "/auth/", 404, "url-not-found", "/auth/"),
        ("GET", "/auth//test", 404, "url-not-found", "/auth//test"),
        ("GET", "/sess%69on", 405, "method-not-allowed", None),
        ("GET", "/v4/session", 404, "url-not-found", "/v4/session"),
        ("GET", "/kernel/abc", 404, "url-not-found", "/kernel/abc"),
        ("GET", "/%E2%82%AC", 404, "url-not-found", "/€"),
        ("GET", "/%ff", 400, "generic-bad-request", None),
        ("PATCH", "/auth", 405, "method-not-allowed", None),
        ("GET", "/session", 405, "method-not-allowed", None),
        ("FLY", "/auth", 405, "method-not-allowed", None),
        ("GET", "/stream/session/my-session/execute", 400, "generic-bad-request", None),
        ("GET", "/session/nobody", 404, "object-not-found", None),
        ("GET", "/session/my-session/runs/none", 404, "object-not-found", None),
    ],
)
async def test_paths_and_methods(client, method, path, status, kind, data):
    reply = await client.request(method, path)
    problem = reply.json()
    assert reply.headers["content-type"] == "application/problem+json"
    assert (reply.status_code, problem["type"]) == (status, f"https://api.backend.ai/probs/{kind}")
    assert problem.get("data") == data
    if status == 405:
        assert reply.headers["allow"]
    assert (await client.get("/auth?echo=good")).status_code == 200


async def test_a_conflicting_run_is_409(client):
    assert (await client.put(RUN, json={"code": "1"})).status_code == 201
    assert (await client.put(RUN, json={"code": "1", "mode": "query", "timeout": None})).status_code == 200
    reply = await client.put(RUN, json={"code": "2"})
    assert reply.status_code == 409
    assert reply.headers["content-type"] == "application/problem+json"


async def test_a_body_on_an_unsigned_request_changes_nothing(server):
    headers = signed_headers("GET", "/auth?echo=a", server.host)
    async with server.client(auth=None, headers=headers) as client:
        reply = await client.request("GET", "/auth?echo=a", content=b'{"echo": "b"}')
    assert reply.json() == {"authorized": "yes", "echo": "b"}
