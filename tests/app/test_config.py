"""The manager's configuration, and the sample that documents it."""

from pathlib import Path

import attrs
import pytest

from backendai_mgr.api.context import Limits
from backendai_mgr.app.config import ManagerConfig, load_manager_config, parse_manager_config
from backendai_mgr.runtime.config import ConfigError, HostPort, load_toml

SAMPLE = Path(__file__).parents[2] / "conf" / "manager.toml"
#: Keys whose sample value is an example, since the default depends on the machine or is absent.
EXAMPLES = {"id", "socket-dir", "ssl-cert", "ssl-privkey"}


def uncommented(text: str) -> str:
    """The sample with every key in force but the examples."""
    lines = []
    for line in text.splitlines():
        key = line.removeprefix("#").partition(" = ")[0]
        if line.startswith("#") and " = " in line and " " not in key and key not in EXAMPLES:
            line = line.removeprefix("#")
        lines.append(line)
    return "\n".join(lines)


def test_the_sample_shows_every_key_with_its_default(tmp_path: Path) -> None:
    path = tmp_path / "manager.toml"
    path.write_text(uncommented(SAMPLE.read_text()))
    document = load_toml(path)
    assert parse_manager_config(document) == parse_manager_config({})
    shown = set(document["manager"]) | EXAMPLES
    tables = {"limits", "db", "logging", "local"}
    fields = {field.name.replace("_", "-") for field in attrs.fields(ManagerConfig)} - tables
    assert shown >= fields
    limits = {field.name.replace("_", "-") for field in attrs.fields(Limits)}
    assert set(document["limits"]) == limits
    assert set(document["logging"]) == {"level", "format"}
    assert set(document["db"]) | {"socket-dir"} == {"addr", "socket-dir", "name", "user", "password"}


def test_the_sample_as_it_is_changes_nothing() -> None:
    assert load_manager_config(SAMPLE) == parse_manager_config({})


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
        ({"manager": {"drain-timeout": 20}}, "`manager.shutdown-timeout`"),
        ({"manager": {"ssl-enabled": True}}, "`manager.ssl-cert` is missing; `ssl-enabled` needs it"),
        ({"limits": {"requests": 0}}, "`limits`: requests must be more than 0"),
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
    with pytest.raises(ConfigError, match=rf"^{path}: `db.port` is not a known key\.$"):
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
    ("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("[::1]", True), ("0.0.0.0", False)]
)
def test_loopback(host: str, loopback: bool) -> None:
    config = parse_manager_config({"manager": {"service-addr": f"{host}:1"}})
    assert config.on_loopback is loopback
