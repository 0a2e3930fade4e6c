"""Signatures of requests (api-sessions §2): the string that is signed, signing it, verifying it. Pure.

The body never takes part: versions of the API that signed it are refused long before.
"""

import hashlib
import hmac
from datetime import date, datetime, timedelta

import attrs

from .errors import MalformedAuth, NotAuthenticated

#: A request's date must be nearer than this to the server's clock.
MAX_SKEW = timedelta(minutes=15)
SCHEMES = ("BackendAI", "Sorna")
#: Hashes of fixed length that every Python has; ``shake_*`` have none and cannot be used with HMAC.
HASHES = frozenset(name for name in hashlib.algorithms_guaranteed if not name.startswith("shake_"))
_EMPTY_DIGEST = {name: hashlib.new(name, b"").hexdigest() for name in HASHES}


@attrs.frozen(kw_only=True)
class SignedParts:
    """What of a request is signed, each text exactly as it was sent.

    ``target`` is the raw request target with its query; ``content_type`` has no parameters and is lower-case;
    ``version_header`` is the lower-case name of the header that carried ``version``.
    """

    method: str
    target: str
    date: str
    host: str
    content_type: str
    version: str
    version_header: str = "x-backendai-version"

    def string_to_sign(self, hash_name: str) -> bytes:
        """Seven lines without a final line feed; the last is the digest of the body that is never signed."""
        lines = (
            self.method,
            self.target,
            self.date,
            f"host:{self.host}",
            f"content-type:{self.content_type}",
            f"{self.version_header}:{self.version}",
            _EMPTY_DIGEST[hash_name],
        )
        return "\n".join(lines).encode()


@attrs.frozen(kw_only=True)
class Authorization:
    """A parsed ``Authorization`` header; the values are not checked yet."""

    sign_method: str
    access_key: str
    signature: str

    @property
    def hash_name(self) -> str:
        """The hash of ``signMethod`` by hashlib's name; `NotAuthenticated` or `MalformedAuth` if unusable."""
        parts = self.sign_method.split("-")
        if len(parts) != 2:
            raise NotAuthenticated("Invalid signature")
        mac, hash_name = parts[0].lower(), parts[1].lower()
        if mac != "hmac":
            raise MalformedAuth("Unsupported request signing method (MAC type)")
        if hash_name not in HASHES:
            raise MalformedAuth("Unsupported request signing method (hash type)")
        return hash_name


def parse_authorization(header: str) -> Authorization:
    """Parse ``BackendAI signMethod=HMAC-SHA256, credential=KEY:SIGNATURE``, else `MalformedAuth`."""
    scheme, space, rest = header.partition(" ")
    if not space:
        raise MalformedAuth("Malformed authorization header")
    if scheme not in SCHEMES:
        raise MalformedAuth("Invalid authorization type name")
    given: dict[str, str] = {}
    for item in rest.split(","):
        key, equals, value = item.partition("=")
        if not equals:
            raise MalformedAuth("Missing or malformed authorization parameters")
        given[key.strip()] = value.strip()
    access_key, colon, signature = given.get("credential", "").partition(":")
    if "signMethod" not in given or not colon:
        raise MalformedAuth("Missing or malformed authorization parameters")
    return Authorization(sign_method=given["signMethod"], access_key=access_key, signature=signature)


def check_date(moment: datetime, now: datetime) -> None:
    """Refuse a request's date that is 15 minutes or more away. Both have a time zone."""
    if not -MAX_SKEW < moment - now < MAX_SKEW:
        raise MalformedAuth("Date/time sync error")


def sign(parts: SignedParts, secret_key: str, day: date, hash_name: str = "sha256") -> str:
    """The signature in hex. ``day`` is the request's date in the zone that its own text names."""
    key = hmac.digest(secret_key.encode(), b"%04d%02d%02d" % (day.year, day.month, day.day), hash_name)
    key = hmac.digest(key, parts.host.encode(), hash_name)
    return hmac.digest(key, parts.string_to_sign(hash_name), hash_name).hex()


def verify(
    parts: SignedParts, secret_key: str, day: date, authorization: Authorization, hash_name: str
) -> None:
    """`NotAuthenticated` unless the signature is the one that the secret key makes. In constant time."""
    expected = sign(parts, secret_key, day, hash_name)
    if not hmac.compare_digest(expected.encode(), authorization.signature.encode()):
        raise NotAuthenticated("Signature mismatch")


def signed_content_type(header: str | None) -> str:
    """The media type that takes part in a signature, from a ``Content-Type`` header or its absence."""
    if header is None:
        return "application/octet-stream"
    media_type = header.partition(";")[0].strip().lower()
    return media_type if media_type.count("/") == 1 else "text/plain"
