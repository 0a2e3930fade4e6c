"""Files and logs through the whole program, as a person and as a hostile program see them."""

import hashlib
import json
import os
import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from .harness import Up
from .http import Http

pytestmark = pytest.mark.system

SIZE = 21 * (1 << 20) + 7


@pytest.fixture(scope="module")
def session(shared_up: Up) -> Iterator[str]:
    done = shared_up.command("run", "--session", "files-session", "--keep", "1")
    assert done.returncode == 0, done.stderr
    yield "files-session"
    shared_up.command("rm", "files-session")


def run(up: Up, session: str, code: str) -> str:
    done = up.command("run", "--session", session, code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def cp(up: Up, *arguments: str, code: int = 0) -> str:
    done = up.command("cp", *arguments)
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_large_file_goes_in_and_out_unchanged(shared_up: Up, session: str, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(SIZE)
    (tmp_path / "big").write_bytes(data)
    cp(shared_up, str(tmp_path / "big"), f"{session}:deep/er/bïg")
    digest = "import hashlib; hashlib.sha256(open('deep/er/bïg', 'rb').read()).hexdigest()"
    assert run(shared_up, session, digest).strip("'\n") == hashlib.sha256(data).hexdigest()
    cp(shared_up, f"{session}:deep/er/bïg", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    assert sorted(os.listdir(tmp_path)) == ["back", "big"]
    assert run(shared_up, session, "import os; sorted(os.listdir('deep/er'))") == "['bïg']\n"


def test_folders_go_in_and_out(shared_up: Up, session: str, tmp_path: Path) -> None:
    source = tmp_path / "tree"
    (source / "sub").mkdir(parents=True)
    (source / "a").write_text("A")
    (source / "sub" / "b c").write_text("")
    assert "is a folder" in cp(shared_up, str(source), f"{session}:", code=1)
    cp(shared_up, "-r", str(source), f"{session}:")
    cp(shared_up, "-r", f"{session}:tree", str(tmp_path / "copy"))
    cp(shared_up, "-r", f"{session}:/home/work/tree", str(tmp_path))
    assert (tmp_path / "copy" / "sub" / "b c").read_text() == ""
    assert (tmp_path / "copy" / "a").read_text() == (tmp_path / "tree" / "a").read_text() == "A"
    cp(shared_up, f"{session}:tree/a", str(tmp_path))
    cp(shared_up, str(tmp_path / "a"), f"{session}:tree/sub/")
    assert run(shared_up, session, "import os; sorted(os.listdir('tree/sub'))") == "['a', 'b c']\n"


def test_what_a_program_puts_there_is_never_followed_or_waited_for(
    shared_up: Up, session: str, tmp_path: Path
) -> None:
    code = (
        "import os; os.makedirs('trap'); os.mkfifo('trap/pipe'); os.symlink('/etc', 'trap/etc')\n"
        "open(b'trap/\\xff', 'w').close(); open('trap/good', 'w').write('good')"
    )
    run(shared_up, session, code)
    told = cp(shared_up, "-r", f"{session}:trap", str(tmp_path / "got"), code=1)
    assert told.count("Left out") == 3
    assert os.listdir(tmp_path / "got") == ["good"]
    assert "path" in cp(shared_up, f"{session}:trap/etc/passwd", str(tmp_path / "x"), code=1)
    assert "regular" in cp(shared_up, f"{session}:trap/pipe", str(tmp_path / "x"), code=1)
    assert "path" in cp(shared_up, str(tmp_path / "got" / "good"), f"{session}:trap/etc/x", code=1)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("source", "destination", "told"),
    [
        ("here", "there", "One side"),
        ("a:x", "b:y", "One side"),
        ("files-session:missing", "x", "No such file"),
        ("files-session:../x", "x", "path"),
        ("files-session:/etc/passwd", "x", "/home/work"),
        ("/no/such/file", "files-session:x", "No such file"),
        ("/dev/null", "files-session:x", "not a regular file"),
        ("no-such-session:x", "x", "No such session"),
    ],
)
def test_wrong_copies_are_told_in_a_line(
    shared_up: Up, session: str, source: str, destination: str, told: str
) -> None:
    error = cp(shared_up, source, destination, code=1)
    assert told in error
    assert len(error.splitlines()) == 1
    assert not Path(destination).exists()


def test_logs_of_a_session_that_runs_and_that_has_ended(shared_up: Up) -> None:
    name = "logs-session"
    shared_up.command("run", "--session", name, "--keep", "print('first')")
    shared_up.command("run", "--session", name, "import sys; print('secönd', file=sys.stderr)")
    running = shared_up.command("logs", name)
    assert running.stdout.endswith("first\nsecönd\n"), running.stderr
    assert shared_up.command("rm", name).returncode == 0
    assert shared_up.command("logs", name).stdout == running.stdout
    missing = shared_up.command("logs", "no-such-session")
    assert (missing.returncode, missing.stdout) == (1, "")


def test_files_are_listed_moved_and_removed(shared_up: Up, session: str, tmp_path: Path) -> None:
    def command(*words: str, code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = shared_up.command(*words)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    def listed(place: str) -> list[str]:
        lines = command("ls", "--json", place).stdout.splitlines()
        return [json.loads(line)["filename"] for line in lines]

    run(shared_up, session, "import os; os.makedirs('shelf/low/er'); open('shelf/a', 'w').write('A' * 2048)")
    table = command("ls", f"{session}:shelf").stdout.splitlines()
    assert table[0].split() == ["MODE", "SIZE", "AGE", "NAME"]
    assert re.fullmatch(r"-rw\S+ +2\.0 KiB +\d+[smhd] +a *", table[1])
    assert "shelf" in listed(session)
    assert listed(f"{session}:shelf/a") == ["a"]
    command("mv", f"{session}:shelf/a", f"{session}:shelf/low/er")
    assert listed(f"{session}:/home/work/shelf/low/er") == ["a"]
    command("mv", f"{session}:shelf/low", f"{session}:shelf/high")
    run(shared_up, session, "open('shelf/b', 'w').write('B')")
    told = command("mv", f"{session}:shelf/b", f"{session}:shelf/high/er/a", code=1).stderr
    assert "rename: there is something of that name" in told
    command("mv", "-f", f"{session}:shelf/b", f"{session}:shelf/high/er/a")
    assert run(shared_up, session, "print(open('shelf/high/er/a').read())") == "B\n"
    assert command("rm", f"{session}:shelf/high/er/a").stdout == f"{session}:shelf/high/er/a\n"
    assert "recursive=true" in command("rm", f"{session}:shelf", code=1).stderr
    assert "work folder itself" in command("rm", "-r", f"{session}:", code=1).stderr
    command("rm", "-r", f"{session}:shelf")
    assert "shelf" not in listed(session)
    assert "No such file" in command("rm", f"{session}:shelf", code=1).stderr
    assert "within one session" in command("mv", f"{session}:x", "other:x", code=1).stderr


def test_a_program_writes_behind_what_is_appended_over_http(shared_up: Up, session: str) -> None:
    """Conditions, appends, ranges and a whole file as it comes, of a real kernel."""
    with closing(Http(shared_up.said)) as http:
        url = f"/session/{session}/files/http/f"

        def ask(method: str, target: str, content: bytes = b"", **headers: str) -> httpx.Response:
            more = {name.replace("_", "-"): value for name, value in headers.items()}
            return http.call(method, target, raw=content, more=more)

        data = random.Random(2).randbytes(SIZE)
        made = ask("PUT", url, data, If_None_Match="*")
        assert (made.status_code, made.json()["end"]) == (201, SIZE)
        assert ask("PUT", url, b"x", If_None_Match="*").status_code == 412
        head, tail = f"bytes=0-{SIZE // 2 - 1}", f"bytes=-{SIZE - SIZE // 2}"
        halves = [ask("GET", url, Range=part, If_Match=made.headers["etag"]) for part in (head, tail)]
        assert [half.status_code for half in halves] == [206, 206]
        assert b"".join(half.content for half in halves) == data
        appended = ask("PATCH", url, b"appended", If_Match=made.headers["etag"])
        assert (appended.status_code, appended.json()["size"]) == (200, SIZE + 8)
        run(shared_up, session, "print('!', file=open('http/f', 'a'), end='')")
        assert ask("PATCH", url, b"lost", If_Match=appended.headers["etag"]).status_code == 412
        assert ask("GET", url, If_None_Match=appended.headers["etag"]).status_code == 200
        assert ask("GET", url, Range="bytes=-9").content == b"appended!"
        assert ask("PATCH", url + "?rename=../f").status_code == 400
        assert ask("PATCH", url + "?rename=http/g").status_code == 200
        assert ask("DELETE", f"/session/{session}/files/http").status_code == 400
        assert ask("DELETE", f"/session/{session}/files/http?recursive=true").status_code == 204
        assert ask("GET", url).status_code == 404
