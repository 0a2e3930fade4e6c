"""CURVE on ZeroMQ sockets (ZeroMQ RFC 26) and the answers of a ZAP handler (RFC 27), without any waiting.

Keys are Z85 text of 40 characters. A server admits the clients whose public key its ``admits`` accepts, and
nobody else: neither one without a key nor, should its handler ever be missing, one with the right key.
"""

import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence

import attrs
import zmq
import zmq.utils.z85

#: Where libzmq asks a context's ZAP handler.
ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_DOMAIN = b"local"
_ZAP_VERSION = b"1.0"
_ADMITTED_AS = b"manager"

HANDSHAKE_FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


@attrs.frozen(kw_only=True)
class CurveClient:
    """The keys of a socket that dials; ``server_key`` is the public key of the one it wants to reach."""

    public_key: str
    secret_key: str = attrs.field(repr=False)
    server_key: str

    @property
    def options(self) -> Mapping[int, bytes]:
        return {
            zmq.CURVE_PUBLICKEY: self.public_key.encode(),
            zmq.CURVE_SECRETKEY: self.secret_key.encode(),
            zmq.CURVE_SERVERKEY: self.server_key.encode(),
        }


@attrs.frozen(kw_only=True)
class CurveServer:
    """The key of a socket that is bound, and which clients it admits, by their public keys. While ``admits``
    has not answered the client's handshake waits, and those of all others."""

    secret_key: str = attrs.field(repr=False)
    admits: Callable[[str], Awaitable[bool]]

    @property
    def options(self) -> Mapping[int, bytes | int]:
        return {
            zmq.CURVE_SERVER: 1,
            zmq.CURVE_SECRETKEY: self.secret_key.encode(),
            zmq.ZAP_DOMAIN: _ZAP_DOMAIN,
            # Without a handler libzmq would else let in whoever knows the public key.
            zmq.ZAP_ENFORCE_DOMAIN: 1,
        }


def new_key_pair() -> tuple[str, str]:
    """A new (public key, secret key)."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def public_key_of(secret_key: str) -> str:
    """The public key that belongs to *secret_key*; ValueError when that is no key."""
    try:
        return zmq.curve_public(secret_key.encode()).decode()
    except (zmq.ZMQError, ValueError) as error:
        raise ValueError("not a key") from error


def zap_client(request: Sequence[bytes]) -> str | None:
    """The public key that a ZAP request asks about; None for what is no CURVE client of ours."""
    match request:
        case [b"1.0", _, domain, _, _, b"CURVE", key] if domain == _ZAP_DOMAIN and len(key) == 32:
            return zmq.utils.z85.encode(key).decode()
    return None


def zap_reply(request: Sequence[bytes], admitted: bool) -> list[bytes]:
    """The answer to a ZAP request."""
    request_id = request[1] if len(request) > 1 else b""
    if admitted:
        return [_ZAP_VERSION, request_id, b"200", b"OK", _ADMITTED_AS, b""]
    return [_ZAP_VERSION, request_id, b"400", b"not admitted", b"", b""]


@attrs.frozen
class SocketEvent:
    """What a monitor tells; ``endpoint`` is the address that was dialled or is bound."""

    event: int
    value: int
    endpoint: str

    @classmethod
    def parse(cls, frames: Sequence[bytes]) -> "SocketEvent":
        event, value = struct.unpack("=HI", frames[0])
        return cls(event, value, frames[1].decode(errors="replace"))

    def failure(self, *, dialled: bool) -> str:
        """Why the handshake failed, as this end sees it."""
        match self.event:
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                return "it does not admit our key" if dialled else "its key is not admitted"
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                if self.value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                    return "one side encrypts and the other does not"
                if self.value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
                    return "its key, or the one that it holds for ours, is another one"
                return "it does not speak our protocol"
        return "it hung up during the handshake, as one does that has another key"
