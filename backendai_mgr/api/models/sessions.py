"""Parameters and replies of sessions (api-sessions §5.3, §5.4)."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

import attrs

from ...domain.ids import is_session_name
from ...domain.sessions import Session, SessionType
from ...domain.status import Status
from ...services.ports import Match
from ...services.sessions import CreateRequest, Creation
from ..decoding import Param

LONGEST_TAG = 64
LONGEST_SCRIPT = 16 * 1024
LARGEST = 2**31 - 1


def _between(least: int, most: int) -> Callable[[int], None]:
    def check(value: int) -> None:
        if not least <= value <= most:
            raise ValueError(f"value is not between {least} and {most}")

    return check


def _at_most(longest: int) -> Callable[[str], None]:
    def check(text: str) -> None:
        if len(text.encode()) > longest:
            raise ValueError(f"value is longer than {longest} bytes")

    return check


def _name(text: str) -> None:
    if not is_session_name(text):
        raise ValueError("4 to 64 letters, digits, '_', '.' and '-', the ends neither '.' nor '-'")


def _url(text: str) -> None:
    scheme, separator, _ = text.partition("://")
    if not separator or not scheme or not scheme.replace("-", "").isalnum() or not scheme.isascii():
        raise ValueError("value is not a URL")


def _ports(ports: Sequence[int]) -> None:
    if any(not 1024 <= port <= 65535 for port in ports):
        raise ValueError("ports are between 1024 and 65535")


@attrs.frozen(kw_only=True)
class Config:
    """``config`` of a creation."""

    mounts: list[str] | None = None
    mount_map: Annotated[dict[str, str] | None, Param("mount_map", "mountMap")] = None
    environ: dict[str, str] | None = None
    scaling_group: Annotated[str | None, Param("scaling_group", "scalingGroup")] = None
    resources: dict[str, Any] | None = None
    resource_opts: Annotated[dict[str, Any] | None, Param("resource_opts", "resourceOpts")] = None
    preopen_ports: Annotated[list[int] | None, Param("preopen_ports", "preopenPorts", check=_ports)] = None
    agent_list: Annotated[list[str] | None, Param("agent_list", "agentList")] = None


@attrs.frozen(kw_only=True)
class CreateSession:
    """The body of ``POST /session``; where no domain is named, the caller's own is meant."""

    name: Annotated[str, Param("name", "clientSessionToken", check=_name)]
    image: Annotated[str, Param("image", "lang")]
    architecture: Annotated[str | None, Param("arch", "architecture")] = None
    type: Annotated[SessionType, Param("type", "sessionType")] = "interactive"
    group: Annotated[str, Param("group", "groupName", "group_name")] = "default"
    domain: Annotated[str | None, Param("domain", "domainName", "domain_name")] = None
    cluster_size: Annotated[int, Param("cluster_size", "clusterSize", check=_between(1, LARGEST))] = 1
    cluster_mode: Annotated[Literal["single-node", "multi-node"], Param("cluster_mode", "clusterMode")] = (
        "single-node"
    )
    config: Config = attrs.field(factory=Config)
    tag: Annotated[str | None, Param("tag", check=_at_most(LONGEST_TAG))] = None
    enqueue_only: Annotated[bool, Param("enqueueOnly")] = False
    max_wait: Annotated[int, Param("maxWaitSeconds", check=_between(0, LARGEST))] = 0
    starts_at: Annotated[str | None, Param("starts_at", "startsAt")] = None
    reuse: Annotated[bool, Param("reuseIfExists")] = True
    startup_command: Annotated[str | None, Param("startupCommand")] = None
    bootstrap_script: Annotated[
        str | None, Param("bootstrap_script", "bootstrapScript", check=_at_most(LONGEST_SCRIPT))
    ] = None
    dependencies: list[str] | None = None
    callback_url: Annotated[str | None, Param("callback_url", "callbackUrl", "callbackURL", check=_url)] = (
        None
    )
    owner_access_key: str | None = None

    def request(self) -> CreateRequest:
        """As the use case takes it: null and empty are the same."""
        given = attrs.asdict(self, recurse=False)
        config = attrs.asdict(given.pop("config"))
        given |= {name: value for name, value in config.items() if value is not None}
        given["dependencies"] = given["dependencies"] or ()
        return CreateRequest(**given)


@attrs.frozen(kw_only=True)
class MatchSessions:
    """Clients may send an owner here, which the original does not look at."""

    id: str
    owner_access_key: str | None = None


@attrs.frozen(kw_only=True)
class RenameSession:
    name: Annotated[str, Param("name", "clientSessionToken", check=_name)]


@attrs.frozen(kw_only=True)
class DestroySession:
    forced: bool = False
    owner_access_key: str | None = None


def _statuses(text: str) -> None:
    if unknown := [word for word in text.split(",") if word not in Status.__members__]:
        raise ValueError(f"{unknown[0][:32]!r} is not a status")


@attrs.frozen(kw_only=True)
class ListSessions:
    """The query of ``GET /sessions``: ``status`` is a comma-separated list, none for all that live."""

    status: Annotated[str | None, Param("status", check=_statuses)] = None
    limit: Annotated[int, Param("limit", check=_between(1, 200))] = 50
    after: str | None = None

    @property
    def statuses(self) -> frozenset[Status]:
        return frozenset(map(Status, self.status.split(","))) if self.status else frozenset()


# ---------------------------------------------------------------- replies


def creation_reply(creation: Creation) -> dict[str, Any]:
    """The answer to a creation. Reused sessions have their stored ports as well, by the original's name."""
    session = creation.session
    answer = {
        "sessionId": str(session.id),
        "sessionName": session.name,
        "status": creation.status,
        "servicePorts": service_ports(session),
        "created": creation.created,
    }
    if not creation.created:
        answer["service_ports"] = list(session.service_ports)
    return answer


def service_ports(session: Session) -> list[dict[str, Any]]:
    """The services that can be reached: none unless the session runs."""
    if session.status is not Status.RUNNING:
        return []
    return [_service_port(stored) for stored in session.service_ports]


def _service_port(stored: Mapping[str, Any]) -> dict[str, Any]:
    optional = ("url_template", "allowed_arguments", "allowed_envs")
    shown = {name: stored[name] for name in optional if name in stored}
    ports = list(stored.get("container_ports", ()))
    return {"name": stored["name"], "protocol": stored["protocol"], "ports": ports, **shown}


def info_reply(session: Session, now: datetime) -> dict[str, Any]:
    """The info object (api-sessions §5.4)."""
    return {
        "domainName": session.domain,
        "groupId": str(session.group_id),
        "userId": str(session.user_id),
        "lang": session.image,
        "image": session.image,
        "architecture": session.architecture,
        "registry": session.registry,
        "tag": session.tag,
        "containerId": session.container_id,
        "occupiedSlots": json.dumps(dict(session.occupied_slots)),
        "occupiedShares": "{}",
        "environ": json.dumps([f"{name}={value}" for name, value in session.environ.items()]),
        "status": str(session.status),
        "statusInfo": str(session.reasons.get("info") or None),
        "statusData": session.reasons.get("data"),
        "age": int((now - session.created_at).total_seconds() * 1000),
        "creationTime": session.created_at.isoformat(),
        "terminationTime": session.terminated_at.isoformat() if session.terminated_at else None,
        "numQueriesExecuted": session.num_queries,
        "lastStat": session.last_stat,
        "servicePorts": service_ports(session),
    }


def match_reply(matches: Sequence[Match]) -> dict[str, Any]:
    return {
        "matches": [
            {"id": str(match.id), "name": match.name, "status": str(match.status)} for match in matches
        ]
    }


def list_reply(sessions: Sequence[Session], after: str | None) -> dict[str, Any]:
    """A page of ``GET /sessions``; ``next`` is what ``after`` must be for the one that follows."""
    return {"sessions": [_list_item(session) for session in sessions], "next": after}


def _list_item(session: Session) -> dict[str, Any]:
    return {
        "id": str(session.id),
        "name": session.name,
        "type": session.type,
        "status": str(session.status),
        "status_info": session.reasons.get("info") or None,
        "image": session.image,
        "architecture": session.architecture,
        "scaling_group": session.scaling_group,
        "tag": session.tag,
        "access_key": session.access_key,
        "agent": session.agent_id,
        "occupied_slots": dict(session.occupied_slots),
        "requested_slots": dict(session.requested_slots),
        "result": session.result,
        "exit_code": session.exit_code,
        "created_at": session.created_at.isoformat(),
        "status_changed": session.status_changed.isoformat(),
        "terminated_at": session.terminated_at.isoformat() if session.terminated_at else None,
    }
