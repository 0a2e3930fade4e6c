"""Every endpoint with a good request and what its parameters are.

The application's own routes are the measure: one that is missing here fails a test, and so does a parameter.
"""

import json
from collections.abc import Mapping
from typing import Any

import attrs

from backendai_mgr.api.models import accounts, agents, apps, files, runs, sessions, terminals
from backendai_mgr.domain.joining import TokenText

from .kinds import Boolean, Choice, Integer, Items, Json, Kind, Mapped, Number, Record, Text
from .wire import Request

JSON = "application/json"
OFFSET = 2**62
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@attrs.frozen(kw_only=True)
class Endpoint:
    """``path`` holds the route's parameters as they are in a good request, ``good`` others that are needed.

    ``place``: where parameters are read from: "json" (strict), "legacy" (a body, else the query), "query",
    "form" (multipart), "bytes" (the body is what it is); None for none.
    """

    rule: str
    method: str = "GET"
    path: Mapping[str, str] = attrs.Factory(dict)
    place: str | None = None
    good: Mapping[str, Any] = attrs.Factory(dict)
    kinds: Mapping[str, Kind] = attrs.Factory(dict)
    #: The class of the parameters, whose members have to be in ``kinds``.
    model: type | None = None
    #: Whether an unknown parameter is refused.
    strict: bool = True
    #: Most bytes of the body by `conftest.LIMITS`.
    longest: int = 0
    body: bytes | None = None
    content_type: str | None = None
    public: bool = False
    websocket: bool = False
    status: int = 200

    @property
    def name(self) -> str:
        return f"{'WEBSOCKET' if self.websocket else self.method} {self.rule}"

    @property
    def in_body(self) -> bool:
        """Whether parameters can come as JSON."""
        return self.place == "json" or (self.place == "legacy" and self.method != "GET")

    @property
    def in_query(self) -> bool:
        return self.place in ("query", "legacy", "bytes")

    def target(self, **path: str) -> str:
        """The request's path with some of its parameters replaced."""
        target = self.rule
        for name, value in {**self.path, **path}.items():
            target = target.replace(f"<path:{name}>", value).replace(f"<{name}>", value)
        return target

    def request(self, given: Mapping[str, Any] | None = None, **path: str) -> Request:
        """The good request, or one with these parameters (None as a query's value: the name alone)."""
        given = self.good if given is None else given
        request = Request(
            method=self.method,
            target=self.target(**path),
            body=self.body,
            content_type=self.content_type,
            headers=HANDSHAKE if self.websocket else {},
        )
        if self.place == "json" or (self.place == "legacy" and self.in_body and given):
            return attrs.evolve(request, body=json.dumps(given).encode(), content_type=JSON)
        return attrs.evolve(request, target=with_query(request.target, given)) if given else request


def with_query(target: str, given: Mapping[str, Any]) -> str:
    return target + "?" + "&".join(f"{name}={value}" for name, value in given.items())


def session(rule: str, **settings: Any) -> Endpoint:
    """An endpoint below a session; by its reference, or by its exact name."""
    path = {name: good for name, good in PATHS.items() if f"<{name}>" in rule or f"<path:{name}>" in rule}
    return Endpoint(rule=rule, path=path, **settings)


PATHS = {"ref": "my-session", "name": "my-session", "run_id": "r1", "path": "f"}
OPTIONAL = Text(null=True, blank=False)
ANY = Text(null=True)
LINE = Text(null=True, longest=100_000)
JSON_TEXT = Text(null=True, blank=False, unlike=["x", "[]", "1", "{", "null"])
APP = {
    "app": Text(blank=False, longest=64),
    "port": Integer(null=True, least=1024, most=65535, text=True),
    "envs": JSON_TEXT,
    "arguments": JSON_TEXT,
}
RUN_NAME = Text(unlike=["", "a b", "a/b", "..%2f", "a\n"], longest=64)
SESSION_NAME = Text(
    blank=False,
    longest=64,
    unlike=[
        "abc",
        "ab/cd",
        "abcd-",
        ".abcd",
        "abcd\n",
        "ab\r\ncd",
        "\u4f1a\u8a71\u540d\u524d",
        "from-template",
        "a b c",
    ],
)
CONFIG = Record(
    members={
        "mounts": Items(null=True, item=Text(blank=False)),
        "mount_map": Mapped(null=True, value=Text(blank=False)),
        "environ": Mapped(null=True, value=Text(blank=False)),
        "scaling_group": OPTIONAL,
        "resources": Mapped(null=True, value=Json(null=True)),
        "resource_opts": Mapped(null=True, value=Json(null=True)),
        "preopen_ports": Items(null=True, item=Integer(least=1024, most=65535, text=True)),
        "agent_list": Items(null=True, item=Text(blank=False)),
    }
)
CREATE = {
    "name": SESSION_NAME,
    "image": Text(blank=False),
    "arch": OPTIONAL,
    "type": Choice(),
    "group": Text(blank=False),
    "domain": OPTIONAL,
    "cluster_size": Integer(least=1, most=2**31 - 1, text=True),
    "cluster_mode": Choice(),
    "config": CONFIG,
    "tag": Text(null=True, blank=False, longest=64),
    "enqueueOnly": Boolean(null=True, words=True),
    "maxWaitSeconds": Integer(least=0, most=2**31 - 1, text=True),
    "starts_at": OPTIONAL,
    "reuseIfExists": Boolean(null=True, words=True),
    "startupCommand": OPTIONAL,
    "bootstrap_script": Text(null=True, blank=False, longest=16384),
    "dependencies": Items(null=True, item=Text(blank=False)),
    "callback_url": Text(null=True, blank=False, unlike=["localhost", "://x", "a b://c"]),
    "owner_access_key": OPTIONAL,
}
PUT_RUN = {
    "mode": Choice(),
    "code": Text(null=False, longest=1000),
    "timeout": Number(null=True, most=1e8),
    "clean": LINE,
    "build": LINE,
    "exec": LINE,
    "stdin": Text(null=True, longest=1 << 20),
}
EXECUTE = {
    "mode": Choice(),
    "runId": Text(null=True),
    "code": Text(null=True, longest=1000),
}
COMPLETE = {"code": Text(null=True, longest=1000)}
ANSWER = {
    "text": Text(null=True, longest=1 << 20),
    "offset": Integer(null=True, least=0, most=OFFSET),
}
STREAMS = Text(unlike=["gap", "stdout,", "STDOUT", "stdout;stderr", ""])
READ_OUTPUT = {
    "offset": Integer(least=0, most=OFFSET),
    "wait": Number(most=30.0),
    "max_bytes": Integer(least=1, most=1 << 20),
    "stream": STREAMS,
}
ECHO = {
    "place": "legacy",
    "kinds": {"echo": Text(blank=False)},
    "good": {"echo": "good"},
    "model": accounts.Echo,
}
DOWNLOAD = {"place": "legacy", "kinds": {"files": Items(item=Text())}, "model": files.Download}
SINGLE = {
    "place": "legacy",
    "kinds": {"file": Text(blank=False)},
    "good": {"file": "f"},
    "model": files.DownloadSingle,
}
FORM = b'--b\r\nContent-Disposition: form-data; name="src"; filename="f"\r\n\r\nx\r\n--b--\r\n'
FORM_TYPE = "multipart/form-data; boundary=b"
JOIN_TOKEN = TokenText.make(bytes([1] * 6), bytes([1] * 24))
JOIN = {
    "id": "i-2",
    "addr": "tcp://127.0.0.1:6001",
    "public_key": "k" * 40,
    "architecture": "x86_64",
    "token": str(JOIN_TOKEN),
}
RUN = "/session/<name>/runs/<run_id>"

ENDPOINTS = [
    Endpoint(rule="/", public=True),
    Endpoint(rule="/manager/announcement", public=True),
    Endpoint(rule="/livez", public=True),
    Endpoint(rule="/readyz", public=True),
    Endpoint(rule="/metrics", public=True),
    *(
        Endpoint(rule=rule, method=method, longest=60_000, **ECHO)
        for rule in ("/auth", "/auth/test")
        for method in ("GET", "POST")
    ),
    *(
        Endpoint(
            rule=rule,
            method="POST",
            place="legacy",
            good={"name": "my-session", "image": "python"},
            kinds=CREATE,
            model=sessions.CreateSession,
            longest=60_000,
        )
        for rule in ("/session", "/session/_/create")
    ),
    Endpoint(
        rule="/session/_/match",
        place="legacy",
        good={"id": "my"},
        kinds={"id": Text(blank=False), "owner_access_key": Text(blank=False)},
        model=sessions.MatchSessions,
    ),
    Endpoint(
        rule="/sessions",
        place="query",
        kinds={
            "status": Text(unlike=["DONE", "RUNNING,DONE", "running", ",", ""]),
            "limit": Integer(least=1, most=200),
            "after": Text(),
        },
        model=sessions.ListSessions,
    ),
    Endpoint(
        rule="/agents/join",
        method="POST",
        public=True,
        place="json",
        good=JOIN,
        kinds={
            "id": Text(blank=False, longest=64, unlike=["a b", "../a", "-a", "a\n"]),
            "addr": Text(
                blank=False, unlike=["10.0.0.1:6001", "tcp://node01:6001", "tcp://10.0.0.1:0", "ipc://x"]
            ),
            "public_key": Text(blank=False, longest=40, unlike=["k" * 39, "#\xe4" * 20]),
            "architecture": Text(blank=False, longest=32, unlike=["X86/64", "x86\n"]),
            "token": Text(),
        },
        model=agents.Join,
        longest=8192,
    ),
    session("/session/<ref>"),
    session(
        "/session/<ref>",
        method="DELETE",
        place="legacy",
        kinds={"forced": Boolean(null=True, words=True), "owner_access_key": OPTIONAL},
        model=sessions.DestroySession,
        longest=60_000,
    ),
    session("/session/<ref>", method="PATCH", status=204),
    session(
        "/session/<ref>/rename",
        method="POST",
        place="legacy",
        good={"name": "new-name"},
        kinds={"name": SESSION_NAME},
        model=sessions.RenameSession,
        longest=60_000,
        status=204,
    ),
    session("/session/<name>/why"),
    session(
        "/session/<ref>",
        method="POST",
        place="json",
        good={"mode": "query", "code": "1", "runId": None},
        kinds=EXECUTE,
        strict=False,
        longest=1 << 22,
    ),
    session(
        "/session/<ref>/complete",
        method="POST",
        place="json",
        good={"code": "pri"},
        kinds=COMPLETE,
        strict=False,
        longest=1 << 22,
    ),
    session("/session/<ref>/interrupt", method="POST", status=204),
    session(
        RUN, method="PUT", place="json", good={"code": "1"}, kinds=PUT_RUN, model=runs.PutRun, longest=1 << 22
    ),
    session(RUN),
    session(RUN, method="DELETE", status=409),  # it has not ended
    session(
        "/session/<name>/runs",
        place="query",
        kinds={"limit": Integer(least=1, most=100), "after": Text()},
        model=runs.ListRuns,
    ),
    session(
        RUN + "/input",
        method="POST",
        place="json",
        good={"text": "yes"},
        kinds=ANSWER,
        model=runs.AnswerRun,
        longest=1 << 22,
    ),
    session(RUN + "/interrupt", method="POST"),
    session(RUN + "/output", place="query", kinds=READ_OUTPUT, model=runs.ReadOutput),
    session("/session/<name>/files/"),
    session(
        "/session/<name>/files/<path:path>",
        place="query",
        kinds={"offset": Integer(least=0, most=OFFSET), "length": Integer(least=0, most=OFFSET)},
        model=files.ReadFile,
    ),
    session(
        "/session/<name>/files/<path:path>",
        method="PUT",
        place="bytes",
        kinds={
            "upload": Text(unlike=["", "a b", "a/b", "..%2f", "a\n"], longest=64),
            "offset": Integer(least=0, most=OFFSET),
            "final": Boolean(),
        },
        model=files.WriteFile,
        body=b"x",  # taken as it comes: how large it may be is the agent's to say
    ),
    session(
        "/session/<name>/files/<path:path>",
        method="PATCH",
        place="bytes",
        kinds={
            "offset": Integer(least=0, most=OFFSET),
            "rename": Text(blank=False),
            "replace": Boolean(),
        },
        model=files.PatchFile,
        longest=100_000,
        body=b"x",
    ),
    session(
        "/session/<name>/files/<path:path>",
        method="DELETE",
        place="query",
        kinds={"recursive": Boolean()},
        model=files.RemoveFile,
        status=204,
    ),
    session(
        "/session/<ref>/upload",
        method="POST",
        place="form",
        body=FORM,
        content_type=FORM_TYPE,
        status=204,
        longest=20 * ((1 << 20) + 8192) + 65536,
    ),
    session("/session/<ref>/download", good={"files": "f"}, **DOWNLOAD),
    session("/session/<ref>/download", method="POST", good={"files": ["f"]}, longest=60_000, **DOWNLOAD),
    session("/session/<ref>/download_single", **SINGLE),
    session("/session/<ref>/download_single", method="POST", longest=60_000, **SINGLE),
    session(
        "/session/<ref>/files",
        place="json",
        good={"path": "f"},
        kinds={"path": Text(blank=False)},
        model=files.ListFiles,
        longest=60_000,
    ),
    session(
        "/session/<ref>/logs",
        place="legacy",
        kinds={"owner_access_key": Text(blank=False)},
        model=files.ReadLogs,
    ),
    session("/stream/session/<ref>/execute", websocket=True, status=101),
    session(
        "/session/<ref>/start-service",
        method="POST",
        place="legacy",
        good={"app": "http"},
        kinds={**APP, "login_session_token": ANY},
        model=apps.StartService,
        longest=60_000,
        status=503,
    ),
    session(
        "/session/<ref>/shutdown-service",
        method="POST",
        place="legacy",
        good={"service_name": "http"},
        kinds={"service_name": Text(blank=False, longest=64)},
        model=apps.ShutdownService,
        longest=60_000,
        status=204,
    ),
    session("/stream/session/<ref>/apps"),
    *(
        session(
            f"/stream/session/<ref>/{kind}",
            websocket=True,
            status=101,
            place="query",
            good={"app": "http"},
            kinds=APP,
            model=apps.OpenApp,
        )
        for kind in ("tcpproxy", "httpproxy")
    ),
    session(
        "/stream/session/<ref>/pty",
        websocket=True,
        status=101,
        place="query",
        good={"terminal": "t1"},
        kinds={"terminal": RUN_NAME, "client": RUN_NAME, "offset": Integer(least=0, most=OFFSET)},
        model=terminals.AttachTerminal,
    ),
    session(
        "/stream/session/<name>/runs/<run_id>",
        websocket=True,
        status=101,
        place="query",
        kinds={"offset": Integer(least=0, most=OFFSET), "stream": STREAMS},
        model=runs.FollowOutput,
    ),
]
