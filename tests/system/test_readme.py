"""Every command of README.md works. CI itself runs the two at its top; the others run here, in order."""

import re
from pathlib import Path

import pytest

from .harness import Up

pytestmark = pytest.mark.system

README = Path(__file__).parents[2] / "README.md"
#: A file of the person who types the command.
LOCAL_FILE = re.compile(r"[a-z-]+\.(csv|json|toml)")
#: Run by nox's caller (CI) and by the tests of `up`.
TOP = [
    "python -m pip install . && backendai-mgr up",
    "python -m pip install nox && nox",
]


def commands() -> list[tuple[str, str]]:
    """The commands of the console blocks, each with the output that is shown below it."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), ""))
            else:
                command, output = found[-1]
                found[-1] = (command, f"{output}{line}\n")
    return found


def test_the_two_commands_stand_at_the_top() -> None:
    assert [command for command, _ in commands()[:2]] == TOP


def test_every_other_command_works_and_prints_what_is_shown(shared_up: Up, tmp_path: Path) -> None:
    import shlex
    import shutil

    others = commands()[2:]
    assert len(others) >= 8
    shutil.copy(shared_up.data_dir / "etc" / "manager.toml", tmp_path / "manager.toml")
    fixture = README.parent / "conf" / "fixtures" / "example-keypairs.json"
    shutil.copy(fixture, tmp_path)
    (tmp_path / "data.csv").write_text("a,b\n")
    for command, shown in others:
        program, *words = shlex.split(command)
        assert program == "backendai-mgr"
        words = [str(tmp_path / word) if LOCAL_FILE.fullmatch(word) else word for word in words]
        caller = shared_up.installation if "--config" in words else shared_up
        done = caller.command(*words)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        if shown:
            assert done.stdout == shown, command


def test_what_it_refers_to_exists() -> None:
    text = README.read_text()
    for name in re.findall(r"`((?:conf|docs)/[^`]+|[A-Z]+\.md)`", text):
        assert (README.parent / name).exists(), name
