"""The manager's configuration, and the sample that documents it."""

from pathlib import Path

import pytest

from backendai_mgr.app.config import SCHEMA, load_manager_config, parse_manager_config
from backendai_mgr.runtime.config import ConfigError, HostPort

from ..support.samples import check_sample

#: Keys whose sample value is an example, since the default depends on the machine or is absent.
EXAMPLES = {
    ("manager", "id"),
    ("manager", "num-proc"),
    ("manager", "pid-file"),
    ("manager", "ssl-cert"),
    ("manager", "ssl-privkey"),
    ("db", "socket-dir"),
    ("logging", "file", "path"),
    ("logging", "file", "filename"),
}


def test_the_sample_shows_every_key_with_its_default() -> None:
    by_up_alone = {path for path in SCHEMA.keys if path[0] == "local"}
    check_sample(SCHEMA, examples=EXAMPLES, absent=by_up_alone)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"manger": {}}, "`manger` is not a known table"),
        ({"manager": 1}, "`manager` must be a table"),
        ({"manager": {"db": {}}}, "`manager.db` is not a known key"),
        ({"manager": {"port": 1}}, "`manager.port` is not a known key"),
        ({"db": {"adr": "x"}}, "`db.adr` is not a known key"),
        ({"logging": {"level": "LOUD"}}, "`logging.level`: expected one of"),
        ({"manager": {"heartbeat-timeout": 0}}, "`manager.heartbeat-timeout`"),
        ({"manager": {"num-proc": 0}}, "`manager.num-proc`: 1 to 1024, not 0"),
        ({"db": {"connections": 1}}, "`db.connections`: at least 2, not 1"),
        ({"manager": {"drain-timeout": 20}}, "`manager.shutdown-timeout`"),
        ({"manager": {"ssl-enabled": True}}, "`manager.ssl-cert` is missing; `ssl-enabled` needs it"),
        ({"limits": {"requests": 0}}, "`limits.requests` must be more than 0"),
        ({"limits": {"head-bytes": "much"}}, "`limits.head-bytes`: expected a size"),
        ({"local": {}}, "`local.agent-id` is missing"),
    ],
)
def test_a_mistake_is_named(document: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_manager_config(document)


def test_the_file_is_named_with_the_mistake(tmp_path: Path) -> None:
    path = tmp_path / "manager.toml"
    path.write_text("[db]\nport = 5432\n")
    with pytest.raises(ConfigError, match=rf"^{path}:2: `db.port` is not a known key\.$"):
        load_manager_config(path)


def test_a_socket_folder_takes_the_place_of_the_host() -> None:
    database = parse_manager_config({"db": {"socket-dir": "/run/pg", "password": "s3cret"}}).db
    assert database.parameters["host"] == "/run/pg"
    assert database.addr == HostPort("127.0.0.1", 5432)


def test_secrets_do_not_show_in_a_representation() -> None:
    document = {
        "db": {"password": "s3cret"},
        "local": {"agent-id": "a", "agent-addr": "h:1", "access-key": "k", "secret-key": "s3cret"},
    }
    assert "s3cret" not in repr(parse_manager_config(document))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("127.example.com", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    config = parse_manager_config({"manager": {"service-addr": f"{host}:1"}})
    assert config.on_loopback is loopback


@pytest.mark.parametrize(
    ("connections", "workers", "share"), [(64, 1, 16), (64, 8, 8), (10, 64, 2), (2, 1, 2)]
)
def test_workers_share_the_connections_to_the_database(connections: int, workers: int, share: int) -> None:
    document = {"manager": {"num-proc": workers}, "db": {"connections": connections}}
    assert parse_manager_config(document).pool_size == share
