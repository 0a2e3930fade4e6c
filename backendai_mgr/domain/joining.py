"""How an agent joins the cluster: join tokens, keys, addresses, and who may take whose place.

A join token is ``bmj-ID-SECRET``. Only its id and the SHA-256 of its secret are stored; the secret has 192
random bits, so that no slow hash is needed.
"""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import attrs

from .addresses import is_local_host, leads_off_loopback
from .errors import Conflict, Forbidden, InvalidParameters, NotAuthenticated
from .ids import AgentId
from .status import GONE, AgentStatus

AGENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", re.ASCII)
ARCHITECTURE = re.compile(r"[a-z0-9_-]{1,32}\Z", re.ASCII)
_TOKEN = re.compile(r"bmj-([0-9a-f]{12})-([0-9a-f]{48})\Z", re.ASCII)
_ADDRESS = re.compile(r"tcp://(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})\Z", re.ASCII)

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_KEY_LENGTH = 40

#: Bytes of a token's two random parts; it spells them in hexadecimal digits.
TOKEN_ID_BYTES = 6
TOKEN_SECRET_BYTES = 24

#: What is stored instead of the digest of a token that is not there: no secret has it.
_NO_DIGEST = "0" * 64


@attrs.frozen(kw_only=True)
class KeyPair:
    """The CURVE keys of one end of the agent link, as Z85 text."""

    public: str
    secret: str = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class TokenText:
    """A join token as it is handed over."""

    id: str
    secret: str = attrs.field(repr=False)

    @classmethod
    def make(cls, random_id: bytes, random_secret: bytes) -> "TokenText":
        """A new token from `TOKEN_ID_BYTES` and `TOKEN_SECRET_BYTES` fresh random bytes."""
        return cls(id=random_id.hex(), secret=random_secret.hex())

    @classmethod
    def parse(cls, text: str) -> "TokenText | None":
        """The token that *text* spells, None when it spells none."""
        found = _TOKEN.match(text)
        return None if found is None else cls(id=found[1], secret=found[2])

    def __str__(self) -> str:
        return f"bmj-{self.id}-{self.secret}"

    def digest(self) -> str:
        """What is stored of the secret."""
        return hashlib.sha256(self.secret.encode()).hexdigest()


@attrs.frozen(kw_only=True)
class StoredToken:
    """What the database keeps of a token. ``uses`` counts the agents that may still join with it."""

    id: str
    digest: str = attrs.field(repr=False)
    scaling_group: str
    expires_at: datetime
    uses: int


@attrs.frozen(kw_only=True)
class JoinRequest:
    """An agent that wants to join: the address where managers reach it, and its public key."""

    id: AgentId
    addr: str
    public_key: str
    architecture: str


@attrs.frozen(kw_only=True)
class KnownAgent:
    """An agent that joined before, under the same id or with the same key; ``joined_with`` is a token."""

    id: AgentId
    status: AgentStatus
    public_key: str | None
    joined_with: str | None


#: How a join counts: as a repetition it uses nothing of the token up.
Join = Literal["new", "repeated"]


class JoinRefused(NotAuthenticated):
    """The token does not serve. Whoever asked is not told why: ``reason`` is for the manager's log."""

    def __init__(self, reason: str) -> None:
        super().__init__("The join token is not valid. Make another one on the manager's machine.")
        self.reason = reason


def decide(
    given: TokenText | None,
    stored: StoredToken | None,
    request: JoinRequest,
    others: Sequence[KnownAgent],
    now: datetime,
) -> Join:
    """Whether the agent may join; *others* are the agents that have its id or its key already.

    `JoinRefused` for the token; `Conflict` where the place is taken by an agent that is alive.
    """
    expected = _NO_DIGEST if stored is None else stored.digest
    matches = hmac.compare_digest(expected, "" if given is None else given.digest())
    if given is None or stored is None or not matches:
        raise JoinRefused("no such token")
    if now >= stored.expires_at:
        raise JoinRefused("the token has expired")
    same = next((agent for agent in others if agent.id == request.id), None)
    if same is not None and same.public_key == request.public_key and same.joined_with == stored.id:
        return "repeated"
    if stored.uses < 1:
        raise JoinRefused("the token is used up")
    for agent in others:
        if agent.status in GONE or (agent.id == request.id and agent.public_key == request.public_key):
            continue
        if agent.id == request.id:
            raise Conflict(
                f"An agent {agent.id} is alive, with another key.",
                data={"id": "is taken by an agent that is alive and has another key"},
            )
        raise Conflict(
            f"The agent with this key is alive under the id {agent.id}.",
            data={"public_key": f"is that of the agent {agent.id}, which is alive"},
        )
    return "new"


def check_agent_id(text: str) -> None:
    """ValueError unless *text* may name an agent."""
    if not AGENT_ID.match(text):
        raise ValueError("must be 1 to 64 letters, digits, dots, dashes or underscores")


def check_architecture(text: str) -> None:
    """ValueError unless *text* may name an architecture."""
    if not ARCHITECTURE.match(text):
        raise ValueError("must be 1 to 32 lower-case letters, digits, dashes or underscores")


def check_key(text: str) -> None:
    """ValueError unless *text* is 32 bytes as Z85."""
    if len(text) != _KEY_LENGTH or not set(text) <= set(_Z85):
        raise ValueError("must be a CURVE key, 40 characters of Z85")
    for start in range(0, _KEY_LENGTH, 5):
        value = 0
        for letter in text[start : start + 5]:
            value = value * 85 + _Z85.index(letter)
        if value >> 32:
            raise ValueError("must be a CURVE key, 40 characters of Z85")


def check_address(text: str) -> None:
    """ValueError unless managers can dial *text*: ``tcp://ADDRESS:PORT`` with a numeric unicast address."""
    found = _ADDRESS.match(text)
    if found is None or not 1 <= int(found[3]) <= 65535:
        raise ValueError("must be tcp://ADDRESS:PORT with a numeric address")
    try:
        address = ipaddress.ip_address(found[1] or found[2])
    except ValueError:
        raise ValueError("must be tcp://ADDRESS:PORT with a numeric address") from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError("must be an address of one machine")


def check_transport(scheme: str, peer: str | None) -> None:
    """`Forbidden` for a token that came from the address *peer* over *scheme* where others could read it."""
    if scheme != "https" and not is_local_host(peer):
        raise Forbidden(
            "Agents join over HTTPS. This token has crossed the network in the clear: make another one.",
            data={"token": "is not taken over plain HTTP from another machine"},
        )


def check_origin(addr: str, peer: str | None) -> None:
    """`InvalidParameters` when an agent on another machine, at *peer*, tells an address on this one."""
    if not leads_off_loopback(addr) and not is_local_host(peer):
        raise InvalidParameters(
            "Input validation error", {"addr": "is a loopback address, which other machines cannot reach"}
        )
