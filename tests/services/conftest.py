from functools import partial
from uuid import UUID

import attrs
import pytest
import trio

from backendai_mgr.domain.accounts import Caller, Credential, KeypairPolicy, Role
from backendai_mgr.services.accounts import KeyCache
from backendai_mgr.services.agents import AgentKeeper
from backendai_mgr.services.agentwatch import KeeperConfig
from backendai_mgr.services.apps import AppService
from backendai_mgr.services.directory import Directory
from backendai_mgr.services.files import FileService
from backendai_mgr.services.hub import Hub, Wake
from backendai_mgr.services.reaper import Reaper
from backendai_mgr.services.runs import RunService
from backendai_mgr.services.scheduler import Scheduler
from backendai_mgr.services.sessions import CreateRequest, SessionService
from backendai_mgr.services.starting import Starter
from backendai_mgr.services.terminals import TerminalService

from ..fakes.links import FakeAgents
from ..fakes.store import FakeStore, wall_clock

CALLER = Caller(
    access_key="AKIAUSER",
    user_id=UUID(int=1),
    email="user@example.com",
    role=Role.USER,
    domain="default",
    is_admin=False,
    rate_limit=1000,
    policy=KeypairPolicy(
        name="default",
        max_concurrent_sessions=30,
        max_containers_per_session=1,
        max_session_lifetime=0,
        idle_timeout=0,
        unlimited_by_default=True,
        total_slots={},
    ),
)
ADMIN = attrs.evolve(CALLER, access_key="AKIAADMIN", user_id=UUID(int=2), role=Role.SUPERADMIN, is_admin=True)


class World:
    """All services of one worker over a fake store and fake agents."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.agents = FakeAgents()
        self.store.add_agent("i-1")
        for caller in (CALLER, ADMIN):
            self.store.credentials[caller.access_key] = Credential(caller=caller, secret_key="s")
        self.hub = Hub(self.store)
        self.keys = KeyCache(self.store)
        self.directory = Directory(self.store)
        scheduled = Wake()
        self.sessions = SessionService(self.store, self.keys, self.hub, architecture="x86_64", now=wall_clock)
        self.runs = RunService(self.directory, self.agents)
        self.terminals = TerminalService(self.directory, self.agents)
        self.apps = AppService(self.directory, self.agents)
        self.files = FileService(self.directory, self.store, self.keys, self.agents)
        self.scheduler = Scheduler(self.store, now=wall_clock, scheduled=scheduled)
        self.starter = Starter(
            self.store, self.store, self.agents, cluster_id="c", now=wall_clock, scheduled=scheduled
        )
        self.reaper = Reaper(self.store, self.store, lost_timeout=600, now=wall_clock)
        self.keeper = self.make_keeper("worker-1")
        for listener in (self.directory.on_event, self.scheduler.on_event, self.keeper.on_event):
            self.hub.on_event(listener)
        self.hub.on_topic("keys", self.keys.drop_all)

    def make_keeper(self, owner: str) -> AgentKeeper:
        config = KeeperConfig(owner=owner, cluster_id="c", heartbeat_timeout=10, lease_ttl=10)
        return AgentKeeper(self.store, self.agents, config, now=wall_clock)

    async def start(self, nursery: trio.Nursery, *loops: str) -> None:
        """The hub and these loops (all by default)."""
        await nursery.start(self.hub.run)
        for name in loops or ("scheduler", "starter", "keeper", "reaper"):
            nursery.start_soon(partial(getattr(self, name).run))

    async def until(self, condition, timeout: float = 30) -> None:
        """Wait (in the test's own time) until the condition holds after some event or tick."""
        with trio.fail_after(timeout):
            while not condition():  # noqa: ASYNC110 - the clock of these tests jumps
                await trio.sleep(0.05)

    async def running(self, name: str = "test-session"):
        """A session that runs on the fake agent."""
        creation = await self.sessions.create(CALLER, CreateRequest(name=name, image="python"))
        assert creation.status == "RUNNING"
        return creation.session


@pytest.fixture
def world() -> World:
    return World()
