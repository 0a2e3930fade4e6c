"""The configuration of processes that run: what is checked and shown of it, and what sets it."""

import json
import signal
import subprocess
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..support.postgres import TemporaryPostgres
from .harness import START, STOP, Installation, Up, wait_until

pytestmark = pytest.mark.system

#: What an operator brings from Backend.AI: tables and keys that have no meaning here, addresses as tables.
MANAGER = """
[etcd]
namespace = "local"
addr = {{ host = "127.0.0.1", port = 2379 }}

[db]
type = "postgresql"
socket-dir = "{socket_dir}"
name = "{database}"

[manager]
event-loop = "uvloop"
service-addr = {{ host = "127.0.0.1", port = 8081 }}

[logging]
level = "DEBUG"

[logging.pkg-ns]
"" = "WARNING"
"ai.backend" = "INFO"
"""


@pytest.mark.parametrize("name", ["manager", "agent"])
def test_what_runs_has_a_good_configuration_that_can_be_shown(shared_up: Up, name: str) -> None:
    path = shared_up.data_dir / "etc" / f"{name}.toml"
    connect = ["--connect"] if name == "manager" else []
    checked = shared_up.installation.command("config", "check", "--config", str(path), *connect)
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.splitlines()[-1] == f"{path} is good."
    assert bool(connect) == ("PostgreSQL" in checked.stdout)
    shown = shared_up.installation.command("config", "show", "--resolved", "--config", str(path))
    assert shown.returncode == 0
    assert shared_up.said["secret_key"] not in shown.stdout
    written, resolved = tomllib.loads(path.read_text()), tomllib.loads(shown.stdout)
    for key, value in written[name].items():
        if not isinstance(value, list):  # an address, which has two spellings
            assert resolved[name][key] == value


@pytest.fixture
def database() -> Iterator[dict[str, str]]:
    with TemporaryPostgres() as server:
        yield server.database("template0")


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_worker_follows_its_file_and_the_environment(
    installation: Installation, folder: Path, database: dict[str, str]
) -> None:
    config = folder / "manager.toml"
    config.write_text(MANAGER.format(socket_dir=database["host"], database="another"))
    log = folder / "logs" / "manager.log"
    environ = {
        "BACKEND_DB_NAME": database["database"],
        "BACKEND_SERVICE_PORT": "0",
        "BACKEND_LOG_FILE": str(log),
        "BACKENDAI_MGR__LOGGING__FORMAT": "json",
        "BACKENDAI_MGR__LIMITS__HEAD_BYTES": "1k",
    }
    process = installation.popen("worker", "-f", str(config), environ=environ, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: any("serving at" in line["message"] for line in records(log)), START, "serving")
        messages = [line["message"] for line in records(log)]
        endpoint = next(message.split()[2] for message in messages if message.startswith("serving at"))
        assert f"{config}:2: `etcd` has no effect here: shared settings are in the database." in messages
        assert f"{config}:12: `manager.event-loop` has no effect here: Trio has one loop." in messages
        assert not endpoint.endswith(":8081")
        with urllib.request.urlopen(f"{endpoint}/livez", timeout=START) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{endpoint}/livez?{'x' * 2000}", timeout=START)
        with refused.value:
            assert refused.value.code == 431
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=STOP)
    assert process.returncode == 0
    assert [json.loads(line)["message"] for line in err.splitlines()] == [
        line["message"] for line in records(log)
    ]


def test_an_agent_follows_the_environment_alone(installation: Installation, folder: Path) -> None:
    log = folder / "agent.log"
    environ = {
        "BACKENDAI_MGR__AGENT__BIND": "127.0.0.1:0",
        "BACKENDAI_MGR__AGENT__DATA_DIR": str(folder / "data"),
        "BACKENDAI_MGR__AGENT__POOL_SIZE": "0",
        "BACKENDAI_MGR__LOGGING__DRIVERS": '["file"]',
        "BACKENDAI_MGR__LOGGING__FILE__PATH": str(folder),
        "BACKENDAI_MGR__LOGGING__FILE__FILENAME": log.name,
        "HOME": str(folder),
    }
    wrong = installation.command("agent", environ={**environ, "BACKENDAI_MGR__AGENT__POOL_SIZE": "many"})
    assert wrong.returncode == 1
    assert wrong.stderr == (
        "Error: `BACKENDAI_MGR__AGENT__POOL_SIZE`: expected a whole number, not 'many'.\n"
    )
    process = installation.popen("agent", environ=environ, stderr=subprocess.PIPE, cwd=folder)
    try:
        wait_until(lambda: records(log) != [], START, "a log file")
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=STOP)
    assert process.returncode == 0, err
    assert err == ""
    first, *_ = records(log)
    assert first["message"].startswith("the agent listens on tcp://127.0.0.1:")
    assert not first["message"].endswith(":6001")
    assert (folder / "data").is_dir()
