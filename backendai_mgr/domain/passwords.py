"""Stored passwords: ``scrypt$n$r$p$salt$hash``, with salt and hash in base64.

n, r and p are scrypt's cost, so that a later program can raise it and still verify what is stored.
"""

import base64
import binascii
import hashlib
import hmac

_N, _R, _P = 2**14, 8, 1
_KEY_BYTES = 32
#: What a hash may cost to verify; a stored text that asks for more is not ours.
_MAX_MEMORY = 64 * 1024 * 1024
_SCHEME = "scrypt"


def hash_password(text: str, salt: bytes) -> str:
    """The form in which a password is stored. Takes some 50 ms; *salt* is 16 fresh random bytes."""
    key = _derive(text, salt, _N, _R, _P, _KEY_BYTES)
    return "$".join((_SCHEME, str(_N), str(_R), str(_P), _encode(salt), _encode(key)))


def is_hashed(text: str) -> bool:
    """Whether *text* is already in the stored form."""
    return text.startswith(_SCHEME + "$") and text.count("$") == 5


def verify_password(text: str, stored: str) -> bool:
    """Whether *text* is the password that was stored. False, too, for a stored text of another form."""
    if not is_hashed(stored):
        return False
    _, n, r, p, salt, key = stored.split("$")
    try:
        wanted = base64.b64decode(key, validate=True)
        found = _derive(text, base64.b64decode(salt, validate=True), int(n), int(r), int(p), len(wanted))
    except (ValueError, binascii.Error, OverflowError):
        return False
    return hmac.compare_digest(found, wanted)


def _derive(text: str, salt: bytes, n: int, r: int, p: int, length: int) -> bytes:
    return hashlib.scrypt(
        text.encode("utf-8", "surrogatepass"), salt=salt, n=n, r=r, p=p, maxmem=_MAX_MEMORY, dklen=length
    )


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
