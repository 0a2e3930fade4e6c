"""SHA-256 without hashlib, which would load all of OpenSSL: megabytes in each of many processes."""

from __future__ import annotations

import importlib
import sys

_sha256 = importlib.import_module("_sha2" if sys.version_info >= (3, 12) else "_sha256").sha256


def sha256(data: bytes) -> str:
    """Return the digest in hexadecimal digits."""
    digest: str = _sha256(data).hexdigest()
    return digest
