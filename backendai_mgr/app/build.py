"""The composition root of the manager: which part is made of which. Nothing here decides or waits."""

import platform
from collections.abc import Callable
from datetime import UTC, datetime

import attrs
from prometheus_client import CollectorRegistry

from ..agentlink.links import AgentLinks
from ..api.app import ApiServices
from ..db.accounts import PgAccounts
from ..db.agents import PgAgents
from ..db.events import PgEvents
from ..db.joining import PgJoining
from ..db.pool import Database
from ..db.scheduling import PgScheduling
from ..db.sessions import PgSessions
from ..db.turns import PgTurns
from ..domain.ids import AgentId
from ..services.accounts import KeyCache
from ..services.agents import AgentKeeper
from ..services.agentwatch import KeeperConfig
from ..services.apps import AppService
from ..services.directory import Directory
from ..services.files import FileService
from ..services.health import Health
from ..services.hub import Hub, Wake
from ..services.joining import JoinService
from ..services.reaper import Reaper
from ..services.runs import RunService
from ..services.scheduler import Scheduler
from ..services.sessions import SessionService
from ..services.starting import Starter
from ..services.terminals import TerminalService
from .config import EXAMPLE_KEYS, ManagerConfig


@attrs.frozen(kw_only=True)
class Manager:
    """The parts of one worker that something else has to run."""

    api: ApiServices
    hub: Hub
    health: Health
    sessions: PgSessions
    keeper: AgentKeeper
    scheduler: Scheduler
    starter: Starter
    reaper: Reaper
    turns: PgTurns


def utc_now() -> datetime:
    """The wall clock; the only one that decisions get."""
    return datetime.now(UTC)


def build(
    config: ManagerConfig,
    database: Database,
    links: AgentLinks,
    *,
    public_key: str,
    now: Callable[[], datetime] = utc_now,
) -> Manager:
    """Join adapters, services and the HTTP surface of one worker. Agents that join learn *public_key*."""
    sessions, scheduling = PgSessions(database), PgScheduling(database)
    hub = Hub(PgEvents(database))
    keys = KeyCache(PgAccounts(database), refused=() if config.on_loopback else EXAMPLE_KEYS)
    directory = Directory(sessions)
    scheduled = Wake()
    scheduler = Scheduler(scheduling, now=now, scheduled=scheduled)
    keeper = AgentKeeper(
        PgAgents(database),
        links,
        KeeperConfig(
            owner=config.id,
            cluster_id=config.cluster_id,
            heartbeat_timeout=config.heartbeat_timeout,
            lease_ttl=config.heartbeat_timeout,
        ),
        now=now,
    )
    awaited = () if config.local is None else (AgentId(config.local.agent_id),)
    health = Health(hub, keeper, awaited=awaited)
    for listener in (directory.on_event, scheduler.on_event, keeper.on_event):
        hub.on_event(listener)
    hub.on_topic("keys", keys.drop_all)

    def connection_changed(connected: bool) -> None:
        keys.notified = connected
        directory.drop_all()

    hub.on_connection(connection_changed)
    return Manager(
        api=ApiServices(
            keys=keys,
            sessions=SessionService(sessions, keys, hub, architecture=platform.machine(), now=now),
            runs=RunService(directory, links),
            terminals=TerminalService(directory, links),
            apps=AppService(directory, links),
            files=FileService(directory, sessions, keys, links),
            joining=JoinService(
                PgJoining(database), cluster_id=config.cluster_id, public_key=public_key, now=now
            ),
            health=health,
            now=now,
            registry=CollectorRegistry(),
        ),
        hub=hub,
        health=health,
        sessions=sessions,
        keeper=keeper,
        scheduler=scheduler,
        starter=Starter(
            scheduling, sessions, links, cluster_id=config.cluster_id, now=now, scheduled=scheduled
        ),
        turns=PgTurns(database),
        reaper=Reaper(scheduling, sessions, lost_timeout=config.lost_timeout, now=now),
    )
