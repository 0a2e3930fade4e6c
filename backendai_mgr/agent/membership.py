"""What an agent keeps of the link: its own keys, and the cluster that it has joined.

Both are files in ``DIR/link``, a folder that only the agent's account can enter. The keys are made once and
stay; what was learned at a join is replaced by the next join. Each file is there whole or not at all.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from ..domain.addresses import is_local_host
from ..domain.joining import KeyPair, check_address, check_key
from ..runtime.config import ConfigError, HostPort, ListenAddress
from ..runtime.curve import new_key_pair, public_key_of
from ..runtime.failpoint import failpoint
from ..runtime.paths import PathRefused, make_private_dir
from .config import DEFAULT_BIND, AgentConfig, is_any

T = TypeVar("T")

_FOLDER = "link"
_KEYS = "keys.json"
_CLUSTER = "cluster.json"


@attrs.frozen(kw_only=True)
class Membership:
    """What was told and learned at the latest join. ``token_digest`` recognises the token that served."""

    agent_id: str
    #: Where the agent listened, and where it said that managers reach it (``tcp://HOST:PORT``).
    bind: str
    addr: str
    cluster_id: str
    manager_public_key: str
    token_digest: str

    def __attrs_post_init__(self) -> None:
        ListenAddress.parse(self.bind)
        check_address(self.addr)
        check_key(self.manager_public_key)


@attrs.frozen(kw_only=True)
class LinkPlan:
    """How the link is served: as a member, or, with ``join``, once the cluster was joined; else in plain."""

    bind: ListenAddress
    addr: str = ""
    membership: Membership | None = None
    join: bool = False

    @property
    def is_plain(self) -> bool:
        return self.membership is None and not self.join


class Managers:
    """Whom an agent that is a member, or is about to become one, admits to its link."""

    def __init__(self, key: str | None) -> None:
        self._key = key
        self._known = trio.Event()
        if key is not None:
            self._known.set()

    def learn(self, key: str) -> None:
        """The managers' key, now that the cluster is joined."""
        self._key = key
        self._known.set()

    async def admits(self, key: str) -> bool:
        """Whether *key* is the managers'.

        Before the join nobody can tell: a manager that dials at once, while its answer is on the way, waits.
        """
        await self._known.wait()
        return key == self._key


def token_digest(token: str) -> str:
    """By what a token that has served is recognised."""
    return hashlib.sha256(token.encode()).hexdigest()


def is_new_token(config: AgentConfig, known: Membership | None) -> bool:
    """Whether there is a token, and it has not served already."""
    return bool(config.join_token) and (
        known is None or token_digest(config.join_token) != known.token_digest
    )


def plan_link(config: AgentConfig, known: Membership | None, *, towards_manager: str | None) -> LinkPlan:
    """Where to listen, and whether plain, as a member, or after a join.

    *towards_manager* is this machine's address on the way to the manager, where that was looked up.
    `ConfigError` where the agent could not serve anybody, or would serve everybody.
    """
    bind = config.bind
    if bind is None and towards_manager is not None:
        bind = ListenAddress(towards_manager, DEFAULT_BIND.port)
    if bind is None and known is not None:
        bind = ListenAddress.parse(known.bind)
    bind = bind or DEFAULT_BIND
    if config.join_token and not config.manager_url:
        raise ConfigError(
            "`agent.manager-url` is missing: a token alone does not tell which cluster to join."
        )
    if not config.manager_url and is_local_host(bind.host) and (known is None or config.bind is not None):
        return LinkPlan(bind=bind)
    addr = _advertised(config, bind)
    same = known is not None and (known.agent_id, known.addr) == (config.id, addr)
    if same and not is_new_token(config, known):
        return LinkPlan(bind=bind, addr=addr, membership=known)
    if config.join_token:
        return LinkPlan(bind=bind, addr=addr, join=True)
    needed = "it needs a token of the manager (`agent.join-token`, with `agent.manager-url`)."
    if known is not None:
        raise ConfigError(
            f"This agent joined as {known.agent_id} at {known.addr}, and is {config.id} at {addr} now:"
            f" to join again {needed}"
        )
    why = "" if is_local_host(bind.host) else f"`agent.bind`: {bind} is reached over the network. "
    raise ConfigError(f"{why}This agent has joined no cluster; to join one {needed}")


def _advertised(config: AgentConfig, bind: ListenAddress) -> str:
    place: HostPort = config.advertised_addr or bind
    if is_any(place.host):
        raise ConfigError(
            f"`agent.advertised-addr` is missing: of {bind.host} managers cannot tell where this machine is."
        )
    if not place.port:
        raise ConfigError("`agent.bind`: an agent that joins a cluster needs a port that stays the same.")
    return f"tcp://{place}"


# ---------------------------------------------------------------- files


def own_keys(data_dir: Path) -> KeyPair:
    """The agent's keys, made at the first call; `ConfigError` when they are damaged."""
    path = data_dir / _FOLDER / _KEYS
    try:
        make_private_dir(path.parent)
    except PathRefused as error:
        raise ConfigError(f"{error}.") from error
    if not path.exists():
        public, secret = new_key_pair()
        _write(path, {"public": public, "secret": secret}, replace=False)
        failpoint("join.after_keys")
    keys = _read(path, KeyPair)
    try:
        if public_key_of(keys.secret) == keys.public:
            return keys
    except ValueError:
        pass
    raise _damaged(path)


def load_membership(data_dir: Path) -> Membership | None:
    """What was learned at the latest join, None before the first; `ConfigError` when it is damaged."""
    path = data_dir / _FOLDER / _CLUSTER
    return _read(path, Membership) if path.exists() else None


def store_membership(data_dir: Path, membership: Membership) -> None:
    """Keep what was learned. The agent's keys must be there."""
    _write(data_dir / _FOLDER / _CLUSTER, attrs.asdict(membership), replace=True)


def _read(path: Path, kind: type[T]) -> T:
    try:
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
            return kind(**found)
    except (ValueError, TypeError):
        pass
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    raise _damaged(path)


def _damaged(path: Path) -> ConfigError:
    return ConfigError(f"{path} is damaged; remove it, and let the agent join again.")


def _write(path: Path, content: Mapping[str, Any], *, replace: bool) -> None:
    """Put a private file in place, and on the disk. Without *replace* the first one stays."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            draft.rename(path)
        else:
            _link(draft, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.") from error


def _link(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # another agent that is being started here was first
    finally:
        draft.unlink()
