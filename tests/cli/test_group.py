"""The command line's first page, and that it is quick."""

import subprocess
import sys

import pytest


def command(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "backendai_mgr", *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def test_the_first_page_names_the_commands_for_people() -> None:
    done = command("--help")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].splitlines() if line.strip()]
    assert listed == [
        *("up", "run", "attach", "runs", "output", "terminal", "ps", "rm", "restart", "why"),
        *("cp", "ls", "mv", "logs"),
        *("start-server", "agent", "config", "schema", "join-token", "fixture"),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "up",
        "run",
        "attach",
        "runs",
        "output",
        "terminal",
        "ps",
        "rm",
        "restart",
        "why",
        "cp",
        "ls",
        "mv",
        "logs",
        "config",
        "config check",
        "config show",
        "schema",
        "schema oneshot",
        "fixture",
        "fixture populate",
        "join-token",
        "agent",
    ],
)
def test_every_command_explains_itself(name: str) -> None:
    done = command(*name.split(), "--help")
    assert done.returncode == 0
    assert f"Usage: backendai-mgr {name}" in done.stdout


@pytest.mark.parametrize("name", ["worker", "agent"])
def test_what_up_runs_can_be_run_by_hand(name: str) -> None:
    done = command(name, "--help")
    assert done.returncode == 0
    assert "--config" in done.stdout


def test_the_first_page_imports_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['x', '--help']\n"
        "from backendai_mgr.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(sorted({'trio', 'httpx', 'quart', 'asyncpg', 'zmq', 'rich'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["up", "--port", "70000"], "70000 is not in the range"),
        (["worker", "--config", "/no/such.toml"], "Error: /no/such.toml cannot be read"),
        (["fixture", "populate", "/no/such.json"], "No such file"),
        (["join-token", "--config", "/no/such.toml"], "Error: /no/such.toml cannot be read"),
        (["join-token", "--expires", "soon"], "expected a duration"),
        (["join-token", "--expires", "0"], "from 1 second to 30 days"),
        (["join-token", "--expires", "31d"], "from 1 second to 30 days"),
        (["join-token", "--uses", "0"], "0 is not in the range"),
        (["agent", "--join", "http://elsewhere:8081"], "`--join` must begin with https://"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(arguments: list[str], sentence: str) -> None:
    done = command(*arguments)
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
