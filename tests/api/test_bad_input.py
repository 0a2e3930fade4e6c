"""The table of bad requests: each is refused with its status, its type and the field it is about; nothing is
logged as an error; and the next good request on the same connection works."""

import json

import pytest

from .harness import signed_headers

CREATE = {"name": "new-session", "image": "python"}
RUN = "/session/my-session/runs/r9"
NUL, SURROGATE = "a\0b", "\ud800"
DEEP = json.loads("[" * 99 + "]" * 99)


def raw(text):
    return {"content": text if isinstance(text, bytes) else text.encode(), "headers": JSON}


JSON = {"Content-Type": "application/json"}


def create(**changes):
    return {"json": CREATE | changes}


def config(**members):
    return create(config=members)


def execute(**members):
    return {"json": {"mode": "query", "code": "1", "runId": None} | members}


def put(**members):
    return {"json": {"mode": "query", "code": "1"} | members}


S, E = "/session", "/session/my-session"
OUT = RUN.replace("r9", "r1") + "/output"
#: name: (method, path, what is sent, the field that the reply names)
FIELDS = {
    "create: no name": ("POST", S, {"json": {"image": "python"}}, "name"),
    "create: an empty query instead of a body": ("POST", S + "?image=a", {}, "name"),
    "create: no image": ("POST", S, {"json": {"name": "new-session"}}, "image"),
    "create: not JSON": ("POST", S, raw("{"), "body"),
    "create: not UTF-8": ("POST", S, raw(b'{"name": "\xff"}'), "body"),
    "create: a list": ("POST", S, raw("[]"), "body"),
    "create: null": ("POST", S, raw("null"), "body"),
    "create: NaN": ("POST", S, raw('{"name": NaN}'), "body"),
    "create: a huge fraction": ("POST", S, raw('{"name": 1e999999}'), "body"),
    "create: a huge integer": ("POST", S, raw('{"clusterSize": %s}' % ("9" * 9999)), "body"),
    "create: nested too deeply for JSON": ("POST", S, raw('{"config":' + "[" * 99999), "body"),
    "create: nested too deeply": ("POST", S, config(resources={"cpu": DEEP}), "config"),
    "create: a key twice": ("POST", S, raw('{"name": "abcd", "name": "abcd"}'), "body"),
    "create: an unknown key": ("POST", S, create(colour="red"), "colour"),
    "create: our spelling of theirs": ("POST", S, create(startup_command="x"), "startup_command"),
    "create: an alias beside its name": ("POST", S, create(clientSessionToken="abcd"), "clientSessionToken"),
    "create: name too short": ("POST", S, create(name="abc"), "name"),
    "create: name too long": ("POST", S, create(name="a" * 65), "name"),
    "create: name with a slash": ("POST", S, create(name="ab/cd"), "name"),
    "create: name that ends in a dash": ("POST", S, create(name="abcd-"), "name"),
    "create: name with a line feed": ("POST", S, create(name="abcd\n"), "name"),
    "create: name of other letters": ("POST", S, create(name="äöüß"), "name"),
    "create: reserved name": ("POST", S, create(name="from-template"), "name"),
    "create: name is a number": ("POST", S, create(name=12345), "name"),
    "create: name is null": ("POST", S, create(name=None), "name"),
    "create: empty image": ("POST", S, create(image=""), "image"),
    "create: NUL in the image": ("POST", S, create(image=NUL), "image"),
    "create: lone surrogate": ("POST", S, create(image=SURROGATE), "image"),
    "create: unknown type": ("POST", S, create(type="lazy"), "type"),
    "create: type is a list": ("POST", S, create(type=[]), "type"),
    "create: no containers": ("POST", S, create(clusterSize=0), "clusterSize"),
    "create: cluster size is a word": ("POST", S, create(cluster_size="two"), "cluster_size"),
    "create: cluster size is a boolean": ("POST", S, create(cluster_size=True), "cluster_size"),
    "create: cluster size is a fraction": ("POST", S, create(cluster_size=1.5), "cluster_size"),
    "create: cluster size beyond 32 bits": ("POST", S, create(cluster_size=2**31), "cluster_size"),
    "create: unknown cluster mode": ("POST", S, create(clusterMode="x"), "clusterMode"),
    "create: negative wait": ("POST", S, create(maxWaitSeconds=-1), "maxWaitSeconds"),
    "create: no boolean": ("POST", S, create(enqueueOnly="maybe"), "enqueueOnly"),
    "create: long tag": ("POST", S, create(tag="x" * 65), "tag"),
    "create: long script": ("POST", S, create(bootstrap_script="x" * 16385), "bootstrap_script"),
    "create: no URL": ("POST", S, create(callback_url="localhost"), "callback_url"),
    "create: dependencies are text": ("POST", S, create(dependencies="abcd"), "dependencies"),
    "create: a dependency is a number": ("POST", S, create(dependencies=["abcd", 5]), "dependencies"),
    "create: config is a list": ("POST", S, create(config=[]), "config"),
    "create: unknown key in config": ("POST", S, config(colour=1), "config"),
    "create: port out of range": ("POST", S, config(preopen_ports=[80]), "config"),
    "create: port is a word": ("POST", S, config(preopen_ports=["http"]), "config"),
    "create: environ is a list": ("POST", S, config(environ=["A=b"]), "config"),
    "create: environ of numbers": ("POST", S, config(environ={"A": 1}), "config"),
    "create: NUL in environ": ("POST", S, config(environ={"A": NUL}), "config"),
    "create: NUL in a name in environ": ("POST", S, config(environ={NUL: "a"}), "config"),
    "create: NUL deep in resource_opts": ("POST", S, config(resource_opts={"a": [{"b": NUL}]}), "config"),
    "create: surrogate deep in resources": ("POST", S, config(resources={"a": [SURROGATE]}), "config"),
    "create: mounts are text": ("POST", S, config(mounts="data"), "config"),
    "match: nothing": ("GET", "/session/_/match", {}, "id"),
    "match: blank": ("GET", "/session/_/match?id=", {}, "id"),
    "match: NUL": ("GET", "/session/_/match?id=%00", {}, "id"),
    "match: not UTF-8": ("GET", "/session/_/match?id=%ff", {}, "query"),
    "match: unknown key": ("GET", "/session/_/match?id=a&x=1", {}, "x"),
    "match: hundreds of parameters": ("GET", "/session/_/match?" + "a=1&" * 200, {}, "query"),
    "info: NUL in the reference": ("GET", "/session/a%00b", {}, "ref"),
    "why: NUL in the name": ("GET", "/session/a%00b/why", {}, "name"),
    "destroy: no boolean": ("DELETE", E + "?forced=maybe", {}, "forced"),
    "destroy: unknown key": ("DELETE", E + "?recursive=true", {}, "recursive"),
    "destroy: bad body": ("DELETE", E, raw('{"forced": 7}'), "forced"),
    "echo: nothing": ("GET", "/auth", {}, "echo"),
    "echo: a number": ("POST", "/auth", {"json": {"echo": 5}}, "echo"),
    "echo: not JSON": ("POST", "/auth", raw("hello"), "body"),
    "list: unknown status": ("GET", "/sessions?status=RUNNING,DONE", {}, "status"),
    "list: limit 0": ("GET", "/sessions?limit=0", {}, "limit"),
    "list: huge limit": ("GET", "/sessions?limit=99999999999999999999", {}, "limit"),
    "list: limit is no integer": ("GET", "/sessions?limit=1.5", {}, "limit"),
    "list: a key twice": ("GET", "/sessions?limit=1&limit=2", {}, "limit"),
    "list: unknown key": ("GET", "/sessions?page=1", {}, "page"),
    "list: NUL in the cursor": ("GET", "/sessions?after=%00", {}, "after"),
    "execute: empty body": ("POST", E, raw(b""), "body"),
    "execute: not JSON": ("POST", E, raw("x"), "body"),
    "execute: no run id": ("POST", E, {"json": {"mode": "query", "code": "1"}}, "runId"),
    "execute: run id is a number": ("POST", E, execute(runId=5), "runId"),
    "execute: no mode": ("POST", E, {"json": {"runId": None, "code": ""}}, "mode"),
    "execute: mode is a list": ("POST", E, execute(mode=["query"]), "mode"),
    "execute: unknown mode": ("POST", E, execute(mode="fly"), "mode"),
    "execute: a step of another type": (
        "POST", E, execute(mode="batch", options={"exec": 1}), "options.exec"),
    "execute: continue without a run": ("POST", E, execute(mode="continue"), "runId"),
    "execute: code is a number": ("POST", E, execute(code=5), "code"),
    "execute: NUL in the code": ("POST", E, execute(code=NUL), "code"),
    "execute: surrogate in the code": ("POST", E, execute(code=SURROGATE), "code"),
    "execute: options are a list": ("POST", E, execute(options=[1]), "options"),
    "put: no body": ("PUT", RUN, {}, "body"),
    "put: no code": ("PUT", RUN, {"json": {"mode": "query"}}, "code"),
    "put: code is null": ("PUT", RUN, put(code=None), "code"),
    "put: code is a list": ("PUT", RUN, put(code=["1"]), "code"),
    "put: NUL in the code": ("PUT", RUN, put(code=NUL), "code"),
    "put: batch with code": ("PUT", RUN, put(mode="batch"), "code"),
    "put: a query with steps": ("PUT", RUN, put(build="make"), "build"),
    "put: a batch run of nothing": ("PUT", RUN, {"json": {"mode": "batch"}}, "exec"),
    "put: a step of another type": ("PUT", RUN, {"json": {"mode": "batch", "exec": 1}}, "exec"),
    "answer: no text": ("POST", RUN + "/input", {"json": {}}, "text"),
    "answer: text of another type": ("POST", RUN + "/input", {"json": {"text": 1}}, "text"),
    "answer: an offset below 0": ("POST", RUN + "/input", {"json": {"text": "", "offset": -1}}, "offset"),
    "runs: too many": ("GET", RUN.rpartition("/")[0] + "?limit=1000", {}, "limit"),
    "put: mode is a number": ("PUT", RUN, put(mode=1), "mode"),
    "put: standard input": ("PUT", RUN, put(stdin=7), "stdin"),
    "put: timeout 0": ("PUT", RUN, put(timeout=0), "timeout"),
    "put: negative timeout": ("PUT", RUN, put(timeout=-1.5), "timeout"),
    "put: timeout is text": ("PUT", RUN, put(timeout="5"), "timeout"),
    "put: timeout is a boolean": ("PUT", RUN, put(timeout=True), "timeout"),
    "put: endless timeout": ("PUT", RUN, raw('{"code": "1", "timeout": 1e29}'), "timeout"),
    "put: timeout beyond all": ("PUT", RUN, raw('{"code": "1", "timeout": %s}' % ("9" * 400)), "timeout"),
    "put: Infinity": ("PUT", RUN, raw('{"code": "1", "timeout": Infinity}'), "body"),
    "put: an unknown key": ("PUT", RUN, put(options={}), "options"),
    "put: a key twice": ("PUT", RUN, raw('{"code": "1", "code": "2"}'), "body"),
    "put: bad run id": ("PUT", E + "/runs/a b", put(), "run_id"),
    "put: long run id": ("PUT", E + "/runs/" + "a" * 65, put(), "run_id"),
    "output: negative offset": ("GET", OUT + "?offset=-1", {}, "offset"),
    "output: offset is a word": ("GET", OUT + "?offset=end", {}, "offset"),
    "output: blank offset": ("GET", OUT + "?offset=", {}, "offset"),
    "output: offset beyond 64 bits": ("GET", OUT + "?offset=9223372036854775808", {}, "offset"),
    "output: past the end": ("GET", OUT + "?offset=99", {}, "offset"),
    "output: waits too long": ("GET", OUT + "?wait=31", {}, "wait"),
    "output: wait is a word": ("GET", OUT + "?wait=nan", {}, "wait"),
    "output: no bytes": ("GET", OUT + "?max_bytes=0", {}, "max_bytes"),
    "output: too many bytes": ("GET", OUT + "?max_bytes=1048577", {}, "max_bytes"),
    "output: unknown key": ("GET", OUT + "?form=1", {}, "form"),
}  # fmt: skip


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
