"""Every fault of every endpoint: a bad request is refused with its status, its type and the field that it is
about, changes nothing and logs no error; and the endpoint's good request on the same connection works."""

from datetime import UTC, datetime, timedelta

import attrs
import httpx
import pytest
from prometheus_client import CollectorRegistry

from backendai_mgr.api.app import Api
from backendai_mgr.api.decoding import _fields
from backendai_mgr.api.limits import Limits
from backendai_mgr.api.metrics import Metrics
from backendai_mgr.wire.rpc import Prompt, RunSpec
from tests.fakes.services import FakeRun

from .conftest import Shared
from .endpoints import ENDPOINTS
from .messages import ago, faults, signed_as, with_headers
from .wire import TYPES, Request

FILES = "/session/my-session/files/"
ROWS = {
    f"{endpoint.name}: {name}": (endpoint, bad) for endpoint in ENDPOINTS for name, bad in faults(endpoint)
}


def test_rows_have_names_of_their_own():
    assert len(ROWS) == sum(1 for endpoint in ENDPOINTS for _ in faults(endpoint))


def test_every_route_has_an_endpoint():
    routes = {
        f"{'WEBSOCKET' if rule.websocket else method} {rule.rule}"
        for rule in _application().url_map.iter_rules()
        for method in (["GET"] if rule.websocket else rule.methods - {"HEAD", "OPTIONS"})
    }
    assert routes == {endpoint.name for endpoint in ENDPOINTS}


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if e.model], ids=lambda e: e.name)
def test_every_parameter_has_a_kind(endpoint):
    assert {field.names[0] for field in _fields(endpoint.model)} == set(endpoint.kinds)


def _application() -> Api:
    services = attrs.make_class("Services", ["registry"])(CollectorRegistry())
    return Api(services, Limits(), Metrics(services.registry))


def put_in_order(shared: Shared) -> None:
    """The world that good requests are made for."""
    server = shared.server
    run = FakeRun("r1", RunSpec(code="1"))
    run.status = attrs.evolve(run.status, prompt=Prompt(offset=0, is_password=False))
    server.runs.runs = {"r1": run}
    server.sessions.calls.clear()
    server.files.files = {"f": b"x"}
    server.joins.agents.clear()
    server.joins.requests.clear()
    server.joins.add_token(1, expires_at=datetime.now(UTC) + timedelta(hours=1))


@pytest.fixture
def world(shared: Shared) -> Shared:
    shared.do(put_in_order, shared)
    return shared


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
def test_a_good_request(world, endpoint):
    with world.connect() as connection:
        assert connection.ask(endpoint.request()).status == endpoint.status


@pytest.mark.parametrize(
    ("endpoint", "bad"), ROWS.values(), ids=[row.encode("ascii", "backslashreplace").decode() for row in ROWS]
)
def test_a_bad_request(world, endpoint, bad):
    with world.connect() as connection:
        reply = connection.ask(bad.request)
        problem = reply.problem()
        assert (reply.status, problem["type"]) == (bad.status, TYPES + bad.kind), problem
        if bad.fields is not None:
            assert list(problem["data"]) == bad.fields
        assert "x-injected" not in reply.headers
        server = world.server
        assert list(server.runs.runs) == ["r1"]
        assert server.files.files == {"f": b"x"}
        assert server.joins.requests == []
        assert not {call[0] for call in server.sessions.calls} & {"create", "list"}
        if not endpoint.websocket:
            assert "connection" not in reply.headers
            assert connection.ask(endpoint.request()).status == endpoint.status
            return
        assert reply.headers["connection"] == "close"
        assert connection.rest() == b""
    with world.connect() as connection:
        assert connection.ask(endpoint.request()).status == endpoint.status


#: One of each group, since behind the transport all is the same.
OVER_HTTP2 = (
    "another secret",
    "version 'latest'",
    "a nonsense method",
    "body: cut off",
    "body: too large",
    "unknown",
)


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if not e.websocket], ids=lambda e: e.name)
def test_bad_requests_over_http2(world, endpoint):
    host = world.server.host
    with httpx.Client(http1=False, http2=True, base_url=world.server.url, trust_env=False) as client:

        def ask(request: Request) -> httpx.Response:
            fields = request.head_fields(host)
            del fields["Host"]
            content = request.body or b"x" * request.padding or None
            return client.request(request.method, request.target, headers=fields, content=content)

        for name, bad in faults(endpoint):
            if name.endswith(OVER_HTTP2):
                reply = ask(bad.request)
                assert (reply.http_version, reply.status_code) == ("HTTP/2", bad.status)
                assert reply.json()["type"] == TYPES + bad.kind
                assert ask(endpoint.request()).status_code == endpoint.status
                world.do(put_in_order, world)  # what was good once may have been used up


#: What a body claims to be is looked at for its signature only.
LIES = [
    "text/html",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
    "application/json; charset=utf-16",
]
WITH_BODIES = [endpoint for endpoint in ENDPOINTS if endpoint.in_body and endpoint.good]


@pytest.mark.parametrize("claimed", LIES)
@pytest.mark.parametrize("endpoint", WITH_BODIES, ids=lambda endpoint: endpoint.name)
def test_a_type_that_lies_about_json(world, endpoint, claimed):
    with world.connect() as connection:
        request = attrs.evolve(endpoint.request(), content_type=claimed)
        assert connection.ask(request).status == endpoint.status


@pytest.mark.parametrize("endpoint", [e for e in ENDPOINTS if not e.public], ids=lambda e: e.name)
def test_a_date_without_a_zone_counts_as_utc(world, endpoint):
    with world.connect() as connection:
        request = signed_as(endpoint.request(), date=lambda: ago()()[:-6])
        assert connection.ask(request).status == endpoint.status


def test_the_name_of_a_file_may_have_a_line_feed(world):
    name = "a%0d%0aX-Injected:%20yes%0a"
    with world.connect() as connection:
        assert connection.ask(Request(method="PUT", target=FILES + name, body=b"1")).status == 201
        reply = connection.ask(Request(method="GET", target=FILES + name))
    assert (reply.status, reply.body) == (200, b"1")
    assert "x-injected" not in reply.headers
    assert "a\r\nX-Injected: yes\n" in world.server.files.files


@pytest.mark.parametrize("name", ["X-Request-Id", "X-Forwarded-For", "Forwarded", "Server"])
def test_what_a_client_calls_itself_is_not_repeated(world, name):
    request = with_headers(Request(method="GET", target="/auth?echo=x"), **{name.replace("-", "_"): "evil"})
    with world.connect() as connection:
        reply = connection.ask(request)
    assert reply.status == 200
    assert "evil" not in reply.headers.values()
