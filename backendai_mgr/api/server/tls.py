"""TLS of the HTTP interface: a context from the certificate's files, which can be read anew while serving."""

import ssl
from pathlib import Path

from ...runtime.config import ConfigError

#: What may be spoken through TLS, by preference (RFC 7301).
ALPN = ("h2", "http/1.1")


class CertificateError(ConfigError):
    """The certificate or its key cannot be used."""


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A context of TLS 1.2 and newer; *certificate* is a PEM file with its chain. `CertificateError`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # RFC 9113 §9.2 wants ciphers with forward secrecy and no compression for HTTP/2.
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(ALPN)
    load_certificate(context, certificate, key)
    return context


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Use the files from the next handshake on; `CertificateError` leaves the context as it was."""
    for candidate in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
        try:
            candidate.load_cert_chain(certificate, key, password=_no_password)
        except ssl.SSLError as error:
            raise CertificateError(
                f"The certificate {certificate} and the key {key} cannot be used: {_reason(error)}."
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise CertificateError(f"{certificate} or {key} cannot be read: {reason}.") from error


def _no_password() -> str:
    """Asked for when the key is encrypted; without this OpenSSL would ask the terminal."""
    raise ValueError("the key is protected by a password")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "it is not PEM").replace("_", " ").lower()
