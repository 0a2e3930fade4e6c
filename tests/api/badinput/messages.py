"""What can be wrong with any request: who sends it, what it claims to be, how its body is written."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from .endpoints import Endpoint
from .kinds import Items
from .wire import Request


@attrs.frozen
class Bad:
    """A request and its refusal: status, type, and the fields that the problem's ``data`` names (None: not
    looked at)."""

    request: Request
    status: int
    kind: str
    fields: list[str] | None = None


INVALID = 400, "invalid-api-params"
BAD_AUTH = 400, "invalid-auth-params"
DENIED = 401, "auth-failed"
BAD_REQUEST = 400, "generic-bad-request"

Faults = Iterator[tuple[str, Bad]]


def with_headers(request: Request, **fields: str | None) -> Request:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return attrs.evolve(request, headers={**request.headers, **headers})


def signed_as(request: Request, **parts: Any) -> Request:
    return attrs.evolve(request, signed={**request.signed, **parts})


def ago(**time: float) -> Callable[[], str]:
    """The date that was so long ago, told when the request is sent."""
    return lambda: (datetime.now(UTC) - timedelta(**time)).isoformat()


def credentials(request: Request) -> Faults:
    """Who asks: signatures and dates (api-sessions §2.4)."""
    for name, header, refusal in (
        ("no credential", None, DENIED),
        ("an empty credential", "", DENIED),
        ("a scheme alone", "BackendAI", BAD_AUTH),
        ("another scheme", "Basic eDp5", BAD_AUTH),
        ("no method of signing", "BackendAI credential=a:b", BAD_AUTH),
        ("no signature", "BackendAI signMethod=HMAC-SHA256, credential=a", BAD_AUTH),
        ("a parameter without a value", "BackendAI signMethod, credential=a:b", BAD_AUTH),
        ("an unknown key", "BackendAI signMethod=HMAC-SHA256, credential=NOBODY:00", DENIED),
        ("a key that is too long", f"BackendAI signMethod=HMAC-SHA256, credential={'A' * 9999}:00", DENIED),
        ("a key that is no text", "BackendAI signMethod=HMAC-SHA256, credential=\xff:00", DENIED),
    ):
        yield name, Bad(with_headers(request, Authorization=header), *refusal)
    other_method = "GET" if request.method != "GET" else "POST"
    for name, parts in (
        ("another secret", {"secret": "wrong"}),
        ("another method signed", {"method": other_method}),
        ("another path signed", {"target": request.target + "x"}),
        (
            "another query signed",
            {"target": request.target + ("&" if "?" in request.target else "?") + "x=1"},
        ),
        ("another host signed", {"host": "example.com"}),
        ("another type of body signed", {"content_type": "image/png"}),
    ):
        yield name, Bad(signed_as(request, **parts), *DENIED)
    for name, date in (
        ("twenty minutes late", ago(minutes=20)),
        ("twenty minutes early", ago(minutes=-20)),
        ("a local time without its zone", lambda: ago(hours=-9)()[:-6]),
        ("another century", lambda: "1922-03-15T01:02:03Z"),
    ):
        yield name, Bad(signed_as(request, date=date), *BAD_AUTH)
    for name, header in (
        ("no date", None),
        ("an empty date", ""),
        ("a date that is none", "yesterday"),
        ("a date that is too long", "9" * 5000),
        ("a date of unknown zone", "2022-03-15T01:02:03 XYZ"),
    ):
        yield name, Bad(with_headers(request, Date=header), *BAD_AUTH)
    yield "no version", Bad(with_headers(request, X_BackendAI_Version=None), *BAD_AUTH)


def versions(request: Request) -> Faults:
    """The version of the API that it speaks."""
    for version in ("v1.20160915", "v9.20250722", "latest", "6", "../v6.20220315", "\xff"):
        bad = with_headers(request, X_BackendAI_Version=version)
        yield f"version {version!r}", Bad(bad, *BAD_REQUEST)


def methods(request: Request) -> Faults:
    """The method that replaces its own."""
    for name, method in (("a nonsense method", "FLY"), ("no method", ""), ("a long method", "A" * 5000)):
        yield name, Bad(with_headers(request, X_Method_Override=method), 405, "method-not-allowed")


#: Of what a good request has, what may be left out.
OPTIONAL_IN = {
    "/session/<ref>/complete": ("code",),
    "/session/<ref>/files": ("path",),
    "/session/<ref>": ("code",),
    "/stream/session/<ref>/pty": ("terminal",),
}
#: What is no JSON object of ours.
BODIES = {
    "cut off": b"{",
    "no JSON": b"hello",
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": "b"}'.encode("utf-16"),
    "a list": b"[]",
    "a text": b'"a"',
    "a number": b"1",
    "null": b"null",
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "a huge fraction": b'{"a": 1e999999}',
    "a huge integer": b'{"a": ' + b"9" * 9999 + b"}",
    "a name twice": b'{"a": 1, "a": 1}',
    "nested too deeply": b'{"a":' + b"[" * 30_000,
    "two objects": b"{}{}",
    "a form": b"a=b&c=d",
    "compressed": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\xae\x05\x00C\xbf\xa6\xa3\x02\x00\x00\x00",
    "random bytes": bytes(range(1, 256)),
    "white space": b" \n",
}


def bodies(endpoint: Endpoint) -> Faults:
    """How its body is written."""
    request = endpoint.request()
    if endpoint.in_body:
        for name, body in BODIES.items():
            if len(body) > endpoint.longest:
                continue
            yield f"body: {name}", Bad(attrs.evolve(request, body=body), *INVALID, ["body"])
    if endpoint.place == "json":
        yield "body: empty", Bad(attrs.evolve(request, body=b""), *INVALID, ["body"])
        yield "body: none", Bad(attrs.evolve(request, body=None), *INVALID, ["body"])
    if endpoint.longest:
        large = attrs.evolve(request, body=None, padding=endpoint.longest + 1)
        yield "body: too large", Bad(large, 413, "generic-bad-request")


def paths(endpoint: Endpoint) -> Faults:
    """Its path, whose parameters become names of files and ids."""
    for name in endpoint.path:

        def bad(value: str, *refusal: Any, parameter: str = name) -> Bad:
            return Bad(endpoint.request(**{parameter: value}), *refusal)

        yield f"{name}: NUL", bad("a%00b", *INVALID, [name])
        for how, value in (
            ("not UTF-8", "%ff"),
            ("a surrogate", "%ed%a0%80"),
            ("an overlong slash", "%c0%ae%c0%ae%c0%af"),
        ):
            yield f"{name}: {how}", bad(value, *BAD_REQUEST)
        if name == "path" and endpoint.method == "PUT":
            continue  # any is one that may be written; the agent decides
        missing = 404, "object-not-found"
        if name == "run_id" and endpoint.method == "PUT":
            missing = *INVALID, ["run_id"]
        else:
            # As an id of a run these two are odd, but ids.
            if name != "path":
                yield f"{name}: a dot", bad(".", *missing)
            yield f"{name}: the parent", bad("..", *missing)
        yield f"{name}: too long", bad("a" * 3000, *missing)
        yield f"{name}: a header", bad("a%0d%0aX-Injected:%20yes", *missing)
        yield f"{name}: a format", bad("%25s%25n%7b0%7d", *missing)
        nowhere = 404, "url-not-found"
        yield f"{name}: absolute", bad("%2fetc%2fpasswd", *nowhere)
        for how, value in (
            ("traversal", "..%2f..%2f..%2fetc%2fpasswd"),
            ("mixed traversal", "%2e%2e/%2e%2e/etc/passwd"),
        ):
            yield f"{name}: {how}", bad(value, *(missing if name == "path" else nowhere))


def parameters(endpoint: Endpoint) -> Faults:
    """Each parameter missing, of every wrong kind, unknown, or twice."""
    if endpoint.in_body:
        for name, kind in endpoint.kinds.items():
            for how, value in kind.wrong():
                bad = endpoint.request({**endpoint.good, name: value})
                yield f"{name}: {how}", Bad(bad, *INVALID, [name])
    if endpoint.in_query and not endpoint.in_body:
        for name, kind in endpoint.kinds.items():
            if not isinstance(kind, Items):
                for how, text in kind.wrong_texts():
                    bad = endpoint.request({**endpoint.good, name: text})
                    yield f"?{name}: {how}", Bad(bad, *INVALID, [name])
    for name in endpoint.good:
        given = {other: value for other, value in endpoint.good.items() if other != name}
        if name not in OPTIONAL_IN.get(endpoint.rule, ()):
            yield f"{name}: missing", Bad(endpoint.request(given), *INVALID, [name])
    if endpoint.place in ("json", "legacy", "query", "bytes") and endpoint.strict:
        for unknown in ("colour", "startup_command", "Name", "__class__"):
            text = endpoint.request({**endpoint.good, unknown: "red"})
            yield f"{unknown}: unknown", Bad(text, *INVALID, [unknown])
    if endpoint.in_query:
        plain = attrs.evolve(endpoint.request({}), body=endpoint.body)
        for how, query, field in (
            ("hundreds", "&".join(f"a{n}=1" for n in range(200)), "query"),
            ("not UTF-8", "a=%ff", "query"),
        ):
            bad = attrs.evolve(plain, target=f"{plain.target}?{query}")
            yield f"query: {how}", Bad(bad, *INVALID, [field])
    if endpoint.place in ("query", "bytes"):
        for name in endpoint.kinds:
            bad = attrs.evolve(plain, target=f"{plain.target}?{name}=1&{name}=1")
            yield f"query: {name} twice", Bad(bad, *INVALID, [name])


def faults(endpoint: Endpoint) -> Faults:
    """Every bad request to an endpoint, by what is wrong."""
    request = endpoint.request()
    if not endpoint.public:
        yield from credentials(request)
    yield from versions(request)
    if not endpoint.websocket:
        yield from methods(request)
    yield from bodies(endpoint)
    yield from paths(endpoint)
    yield from parameters(endpoint)
