"""A manager.toml of Backend.AI 22.03, and its variables."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from backendai_mgr.app import foreign
from backendai_mgr.app.config import SCHEMA, read_manager_config
from backendai_mgr.runtime.config import HostPort, ListenAddress
from backendai_mgr.runtime.configfile import read
from backendai_mgr.runtime.logging import FileLogConfig

#: Every key that the original documents, in the forms in which its own samples give them.
ORIGINAL = f"""
[etcd]
namespace = "local"
addr = {{ host = "127.0.0.1", port = 2379 }}
user = ""
password = ""

[db]
type = "postgresql"
addr = {{ host = "db.example", port = 5433 }}
name = "backend"
user = "postgres"
password = "s3cret"

[manager]
ipc-base-path = "/tmp/backend.ai/ipc"
num-proc = 2
pid-file = "./manager.pid"
id = "i-one"
user = {os.geteuid()}
group = {os.getegid()}
service-addr = {{ host = "0.0.0.0", port = 8080 }}
heartbeat-timeout = 30.0
secret = "XXXXXXXXXXXXXX"
ssl-enabled = true
ssl-cert = "fixtures/manager.crt"
ssl-privkey = "fixtures/manager.key"
event-loop = "uvloop"
distributed-lock = "pg_advisory"
hide-agents = true
importer-image = "lablup/importer:manylinux2010"
max-wsmsg-size = 33554432
aiomonitor-port = 50001
disabled-plugins = []

[docker-registry]
ssl-verify = false

[logging]
level = "INFO"
drivers = ["console", "file", "logstash"]

[logging.pkg-ns]
"" = "WARNING"
"aiotools" = "INFO"
"ai.backend" = "INFO"

[logging.console]
colored = true
format = "verbose"

[logging.file]
path = "./logs"
filename = "manager.log"
backup-count = 5
rotation-size = "10M"
format = "verbose"

[logging.logstash]
endpoint = {{ host = "localhost", port = 8001 }}
protocol = "tcp"
ssl-enabled = false
ssl-verify = false

[debug]
enabled = false
log-events = false
"""


def test_the_original_file_is_accepted_and_each_key_without_effect_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "manager.toml"
    path.write_text(ORIGINAL)
    reading = read_manager_config(path, environ={})
    config = reading.checked()
    assert config.id == "i-one"
    assert config.service_addr == ListenAddress("0.0.0.0", 8080)
    assert config.heartbeat_timeout == 30.0
    assert (config.num_proc, config.pid_file) == (2, Path("manager.pid"))
    assert config.tls == (Path("fixtures/manager.crt"), Path("fixtures/manager.key"))
    assert config.limits.message_bytes == 33554432
    assert (config.db.addr, config.db.password) == (HostPort("db.example", 5433), "s3cret")
    assert config.logging.pkg_ns == {"": "WARNING", "aiotools": "INFO", "ai.backend": "INFO"}
    assert config.logging.file == FileLogConfig(path=Path("logs"), filename="manager.log")
    told = [warning.partition(": ")[2].split()[0] for warning in reading.warnings]
    assert told == [
        "`etcd`",
        *("`manager.ipc-base-path`", "`manager.secret`", "`manager.event-loop`"),
        *("`manager.distributed-lock`", "`manager.hide-agents`", "`manager.importer-image`"),
        *("`manager.aiomonitor-port`", "`manager.disabled-plugins`"),
        *(
            "`docker-registry`",
            "`logging.drivers`:",
            "`logging.file.format`",
            "`logging.logstash`",
            "`debug`",
        ),
    ]
    assert all("has no effect here" in warning for warning in reading.warnings)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ({"db": {"type": "mysql"}}, "`db.type`: only \"postgresql\" is known, not 'mysql'."),
        (
            {"manager": {"user": "work"}},
            "`manager.user`: a manager keeps the account that it is started as;"
            " have systemd start it with User=work.",
        ),
        (
            {"manager": {"group": 4242}},
            "`manager.group`: a manager keeps the account that it is started as;"
            " have systemd start it with Group=4242.",
        ),
        ({"logging": {"drivers": ["file"]}}, '`logging.file` is missing; the driver "file" needs it.'),
        (
            {"logging": {"drivers": ["tape"]}},
            "`logging.drivers[0]`: expected one of console, file, logstash,",
        ),
    ],
)
def test_what_would_be_missed_is_refused(document: dict[str, Any], sentence: str) -> None:
    (problem,) = read(SCHEMA, document).problems
    assert problem.startswith(sentence)


def test_no_key_of_ours_is_among_the_foreign_ones() -> None:
    assert not foreign.KEYS.keys() & SCHEMA.keys
    assert not foreign.MOVED.keys() & SCHEMA.keys
    assert set(foreign.MOVED.values()) <= SCHEMA.keys.keys()
    assert {path for path, _ in foreign.VARIABLES.values()} <= SCHEMA.keys.keys()


def values(config: Any, *keys: str) -> list[Any]:
    found = []
    for key in keys:
        value = config
        for name in key.split("."):
            value = getattr(value, name)
        found.append(value)
    return found


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"BACKEND_DB_ADDR": "db:1"}, {"db.addr": HostPort("db", 1)}),
        ({"BACKEND_DB_NAME": "n"}, {"db.name": "n"}),
        ({"BACKEND_DB_USER": "u"}, {"db.user": "u"}),
        ({"BACKEND_DB_PASSWORD": "12345"}, {"db.password": "12345"}),
        ({"BACKEND_DB_PASSWORD": '"quoted"'}, {"db.password": '"quoted"'}),
        (
            {"BACKEND_SSL_CERT": "/c", "BACKEND_SSL_KEY": "/k"},
            {"ssl_cert": Path("/c"), "ssl_privkey": Path("/k")},
        ),
        ({"BACKEND_MANAGER_NPROC": "3"}, {"num_proc": 3}),
        ({"BACKEND_PID_FILE": "/dev/null"}, {"pid_file": Path("/dev/null")}),
        ({"BACKEND_SERVICE_IP": "0.0.0.0"}, {"service_addr": ListenAddress("0.0.0.0", 9000)}),
        ({"BACKEND_SERVICE_PORT": "80"}, {"service_addr": ListenAddress("10.0.0.1", 80)}),
        (
            {"BACKEND_SERVICE_IP": "::1", "BACKEND_SERVICE_PORT": "80"},
            {"service_addr": ListenAddress("::1", 80)},
        ),
        (
            {"BACKEND_DB_NAME": "theirs", "BACKENDAI_MGR__DB__NAME": "ours"},
            {"db.name": "ours"},
        ),
        (
            {"BACKEND_LOG_FILE": "/l/x.log", "BACKEND_LOG_FILE_COUNT": "7", "BACKEND_LOG_FILE_SIZE": "3"},
            {
                "logging.drivers": ("console", "file"),
                "logging.file": FileLogConfig(
                    path=Path("/l"),
                    filename="x.log",
                    backup_count=7,
                    rotation_size=3 << 20,  # type: ignore[arg-type]
                ),
            },
        ),
        ({"BACKEND_LOG_FILE_COUNT": "7"}, {"logging.file": None}),
    ],
)
def test_variables_of_the_original(environ: Mapping[str, str], expected: Mapping[str, Any]) -> None:
    document = {"manager": {"service-addr": "10.0.0.1:9000"}, "db": {"name": "file"}}
    config = read(SCHEMA, document, environ=environ).checked()
    assert values(config, *expected) == list(expected.values())


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"BACKEND_MANAGER_NPROC": "all"}, "`BACKEND_MANAGER_NPROC`: expected a whole number, not 'all'."),
        ({"BACKEND_MANAGER_NPROC": "0"}, "`BACKEND_MANAGER_NPROC`: 1 to 1024, not 0."),
        ({"BACKEND_DB_ADDR": "db"}, "`BACKEND_DB_ADDR`: expected host:port, not 'db'."),
        ({"BACKEND_SERVICE_PORT": "x"}, "`BACKEND_SERVICE_PORT`: expected host:port, not '127.0.0.1:x'."),
        ({"BACKEND_SERVICE_PORT": "1e9"}, "`BACKEND_SERVICE_PORT`: expected host:port, not '127.0.0.1:1e9'."),
        (
            {"BACKEND_SERVICE_PORT": "70000"},
            "`BACKEND_SERVICE_PORT`: the port must be 0 to 65535, not 70000.",
        ),
        ({"BACKEND_SERVICE_IP": ""}, "`BACKEND_SERVICE_IP`: the host is empty."),
        ({"BACKEND_LOG_FILE": "/x/"}, "`BACKEND_LOG_FILE` must be the name of a file in `path`, not ''."),
        (
            {"BACKEND_LOG_FILE": "/x/y", "BACKEND_LOG_FILE_COUNT": "0"},
            "`BACKEND_LOG_FILE_COUNT` must be from 1 to 100, not 0.",
        ),
        (
            {"BACKEND_LOG_FILE": "/x/y", "BACKEND_LOG_FILE_SIZE": "big"},
            "`BACKEND_LOG_FILE_SIZE`: expected a size such as 65536, 64k or 1.5g, not 'big'.",
        ),
    ],
)
def test_a_wrong_variable_is_named_itself(environ: Mapping[str, str], sentence: str) -> None:
    assert sentence in read(SCHEMA, {}, environ=environ).problems


def test_variables_without_effect_are_told_of() -> None:
    reading = read(SCHEMA, {}, environ={"BACKEND_ETCD_ADDR": "x", "BACKEND_NAMESPACE": "y"})
    assert len(reading.warnings) == 2
    assert "`BACKEND_ETCD_ADDR` has no effect here: shared settings are in the database." in reading.warnings
