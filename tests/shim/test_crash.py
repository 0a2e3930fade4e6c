"""A shim killed at every step that must be crash-safe, and the next one over the same scratch directory."""

from __future__ import annotations

import ast
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from backendai_mgr.shim import runfile
from tests.shim.client import (
    PATIENCE,
    ROOT,
    Client,
    Refused,
    Shim,
    interpreters,
    processes_marked,
    start,
    start_batch,
    until,
)

CODE = """
import os, subprocess
with open('witness', 'a') as witness: witness.write('started\\n')
print('printed', flush=True)
child = subprocess.Popen(['sleep', '1000'], start_new_session=True)
"""


def names_in(path: Path) -> set[str]:
    """Return the names of the crash points in a source file; each must be a literal."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "failpoint":
            (argument,) = node.args
            assert isinstance(argument, ast.Constant), f"{path}:{node.lineno}"
            names.add(argument.value)
    return names


POINTS = sorted(set().union(*map(names_in, Path(ROOT, "backendai_mgr", "shim").glob("*.py"))))


def test_the_path_of_a_run_is_covered() -> None:
    assert {
        "kernel.before_spawn",
        "kernel.after_spawn",
        "run.before_meta",
        "run.after_claim",
        "run.after_meta",
        "run.after_send",
        "run.after_output_drain",
        "run.after_status",
    } <= set(POINTS)


def killed_at(shim: Shim, point: str) -> None:
    """Run until the shim kills itself at this point."""
    client = shim.start(failpoints=f"{point}=kill")
    try:
        if client is not None:
            start(client, "a", CODE)
            client.ended("a")
            shim.run("1", "b")
            start_batch(client, "c", exec="true")
            client.ended("c")
    except (EOFError, ConnectionResetError, BrokenPipeError):
        pass
    assert shim.process is not None
    assert shim.process.wait(PATIENCE) == -signal.SIGKILL


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(make_shim: Callable[..., Shim], point: str) -> None:
    shim = make_shim()
    killed_at(shim, point)
    until(lambda: not interpreters(shim))
    witness = shim.work / "witness"

    client = shim.start(failpoints=None, incarnation=2)
    assert client is not None
    if client.ask("hello")["state"] == "starting":
        client.note("kernel", state="running")
    # Only the new guest and interpreter live: what the old ones had left behind was found and killed.
    until(lambda: len(processes_marked(shim.spec["kernel_id"])) == 2)
    assert len(interpreters(shim)) == 1

    if point in ("kernel.before_spawn", "kernel.after_spawn", "run.before_meta", "run.after_claim"):
        with pytest.raises(Refused, match="not-found"):
            client.ask("status", run_id="a")
        with pytest.raises(Refused, match="bad-incarnation"):
            start(client, "a", CODE, incarnation=1)
        assert not witness.exists()
        assert start(client, "a", CODE, incarnation=2)["created"] is True
        assert client.ended("a")["state"] == "finished"
    else:
        status = client.ask("status", run_id="a")["run"]
        if point in ("run.after_status", "run.after_execute"):
            assert (status["state"], status["exit_code"]) == ("finished", 0)
            assert shim.output("a") == "printed\n"
        else:
            assert (status["state"], status["exit_code"], status["reason"]) == ("lost", None, "shim-died")
        assert status["incarnation"] == 1
        assert runfile.read(shim.folder("a"))[1] == status
        for incarnation in 1, 2:
            again = start(client, "a", CODE, incarnation=incarnation)
            assert again == {"created": False, "run": status}
        with pytest.raises(Refused, match="conflict"):
            start(client, "a", "other", incarnation=1)
        assert client.ask("list")["runs"][0] == status
    assert shim.run("6*7", "next")["state"] == "finished"
    assert shim.stop() == 0
    assert processes_marked(shim.spec["kernel_id"]) == []
    starts = witness.read_text() if witness.exists() else ""
    assert starts in ("", "started\n")


def test_output_up_to_the_death_is_kept(make_shim: Callable[..., Shim]) -> None:
    shim = make_shim()
    client = shim.running()
    start(client, "a", "print('x' * 100, flush=True)\nwhile True: pass")
    client.ask("watch", run_id="a", offset=0)
    client.note("more", run_id="a")
    shim.kill()
    client = shim.start(incarnation=2)
    assert client is not None
    assert client.ask("status", run_id="a")["run"]["end_offset"] == 101
    assert shim.output("a") == "x" * 100 + "\n"


def test_a_busy_interpreter_dies_with_its_shim(shim: Shim, client: Client) -> None:
    start(client, "a", "print('in', flush=True)\nwhile True: pass")
    client.ask("watch", run_id="a", offset=0)
    client.note("more", run_id="a")
    (pid,) = interpreters(shim)
    fd = os.pidfd_open(pid)
    try:
        shim.kill()
        assert select.select([fd], [], [], PATIENCE)[0]
    finally:
        os.close(fd)


def test_an_unfinished_claim_was_never_a_run(make_shim: Callable[..., Shim]) -> None:
    shim = make_shim()
    for content in ("", '{"run_id": "a"'):
        folder = shim.folder("a")
        folder.mkdir(parents=True)
        (folder / runfile.NAME).write_text(content)
        shim.running()
        assert shim.run("6*7", "a")["state"] == "finished"
        assert shim.output("a") == "42\n"
        shim.stop()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
