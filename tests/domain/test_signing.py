"""Signatures: the published vectors, and that nothing but the very same request passes."""

from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.domain.errors import MalformedAuth, NotAuthenticated, Refusal
from backendai_mgr.domain.signing import (
    Authorization,
    SignedParts,
    check_date,
    parse_authorization,
    sign,
    signed_content_type,
    verify,
)

ACCESS = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
DAY = date(2022, 3, 15)
DATE = "2022-03-15T01:02:03.456789+00:00"


def parts(method="GET", host="127.0.0.1:8081", target="/", date=DATE, content_type="text/plain", **more):
    more = {"version": "v6.20220315"} | more
    return SignedParts(method=method, host=host, target=target, date=date, content_type=content_type, **more)


V5 = (
    "2fe93f2398833264af7f6e53d95f8055a49bfb0ddb17708a5c6bbc8f88c3a6ef"
    "5ecb48fe8619c78c7fb04607c8b8e0d2f8df0b323f858a5a502a15bdacbd61b7"
)
VECTORS = {
    "V1 GET with a query": (
        parts(host="api.example.com", target="/auth?echo=hello"),
        DAY, "sha256", "a0a9836b9109bb1431361ac87c0f4ddb5b068f9af2a03119fb5c657b1223860a",
    ),
    "V2 POST of JSON": (
        parts("POST", target="/session", content_type="application/json"),
        DAY, "sha256", "689aae1e6045b14f24389b3626000714ee44abeb3eb53cdee9cd5f424f7a2496",
    ),
    "V3 a date without zone": (
        parts(host="api.example.com:8443", target="/session/_/match?id=abc", date="2022-03-15T00:30:00"),
        DAY, "sha256", "5edf0e01184f39c9e072a4beb6e0ce91ffac46ee4ee9493693ae086cc8acbc51",
    ),
    "V4 an offset by which the UTC day differs": (
        parts("DELETE", target="/session/my-sess?forced=true", date="2022-03-15T00:30:00+09:30"),
        DAY, "sha256", "ec7df7af74d6cfff6c7dd2be3dfb52ec06c9ccf8950dc6b69031765654710693",
    ),
    "V5 SHA-512 and multipart": (
        parts("POST", target="/session/my-sess/upload", content_type="multipart/form-data"),
        DAY, "sha512", V5,
    ),
    "V6 a websocket": (
        parts(target="/stream/session/my-sess/pty", content_type="application/octet-stream"),
        DAY, "sha256", "78867cf5827678763e5c2f0e55d674cfc1f64a1349a609ed8fe3e46ed413f6cf",
    ),
    "V7 the legacy header": (
        parts(
            host="your.sorna.api.endpoint", target="/v2", date="20160930T01:23:45Z",
            content_type="application/json", version="v2.20170215", version_header="x-sorna-version",
        ),
        date(2016, 9, 30), "sha256", "ca177162e332893e70743f6612ffe2cfad8b1a036bcfddf4a83f4897459be757",
    ),
}  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_published_vectors(vector):
    signed, day, hash_name, signature = vector
    assert sign(signed, SECRET, day, hash_name) == signature


def test_the_string_to_sign_is_the_published_one():
    assert VECTORS["V1 GET with a query"][0].string_to_sign("sha256").decode() == (
        "GET\n/auth?echo=hello\n2022-03-15T01:02:03.456789+00:00\nhost:api.example.com\n"
        "content-type:text/plain\nx-backendai-version:v6.20220315\n"
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )


texts = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1, max_size=30)
some_parts = st.builds(
    SignedParts,
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
    target=texts, date=texts, host=texts, content_type=texts, version=texts,
)  # fmt: skip
hashes = st.sampled_from(["sha1", "md5", "sha256", "sha512", "blake2b", "sha3_256"])


def authorization(signature, method="HMAC-SHA256"):
    return Authorization(sign_method=method, access_key=ACCESS, signature=signature)


@given(some_parts, texts, hashes, st.dates())
def test_what_was_signed_verifies(signed, secret, hash_name, day):
    verify(signed, secret, day, authorization(sign(signed, secret, day, hash_name)), hash_name)


@given(some_parts, st.data())
def test_any_changed_byte_is_a_mismatch(signed, data):
    signature = sign(signed, SECRET, DAY)
    fields = ("method", "target", "date", "host", "content_type", "version", "version_header")
    field = data.draw(st.sampled_from(fields))
    text = getattr(signed, field)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda letter: letter != text[at]))
    changed = {name: getattr(signed, name) for name in fields} | {field: text[:at] + other + text[at + 1 :]}
    with pytest.raises(NotAuthenticated, match="Signature mismatch"):
        verify(SignedParts(**changed), SECRET, DAY, authorization(signature), "sha256")


@given(st.integers(0, 63), st.characters())
def test_any_changed_character_of_the_signature_is_a_mismatch(at, other):
    signature = sign(parts(), SECRET, DAY)
    if signature[at] == other:
        return
    forged = signature[:at] + other + signature[at + 1 :]
    with pytest.raises(NotAuthenticated):
        verify(parts(), SECRET, DAY, authorization(forged.encode(errors="replace").decode()), "sha256")


def test_day_and_secret_take_part():
    signature = authorization(sign(parts(), SECRET, DAY))
    with pytest.raises(NotAuthenticated):
        verify(parts(), SECRET, DAY + timedelta(days=1), signature, "sha256")
    with pytest.raises(NotAuthenticated):
        verify(parts(), SECRET + "x", DAY, signature, "sha256")


@pytest.mark.parametrize(
    "header",
    [
        "BackendAI signMethod=HMAC-SHA256, credential=KEY:ab",
        "Sorna signMethod=HMAC-SHA256,credential=KEY:ab",
        "BackendAI  credential = KEY:ab ,  signMethod = HMAC-SHA256",
        "BackendAI signMethod=HMAC-SHA256, credential=KEY:ab, other=x=y",
    ],
)
def test_authorization_grammar(header):
    assert parse_authorization(header) == Authorization(
        sign_method="HMAC-SHA256", access_key="KEY", signature="ab"
    )


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("BackendAI", "Malformed authorization header"),
        ("Bearer abc", "Invalid authorization type name"),
        ("backendai signMethod=HMAC-SHA256, credential=K:s", "Invalid authorization type name"),
        ("BackendAI ", "Missing or malformed authorization parameters"),
        ("BackendAI credential=K:s", "Missing or malformed authorization parameters"),
        ("BackendAI signMethod=HMAC-SHA256", "Missing or malformed authorization parameters"),
        ("BackendAI signMethod=HMAC-SHA256, credential=Ks", "Missing or malformed authorization parameters"),
        ("BackendAI signMethod, credential=K:s", "Missing or malformed authorization parameters"),
        (
            "BackendAI signMethod=HMAC-SHA256, credential=K:s,",
            "Missing or malformed authorization parameters",
        ),
    ],
)
def test_malformed_authorization(header, message):
    with pytest.raises(MalformedAuth, match=message):
        parse_authorization(header)


@given(st.text())
def test_any_authorization_header_parses_or_is_refused(header):
    with suppress(Refusal):
        _ = parse_authorization(header).hash_name
    with suppress(Refusal):
        _ = parse_authorization("BackendAI " + header).hash_name


@pytest.mark.parametrize(
    ("method", "refusal", "message"),
    [
        ("HMAC", NotAuthenticated, "Invalid signature"),
        ("HMAC-SHA3-256", NotAuthenticated, "Invalid signature"),
        ("", NotAuthenticated, "Invalid signature"),
        ("CMAC-SHA256", MalformedAuth, "MAC type"),
        ("HMAC-SHA999", MalformedAuth, "hash type"),
        ("HMAC-SHAKE_128", MalformedAuth, "hash type"),
    ],
)
def test_unusable_sign_methods(method, refusal, message):
    with pytest.raises(refusal, match=message):
        _ = authorization("ab", method).hash_name


@pytest.mark.parametrize("method", ["HMAC-SHA256", "hmac-sha256", "HMAC-sha3_256", "Hmac-BLAKE2b"])
def test_usable_sign_methods_in_any_case(method):
    assert authorization("ab", method).hash_name == method.split("-")[1].lower()


@pytest.mark.parametrize(
    ("minutes", "fine"), [(0, True), (14.99, True), (15, False), (-14.99, True), (-15, False)]
)
def test_dates_are_strictly_within_a_quarter_of_an_hour(minutes, fine):
    now = datetime(2022, 3, 15, 12, tzinfo=UTC)
    moment = (now + timedelta(minutes=minutes)).astimezone(timezone(timedelta(hours=9.5)))
    if fine:
        check_date(moment, now)
    else:
        with pytest.raises(MalformedAuth, match="Date/time sync error"):
            check_date(moment, now)


@pytest.mark.parametrize(
    ("header", "signed"),
    [
        (None, "application/octet-stream"),
        ("application/json", "application/json"),
        ("Application/JSON; charset=utf-8", "application/json"),
        ("multipart/form-data; boundary=x", "multipart/form-data"),
        ("nonsense", "text/plain"),
        ("", "text/plain"),
    ],
)
def test_content_type_as_it_is_signed(header, signed):
    assert signed_content_type(header) == signed
