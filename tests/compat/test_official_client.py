"""The unmodified official command line (22.03) against a running system.

`nox -s compat` installs it into an environment of its own and names that in ``OFFICIAL_CLIENT``.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..system.harness import COMMAND, Installation, Up, temporary_dir

pytestmark = pytest.mark.compat


@pytest.fixture(scope="module")
def up() -> Iterator[Up]:
    with temporary_dir() as folder, Up(Installation(), folder / "data") as up:
        yield up


@pytest.fixture
def official(up: Up, tmp_path: Path) -> "Official":
    return Official(Path(os.environ["OFFICIAL_CLIENT"]) / "bin" / "backend.ai", up, tmp_path)


class Official:
    """The official client, told of the manager as `up` tells a person: by environment variables."""

    def __init__(self, program: Path, up: Up, home: Path) -> None:
        self._program = program
        exports = (line.split() for line in up.announced.splitlines())
        said = dict(words[1].split("=", 1) for words in exports if words[:1] == ["export"])
        self._environ = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", **said}

    def __call__(self, *arguments: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        return self._run(str(self._program), *arguments, cwd=cwd)

    def python(self, code: str) -> "subprocess.CompletedProcess[str]":
        """Run a program that uses the client as a library."""
        return self._run(str(self._program.with_name("python")), "-c", code)

    def _run(self, *command: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            list(command),
            env=self._environ,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND,
        )


def test_it_runs_code_and_shows_the_output(official: Official) -> None:
    done = official("run", "-c", "print(6 * 7)", "python")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["42"]


def test_it_shows_both_streams(official: Official) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    done = official("run", "-q", "-c", code, "python")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out\n"
    assert "err" in done.stderr


def test_it_follows_a_long_run_to_its_end(official: Official) -> None:
    code = "import time\nfor n in range(5):\n    print(n, flush=True); time.sleep(1)"
    done = official("run", "-q", "-c", code, "python")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1", "2", "3", "4"]


def test_it_starts_and_ends_a_session_of_its_own(official: Official, up: Up) -> None:
    made = official("session", "create", "--name", "official-1", "python")
    assert made.returncode == 0, made.stdout + made.stderr
    assert up.command("why", "official-1").stdout == "official-1 is RUNNING. It is running.\n"
    assert up.command("run", "--session", "official-1", "print('shared')").stdout == "shared\n"
    ended = official("session", "destroy", "official-1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "official-1 is TERMINATED." in up.command("why", "official-1").stdout


def test_it_restarts_and_renames_a_session(official: Official, up: Up) -> None:
    made = official("session", "create", "--name", "official-2", "python")
    assert made.returncode == 0, made.stdout + made.stderr
    up.command("run", "--session", "official-2", "--keep", "x = 1; open('kept', 'w').write('kept')")
    done = official("session", "restart", "official-2")
    assert done.returncode == 0, done.stdout + done.stderr
    code = "print('x' in globals(), open('kept').read())"
    assert up.command("run", "--session", "official-2", code).stdout == "False kept\n"
    renamed = official("session", "rename", "official-2", "official-3")
    assert renamed.returncode == 0, renamed.stdout + renamed.stderr
    assert up.command("why", "official-3").stdout == "official-3 is RUNNING. It is running.\n"
    assert official("session", "destroy", "official-3").returncode == 0
    refused = official("session", "restart", "official-3")
    assert refused.returncode != 0


def test_its_library_restarts_a_session(official: Official, up: Up) -> None:
    code = (
        "from ai.backend.client.session import Session\n"
        "with Session() as session:\n"
        "    made = session.ComputeSession.get_or_create('python', name='official-4')\n"
        "    made.restart()\n"
        "    print(made.get_info()['status'])\n"
        "    made.destroy()\n"
    )
    done = official.python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "RUNNING"


@pytest.fixture(scope="module")
def files_session(up: Up) -> str:
    done = up.command("run", "--session", "official-files", "--keep", "print('begun')")
    assert done.returncode == 0, done.stderr
    return "official-files"


def test_it_uploads_lists_and_downloads_files(
    official: Official, up: Up, files_session: str, tmp_path: Path
) -> None:
    sub = tmp_path / "src" / "sub dir"
    sub.mkdir(parents=True)
    (tmp_path / "src" / "ä.txt").write_text("umlaut")
    (sub / "b.bin").write_bytes(bytes(range(256)) * 4000)
    done = official("session", "upload", files_session, "ä.txt", "sub dir/b.bin", cwd=tmp_path / "src")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = up.command("run", "--session", files_session, "import os; print(sorted(os.listdir('sub dir')))")
    assert shown.stdout == "['b.bin']\n"
    listed = official("session", "ls", files_session, "sub dir")
    assert listed.returncode == 0, listed.stdout + listed.stderr
    assert "b.bin" in listed.stdout
    assert "ä.txt" in official("session", "ls", files_session).stdout
    target = tmp_path / "got"
    target.mkdir()
    done = official("session", "download", "--dest", str(target), files_session, "ä.txt", "sub dir/b.bin")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (target / "ä.txt").read_text() == "umlaut"
    assert (target / "b.bin").read_bytes() == (sub / "b.bin").read_bytes()
    done = official("session", "download", "--dest", str(target), files_session, "sub dir")
    assert (target / "sub dir" / "b.bin").exists(), done.stdout + done.stderr


def test_it_tells_of_a_file_that_is_missing(official: Official, files_session: str, tmp_path: Path) -> None:
    done = official("session", "download", "--dest", str(tmp_path), files_session, "missing")
    assert "The file is not found" in done.stdout + done.stderr
    done = official("session", "ls", files_session, "missing")
    assert "The file is not found" in done.stdout + done.stderr


def test_it_shows_logs(official: Official, files_session: str) -> None:
    done = official("session", "logs", files_session)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "begun" in done.stdout


def test_it_shows_the_logs_of_a_session_that_has_ended(official: Official, up: Up) -> None:
    up.command("run", "--session", "official-ended", "--keep", "print('last words')")
    found = json.loads(up.command("why", "--json", "official-ended").stdout)
    official("session", "destroy", "official-ended")
    done = official("session", "logs", found["session_id"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "last words" in done.stdout
