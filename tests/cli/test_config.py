"""`config check` and `config show`."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from click.testing import CliRunner

from backendai_mgr.agent.config import SCHEMA as AGENT
from backendai_mgr.app.config import SCHEMA as MANAGER
from backendai_mgr.cli.config import config
from backendai_mgr.cli.errors import CliError
from backendai_mgr.db.schema import SCHEMA_VERSION
from backendai_mgr.runtime.config import parse_toml
from backendai_mgr.runtime.configfile import Schema, read, read_file, variable_of
from backendai_mgr.runtime.configshow import toml_value

from ..support.postgres import TemporaryPostgres
from ..support.samples import default_of

#: Keys without a default, and with one that cannot be written down.
EXAMPLES = {
    ("manager", "ssl-cert"): "/c",
    ("manager", "ssl-privkey"): "/k",
    ("manager", "pid-file"): "/p",
    ("db", "socket-dir"): "/s",
    ("agent", "bind"): "10.0.0.5:6001",
    ("agent", "advertised-addr"): "10.0.0.5:6001",
    ("agent", "manager-ca"): "/c",
    ("agent", "images-dir"): "/i",
    ("logging", "file", "path"): "/l",
    ("logging", "file", "filename"): "x.log",
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file in the usual places, and no variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in os.environ:
        if name.startswith("BACKEND"):
            monkeypatch.delenv(name)


@attrs.frozen
class Done:
    exit_code: int
    lines: list[str]


def call(*arguments: str) -> Done:
    """Run the command as the program does: what it returns is run on Trio, and is the exit code at last."""
    runner = CliRunner()
    result = runner.invoke(config, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    if not callable(result.return_value):
        return Done(result.return_value or 0, result.output.splitlines())
    with runner.isolation() as (out, *_):
        code = trio.run(result.return_value)
        text = out.getvalue().decode()
    return Done(code or 0, text.splitlines())


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_a_good_file_is_good(tmp_path: Path) -> None:
    path = write(tmp_path / "manager.toml", '[manager]\nservice-addr = "127.0.0.1:0"\n')
    assert call("check") == Done(0, [f"{path} is good."])
    assert call("check", "--config", str(path)) == Done(0, [f"{path} is good."])


def test_without_a_file_the_defaults_are_checked() -> None:
    assert call("check") == Done(0, ["There is no manager.toml; the defaults are good."])
    assert call("check", "agent") == Done(0, ["There is no agent.toml; the defaults are good."])


def test_where_only_an_agent_is_it_is_the_agents_file(tmp_path: Path) -> None:
    path = write(tmp_path / "agent.toml", '[agent]\nbind = "127.0.0.1:0"\n')
    assert call("check") == Done(0, [f"{path} is good."])


def test_whose_file_it_is_says_its_name_or_the_person(tmp_path: Path) -> None:
    text = "[agent]\npool-size = -1\n"
    wrong = "`agent.pool-size` must be from 0 to 64, not -1."
    path = write(tmp_path / "agent-7.toml", text)
    assert call("check", "-f", str(path)) == Done(1, [f"{path}:2: {wrong}"])
    path = write(tmp_path / "any.toml", text)
    assert call("check", "-f", str(path), "agent") == Done(1, [f"{path}:2: {wrong}"])
    with pytest.raises(CliError, match=r"^Say whose file \S+any.toml is"):
        call("check", "-f", str(path))


def test_the_file_that_the_variable_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "of-an-agent.toml", "[agent]\n")
    monkeypatch.setenv("BACKEND_CONFIG_FILE", str(path))
    assert call("check") == Done(0, [f"{path} is good."])


def test_all_problems_and_warnings_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path / "manager.toml",
        '[etcd]\n[manager]\nheartbeat-timeout = 0\nservice-addr = "192.0.2.1:8081"\n'
        '[db]\nadr = "x:1"\nsocket-dir = "/no/such"\n',
    )
    monkeypatch.setenv("BACKENDAI_MGR__LOGGING__LEVEL", "LOUD")
    assert call("check") == Done(
        1,
        [
            f"warning: {path}:1: `etcd` has no effect here: shared settings are in the database.",
            "`BACKENDAI_MGR__LOGGING__LEVEL`: expected one of NOTSET, DEBUG, INFO, WARNING, ERROR, CRITICAL,"
            " not 'LOUD'.",
            f"{path}:3: `manager.heartbeat-timeout`: more than 0 seconds.",
            f"{path}:6: `db.adr` is not a known key; the nearest is `addr`.",
            f"{path}:4: `manager.service-addr`: 192.0.2.1, port 8081, is not an address of this machine.",
            f"{path}:7: `db.socket-dir`: the folder /no/such does not exist.",
        ],
    )


@pytest.mark.parametrize("text", ["[manager", "\x00"])
def test_a_file_that_is_not_toml_is_told_with_its_line(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "manager.toml", text)
    done = call("check")
    assert done.exit_code == 1
    (line,) = done.lines
    assert line.startswith(f"{path} is not valid TOML")


def test_an_address_that_somebody_listens_on_is_no_problem_of_the_file(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        write(tmp_path / "manager.toml", f'[manager]\nservice-addr = "{address}"\n')
        assert call("check").exit_code == 0


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    issued = trustme.CA().issue_cert("localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return cert, key


def with_tls(folder: Path, cert: Path, key: Path) -> Path:
    return write(
        folder / "manager.toml",
        '[manager]\nservice-addr = "127.0.0.1:0"\nssl-enabled = true\n'
        f'ssl-cert = "{cert}"\nssl-privkey = "{key}"\n',
    )


def test_certificate_and_key_belong_together(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    path = with_tls(tmp_path, *certificate)
    assert call("check") == Done(0, [f"{path} is good."])
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(certificate[1])
    done = call("check")
    assert done.exit_code == 1
    assert done.lines[0].startswith(
        f"{path}:4: `manager.ssl-cert`: the certificate {certificate[0]} and the key"
    )
    certificate[1].unlink()
    assert call("check").lines == [
        f"{path}:5: `manager.ssl-privkey`: the file {certificate[1]} does not exist."
    ]


def test_a_password_that_everybody_can_read_is_told_of(tmp_path: Path) -> None:
    path = write(tmp_path / "manager.toml", '[db]\npassword = "s3cret"\n')
    path.chmod(0o644)
    assert call("check") == Done(
        0,
        [
            f"warning: {path}:2: `db.password` can be read by every account (chmod 640).",
            f"{path} is good.",
        ],
    )


def test_folders_and_manifests_of_an_agent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    images = tmp_path / "images"
    images.mkdir()
    path = write(
        tmp_path / "agent.toml",
        f'[agent]\nbind = "192.0.2.1:6001"\ndata-dir = "{tmp_path}/file/x"\nimages-dir = "{images}"\n'
        f'[logging]\ndrivers = ["file"]\n[logging.file]\npath = "{tmp_path}/file/logs"\nfilename = "x"\n',
    )
    assert call("check") == Done(
        1,
        [
            f"{path}:2: `agent.bind`: 192.0.2.1, port 6001, is not an address of this machine.",
            f"{path}:3: `agent.data-dir`: {tmp_path}/file is not a folder.",
            f"{path}:4: `agent.images-dir`: {images} holds no image manifest (*.toml).",
            f"{path}:8: `logging.file.path`: {tmp_path}/file is not a folder.",
        ],
    )


def test_only_the_manager_has_a_database() -> None:
    with pytest.raises(CliError, match="leave out --connect"):
        call("check", "--connect", "agent")


# ---------------------------------------------------------------- the database


@pytest.fixture(scope="module")
def postgres() -> Iterator[TemporaryPostgres]:
    with TemporaryPostgres() as server:
        yield server


def for_database(folder: Path, parameters: dict[str, str]) -> Path:
    return write(
        folder / "manager.toml",
        '[manager]\nservice-addr = "127.0.0.1:0"\n'
        f'[db]\nsocket-dir = "{parameters["host"]}"\nname = "{parameters["database"]}"\n',
    )


@pytest.mark.parametrize(
    ("template", "statement", "state"),
    [
        ("ours", "", rf"tables of version {SCHEMA_VERSION}"),
        ("template0", "", "no tables yet; the manager makes them when it starts"),
        (
            "ours",
            "UPDATE schema_migrations SET version = 1",
            "tables of version 1; the manager upgrades them when it starts",
        ),
    ],
)
def test_the_database_is_looked_at_when_that_is_wanted(
    postgres: TemporaryPostgres, tmp_path: Path, template: str, statement: str, state: str
) -> None:
    parameters = postgres.database(template)
    if statement:
        postgres.sql(statement, database=parameters["database"])
    before = postgres.sql("SELECT count(*) FROM pg_class", database=parameters["database"])
    path = for_database(tmp_path, parameters)
    done = call("check", "--connect")
    assert done.exit_code == 0
    there, good = done.lines
    assert re.fullmatch(
        rf"PostgreSQL 18\.[1-9]\d* answers at {parameters['host']};"
        rf" the database {parameters['database']} has {state}\.",
        there,
    )
    assert good == f"{path} is good."
    assert postgres.sql("SELECT count(*) FROM pg_class", database=parameters["database"]) == before
    postgres.drop(parameters)


def test_tables_of_a_newer_program_are_a_problem(postgres: TemporaryPostgres, tmp_path: Path) -> None:
    parameters = postgres.database()
    postgres.sql("UPDATE schema_migrations SET version = version + 1000", database=parameters["database"])
    path = for_database(tmp_path, parameters)
    done = call("check", "--connect")
    assert done.exit_code == 1
    (line,) = done.lines
    assert line.startswith(f"{path}:4: `db.socket-dir`: its tables have version 100")
    assert line.endswith(f", which is newer than this program's {SCHEMA_VERSION}.")
    postgres.drop(parameters)


def test_a_database_that_is_away_is_a_problem_and_its_password_stays_secret(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    path = write(
        tmp_path / "manager.toml",
        f'[manager]\nservice-addr = "127.0.0.1:0"\n[db]\naddr = "127.0.0.1:{port}"\npassword = "s3cret"\n',
    )
    done = call("check", "--connect")
    assert done.exit_code == 1
    (line,) = done.lines
    assert line.startswith(f"{path}:4: `db.addr`: ")
    assert "refused" in line or "failed" in line
    assert "s3cret" not in line


def test_a_database_that_is_not_there_is_a_problem(postgres: TemporaryPostgres, tmp_path: Path) -> None:
    for_database(tmp_path, postgres.parameters("nobodys"))
    done = call("check", "--connect")
    assert done.exit_code == 1
    assert '"nobodys" does not exist' in done.lines[0]


# ---------------------------------------------------------------- show


def test_a_file_is_shown_without_its_secrets(tmp_path: Path) -> None:
    path = write(tmp_path / "manager.toml", '# ours\n[db]\npassword = "s3cret"\nname = "x"\n')
    assert call("show").lines == [
        f"# {path}",
        "# ours",
        "[db]",
        'password = "********"',
        'name = "x"',
    ]


def test_without_a_file_nothing_but_that_is_shown() -> None:
    (line,) = call("show").lines
    assert line == "# There is no manager.toml: what is not said here has its default."


@pytest.mark.parametrize("schema", [MANAGER, AGENT], ids=["manager", "agent"])
def test_what_is_in_force_is_shown_as_a_file_with_the_same_meaning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: Schema[Any]
) -> None:
    """Each key in turn is set by a variable, to its own default or to what the sample shows."""
    for path, key in schema.keys.items():
        if path[0] != "local" and not key.secret:
            monkeypatch.setenv(
                variable_of(path), str(EXAMPLES.get(path, toml_value(default_of(schema, path))))
            )
    path = write(tmp_path / schema.file_name, "[logging]\n")
    shown = call("show", "--resolved", schema.main).lines
    text = "\n".join(shown)
    assert read(schema, parse_toml(text, path)).checked() == read_file(schema, path).checked()
    assert sum("BACKENDAI_MGR__" in line for line in shown) >= len(schema.keys) - 6
    assert shown[0] == f"# {path}"


def test_secrets_in_force_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKEND_DB_PASSWORD", "s3cret")
    lines = call("show", "--resolved").lines
    assert 'password = "********"  # BACKEND_DB_PASSWORD' in lines
    assert not [line for line in lines if "s3cret" in line]


def test_nothing_wrong_is_in_force(tmp_path: Path) -> None:
    path = write(tmp_path / "manager.toml", "[manager]\nid = 1\nx = 2\n")
    with pytest.raises(CliError, match=rf"^{path}:2: .* {path}:3: "):
        call("show", "--resolved")


def test_the_two_files_know_each_others_tables() -> None:
    def tables(schema: Schema[Any]) -> set[str]:
        return {path[0] for path in schema.keys}

    assert MANAGER.elsewhere == tables(AGENT) - tables(MANAGER)
    assert AGENT.elsewhere == tables(MANAGER) - tables(AGENT)


@pytest.mark.parametrize("command", ["worker", "schema oneshot"])
def test_what_up_wrote_says_all_whatever_the_variables_say(tmp_path: Path, command: str) -> None:
    (tmp_path / "etc").mkdir()
    path = write(tmp_path / "etc" / "manager.toml", "[manager]\nx = 2\n")
    done = subprocess.run(
        [sys.executable, "-m", "backendai_mgr", *command.split(), "--data-dir", tmp_path],
        env={**os.environ, "BACKENDAI_MGR__NO__KEY": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == f"Error: {path}:2: `manager.x` is not a known key.\n"


def test_the_program_exits_with_what_was_found(tmp_path: Path) -> None:
    write(tmp_path / "manager.toml", "[manager]\nx = 2\n")
    done = subprocess.run(
        [sys.executable, "-m", "backendai_mgr", "config", "check"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stdout == f"{tmp_path}/manager.toml:2: `manager.x` is not a known key.\n"
    assert done.stderr == ""
