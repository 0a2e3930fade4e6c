"""Authentication over HTTP: every row of the table of failures, liberal dates, headers of old clients."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.api.dates import parse_date
from backendai_mgr.domain.errors import MalformedAuth
from backendai_mgr.domain.signing import SignedParts, sign
from tests.fakes.services import ACCESS_KEY, SECRET_KEY

from .harness import VERSION, signed_headers

TARGET = "/auth?echo=x"
NOW = datetime(2022, 3, 15, 1, 2, 3, tzinfo=UTC)


async def get(server, target=TARGET, method="GET", **headers):
    """An answer to headers that are given in full; None takes one away."""
    sent = {"Host": server.host} | signed_headers("GET", TARGET, server.host) | headers
    async with server.client(auth=None) as client:
        return await client.request(
            method, target, headers={name: value for name, value in sent.items() if value is not None}
        )


def problem_of(reply):
    assert reply.headers["content-type"] == "application/problem+json"
    return reply.status_code, reply.json()["type"].rpartition("/")[2], reply.json().get("msg")


AUTH = "BackendAI signMethod=HMAC-SHA256, credential=" + ACCESS_KEY
BAD_DATE = (400, "invalid-auth-params", "Date/time sync error")
BAD_PARAMETERS = (400, "invalid-auth-params", "Missing or malformed authorization parameters")


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"Date": None}, BAD_DATE),
        ({"Date": ""}, BAD_DATE),
        ({"Date": "yesterday"}, BAD_DATE),
        ({"Date": "2022-03-15T01:02:03 XYZ"}, BAD_DATE),
        ({"Date": "2022-03-15T01:02:03Z"}, BAD_DATE),
        ({"Date": "9" * 5000}, BAD_DATE),
        ({"Authorization": None}, (401, "auth-failed", "Unauthorized access")),
        ({"Authorization": ""}, (401, "auth-failed", "Unauthorized access")),
        ({"Authorization": "BackendAI"}, (400, "invalid-auth-params", "Malformed authorization header")),
        ({"Authorization": "Basic eDp5"}, (400, "invalid-auth-params", "Invalid authorization type name")),
        ({"Authorization": "BackendAI credential=x:y"}, BAD_PARAMETERS),
        ({"Authorization": "BackendAI signMethod=HMAC-SHA256, credential=x"}, BAD_PARAMETERS),
        ({"Authorization": "BackendAI signMethod, credential=x:y"}, BAD_PARAMETERS),
        ({"Authorization": AUTH[:-1] + "X:00"}, (401, "auth-failed", "Access key not found")),
        (
            {"Authorization": "BackendAI signMethod=HMAC-SHA256, credential=\xff:00"},
            (401, "auth-failed", "Access key not found"),
        ),
        ({"Authorization": AUTH.replace("HMAC-SHA256", "HMAC-X") + ":0"}, (400, "invalid-auth-params", None)),
        ({"Authorization": AUTH.replace("HMAC-", "CMAC-") + ":0"}, (400, "invalid-auth-params", None)),
        (
            {"Authorization": AUTH.replace("HMAC-SHA256", "SHA256") + ":0"},
            (401, "auth-failed", "Invalid signature"),
        ),
        (
            {"X-BackendAI-Version": None},
            (400, "invalid-auth-params", "API version missing in request headers"),
        ),
        ({"Authorization": AUTH + ":00"}, (401, "auth-failed", "Signature mismatch")),
        ({"Authorization": AUTH + ":"}, (401, "auth-failed", "Signature mismatch")),
        ({"Authorization": AUTH + ":\xff"}, (401, "auth-failed", "Signature mismatch")),
        ({"Content-Type": "text/html"}, (401, "auth-failed", "Signature mismatch")),
        ({"X-BackendAI-Version": "v6.20210815"}, (401, "auth-failed", "Signature mismatch")),
        ({"X-BackendAI-Version": "v3.20170615"}, (400, "generic-bad-request", "Unsupported API version.")),
        ({"X-BackendAI-Version": "v7.20230615"}, (400, "generic-bad-request", "Unsupported API version.")),
        ({"X-BackendAI-Version": "6"}, (400, "generic-bad-request", "Unsupported API version.")),
    ],
)
async def test_each_failure(server, headers, problem):
    encoded = {name: value and value.encode("latin-1") for name, value in headers.items()}
    status, kind, msg = problem_of(await get(server, **encoded))
    assert (status, kind) == problem[:2]
    assert problem[2] is None or msg == problem[2]
    assert (await get(server)).status_code == 200


async def test_method_target_and_host_are_signed(server):
    for changed in (
        await get(server, target="/auth?echo=y"),
        await get(server, target="/auth?echo=%78"),
        await get(server, method="POST"),
        await get(server, Host="other.example"),
    ):
        assert problem_of(changed) == (401, "auth-failed", "Signature mismatch")


@pytest.mark.parametrize(
    "write",
    [
        lambda now: now.isoformat(),
        lambda now: now.replace(tzinfo=None).isoformat(),
        lambda now: now.strftime("%Y%m%dT%H%M%SZ"),
        lambda now: format_datetime(now, usegmt=True),
        lambda now: now.astimezone(timezone(timedelta(hours=9))).strftime("%Y-%m-%d %H:%M:%S KST"),
        lambda now: now.astimezone(timezone(timedelta(hours=9.5))).isoformat(),
        lambda now: now.strftime("%a %b %d %H:%M:%S %Y"),
    ],
)
async def test_dates_of_many_forms(server, write):
    now = datetime.now(UTC)
    date = write(now)
    day = parse_date(date, now)
    parts = SignedParts(
        method="GET", target=TARGET, date=date, host=server.host,
        content_type="application/octet-stream", version=VERSION,
    )  # fmt: skip
    reply = await get(server, Authorization=f"{AUTH}:{sign(parts, SECRET_KEY, day)}", Date=date)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2022-03-15T01:02:03", NOW),
        ("2022-03-15T01:02:03Z", NOW),
        ("20220315T010203Z", NOW),
        ("Tue, 15 Mar 2022 01:02:03 GMT", NOW),
        ("2022-03-15 10:02:03 KST", NOW),
        ("2022-03-15 10:02:03 JST", NOW),
        ("2022-03-14 20:02:03 EST", NOW),
        ("2022-03-14 20:02:03 EDT", NOW),
        ("2022-03-14 17:02:03 PST", NOW),
        ("2022-03-14 18:02:03 PDT", NOW),
        ("2022-03-15 02:02:03 CET", NOW),
        ("2022-03-15 03:02:03 CEST", NOW),
        ("2022-03-15 06:32:03 IST", NOW),
        ("2022-03-15 04:02:03 AST", NOW),
        ("2022-03-15 07:02:03 BST", NOW),
        ("2022-03-15 10:02:03 I", NOW),
        ("01:02:03", NOW),
    ],
)
def test_zones_and_forms(text, expected):
    assert parse_date(text, NOW) == expected


@given(st.one_of(st.text(), st.text("0123456789:-+TZ .,/", max_size=70)))
def test_any_date_parses_or_is_refused(text):
    with suppress(MalformedAuth):
        assert parse_date(text, NOW).tzinfo is not None


async def test_the_headers_of_old_clients(server):
    headers = signed_headers("GET", TARGET, server.host)
    date = headers.pop("Date")
    version = headers.pop("X-BackendAI-Version")
    parts = SignedParts(
        method="GET", target=TARGET, date=date, host=server.host, content_type="application/octet-stream",
        version=version, version_header="x-sorna-version",
    )  # fmt: skip
    signature = sign(parts, SECRET_KEY, datetime.fromisoformat(date))
    for date_header in ("Date", "X-BackendAI-Date", "X-Sorna-Date"):
        async with server.client(auth=None) as client:
            reply = await client.get(
                TARGET,
                headers={
                    "Authorization": f"Sorna signMethod=HMAC-SHA256, credential={ACCESS_KEY}:{signature}",
                    date_header: date,
                    "X-Sorna-Version": version,
                },
            )
        assert reply.status_code == 200, reply.text


async def test_other_hashes(server):
    for hash_name in ("sha512", "sha1", "blake2b"):
        async with server.client(auth=None) as client:
            headers = signed_headers("GET", TARGET, server.host, hash_name=hash_name)
            assert (await client.get(TARGET, headers=headers)).status_code == 200


async def test_public_paths_need_no_date_and_no_key(server):
    async with server.client(auth=None) as client:
        for path in ("/", "/manager/announcement", "/livez", "/readyz", "/metrics"):
            reply = await client.get(path, headers={"Authorization": "nonsense", "Date": "nonsense"})
            assert reply.status_code == 200


async def test_the_overriding_method_is_routed_and_signed(server):
    headers = signed_headers("DELETE", "/session/my-session", server.host)
    async with server.client(auth=None) as client:
        reply = await client.post("/session/my-session", headers=headers | {"X-Method-Override": "delete"})
        assert reply.json() == {"stats": {"status": "terminated", "version": 2}}
        reply = await client.post("/auth", headers={"X-Method-Override": "FLY"})
        assert reply.status_code == 405
        assert "GET" in reply.headers["allow"]


async def test_the_database_away_is_503(server):
    server.keys.away = True
    reply = await get(server)
    assert problem_of(reply)[:2] == (503, "service-unavailable")
    assert reply.headers["retry-after"] == "2"
    server.keys.away = False
    assert (await get(server)).status_code == 200
