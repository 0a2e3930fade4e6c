import pytest
import trio

from backendai_mgr.domain.errors import (
    AgentFailed,
    InvalidParameters,
    NotFound,
    ServiceFailed,
    Unavailable,
)
from backendai_mgr.services.apps import NobodyListens, StartApp
from backendai_mgr.services.sessions import CreateRequest
from backendai_mgr.wire.callosum import AgentError
from backendai_mgr.wire.rpc import AgentRefusal, AgentUnreachable

from .conftest import ADMIN, CALLER


@pytest.fixture
async def session(world, autojump_clock):
    async with trio.open_nursery() as nursery:
        await world.start(nursery)
        request = CreateRequest(name="test-session", image="python", preopen_ports=(8080,))
        yield (await world.sessions.create(CALLER, request)).session
        nursery.cancel_scope.cancel()


async def test_what_the_agent_tells_is_what_the_session_has(world, session):
    (port,) = session.service_ports
    assert port == {"name": "8080", "protocol": "preopen", "container_ports": [8080], "host_ports": [8081]}


async def test_a_service_is_started_connected_to_and_shut_down(world, session):
    request = StartApp(service="http", port=8001, arguments={"--x": ["y"]}, envs={"A": "b"})
    app = await world.apps.start(CALLER, "test", request)
    assert (app.session.id, app.port) == (session.id, 8001)
    assert world.agents["i-1"].services == {"http": (8001, {"--x": ["y"]}, {"A": "b"})}
    async with world.apps.connect(app) as tunnel:
        assert tunnel == (session.id, 8001)
    await world.apps.shut_down(CALLER, "test", "http")
    assert world.agents["i-1"].services == {}


@pytest.mark.parametrize(
    ("refusal", "kind", "field"),
    [
        (AgentRefusal("no-such-service", "no"), NotFound, None),
        (AgentRefusal("no-such-port", "no"), InvalidParameters, "port"),
        (AgentRefusal("bad-request", "envs: 'A' is not allowed for http"), InvalidParameters, "envs"),
        (AgentRefusal("bad-request", "something else"), InvalidParameters, "app"),
        (AgentRefusal("service-failed", "it ended"), ServiceFailed, None),
        (AgentUnreachable("away"), Unavailable, None),
        (AgentError("broke"), AgentFailed, None),
    ],
)
async def test_what_the_agent_refuses(world, session, refusal, kind, field):
    world.agents["i-1"].refuse["start_service"] = refusal
    with pytest.raises(kind) as refused:
        await world.apps.start(CALLER, "test", StartApp(service="http"))
    assert field is None or list(refused.value.data) == [field]


async def test_connections_that_do_not_come_about_or_break(world, session):
    app = await world.apps.start(CALLER, "test", StartApp(service="http"))
    world.agents["i-1"].refuse["tunnel"] = AgentRefusal("connection-refused")
    with pytest.raises(NobodyListens):
        async with world.apps.connect(app):
            raise AssertionError
    for error, kind in ((AgentUnreachable("away"), Unavailable), (AgentError("broke"), AgentFailed)):
        with pytest.raises(kind):
            async with world.apps.connect(app):
                raise error


async def test_there_is_no_app_proxy(world, session):
    with pytest.raises(Unavailable):
        await world.apps.publish(CALLER, "test", StartApp(service="http"))
    with pytest.raises(NotFound):
        await world.apps.publish(ADMIN, "test", StartApp(service="http"))
