import socket
from uuid import UUID

import pytest

from backendai_mgr.agent.portpool import NoPortLeft, PortPool, parse_ports
from backendai_mgr.agent.services import Service, check_services, ports_of, service_ports, services_label

A, B = UUID(int=1), UUID(int=2)


def test_each_port_has_a_number_of_its_own_and_keeps_it() -> None:
    pool = PortPool(range(30000, 30004), shared=False)
    assert pool.take(A, [8000, 8080]) == {"8000": 30000, "8080": 30001}
    assert pool.take(B, [8000]) == {"8000": 30002}
    assert pool.take(A, [8080, 9000]) == {"8080": 30001, "9000": 30003}


def test_what_is_given_back_rests_as_long_as_others_are_free() -> None:
    pool = PortPool(range(30000, 30003), shared=False)
    pool.take(A, [1])
    pool.give_back(A)
    assert pool.take(A, [1, 2, 3]) == {"1": 30001, "2": 30002, "3": 30000}
    with pytest.raises(NoPortLeft):
        pool.take(B, [1])
    assert pool.take(A, [1]) == {"1": 30001}  # nothing was lost by asking in vain
    assert pool.take(B, [1, 2])


def test_what_an_earlier_agent_gave_is_taken() -> None:
    pool = PortPool(range(30000, 30002), shared=False)
    pool.keep(A, {"8000": 30000})
    assert pool.take(B, [8000]) == {"8000": 30001}


def test_where_kernels_share_the_network_what_is_in_use_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert PortPool(range(port, port + 1), shared=False).take(A, [1]) == {"1": port}
        with pytest.raises(NoPortLeft):
            PortPool(range(port, port + 1), shared=True).take(A, [1])


def test_ranges() -> None:
    assert parse_ports("30000-31000") == range(30000, 31001)
    for text in ("", "30000", "a-b", "31000-30000", "80-90", "65000-70000", "1-2-3"):
        with pytest.raises(ValueError, match="must be"):
            parse_ports(text)


HTTP = Service(name="http", protocol="http", port=8000, command="serve {port}", allowed_envs=("A",))
FTP = Service(name="ftp", protocol="tcp", port=8021, command="ftpd {port}")


def test_what_is_told_of_services() -> None:
    assert services_label([HTTP, FTP]) == "http:http:8000,ftp:tcp:8021"
    assert ports_of([HTTP, FTP], [8021, 9000, 9000]) == [8000, 8021, 9000]
    told = service_ports([HTTP], [9000], {"8000": 30000, "9000": 30001})
    assert [(port.name, port.protocol, port.container_ports, port.host_ports) for port in told] == [
        ("http", "http", [8000], [30000]),
        ("9000", "preopen", [9000], [30001]),
    ]
    assert told[0].allowed_envs == ["A"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"name": "a b"}, "services.name"),
        ({"name": "8080"}, "services.name"),
        ({"port": 80}, "services.port"),
        ({"command": "serve 8000"}, "services.command"),
    ],
)
def test_wrong_services_are_told(changes: dict[str, object], told: str) -> None:
    good = {"name": "http", "protocol": "http", "port": 8000, "command": "serve {port}"}
    with pytest.raises(ValueError, match=told):
        Service(**{**good, **changes})  # type: ignore[arg-type]


def test_services_have_names_and_ports_of_their_own() -> None:
    check_services([HTTP, FTP])
    for twice in ([HTTP, HTTP], [HTTP, Service(name="x", protocol="tcp", port=8000, command="{port}")]):
        with pytest.raises(ValueError, match="twice"):
            check_services(twice)
