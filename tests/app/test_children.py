"""Children, played by a small program that keeps the same contract."""

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from backendai_mgr.app.children import Child, ChildError

from .eventually import eventually, gone

#: Counts its starts in a file; stops at the end of its lifeline, and writes why to another.
PROGRAM = """
import os, sys, time
from backendai_mgr.runtime.lifeline import report_ready
options = dict(option.removeprefix("--").split("=", 1) for option in sys.argv[2:])
folder, lifeline, ready = options["data-dir"], int(options["lifeline"]), int(options["ready"])
with open(folder + "/starts", "a") as file:
    file.write("x")
starts = os.path.getsize(folder + "/starts")
if sys.argv[1] == "broken":
    sys.exit(3)
report_ready(ready, {"start": starts, "sid": os.getsid(0), "pid": os.getpid()})
word = os.read(lifeline, 1)
with open(folder + "/why", "w") as file:
    file.write("end" if word == b"E" else "eof")
if sys.argv[1] == "stubborn":
    time.sleep(60)
"""


@asynccontextmanager
async def running(command: str, folder: Path) -> AsyncIterator[Child]:
    child = Child(
        command=command,
        options=[f"--data-dir={folder}"],
        program=(sys.executable, "-c", PROGRAM),
        on_exit=(folder / "exits").touch,
    )
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.keep_running)
            await child.ready()
            yield child
            nursery.cancel_scope.cancel()


async def test_a_child_says_when_it_is_ready_and_has_its_own_session(tmp_path: Path) -> None:
    async with running("good", tmp_path) as child:
        said = await child.ready()
        assert said["pid"] == child.pid
        assert said["sid"] == child.pid != os.getsid(0)


async def test_a_child_that_is_told_to_end_does_so_and_stays_away(tmp_path: Path) -> None:
    async with running("good", tmp_path) as child:
        pid = child.pid
        await child.end(10)
        assert child.pid is None
        assert pid is not None
        assert gone(pid)
    assert (tmp_path / "why").read_text() == "end"
    assert (tmp_path / "starts").read_text() == "x"


async def test_a_child_that_is_told_to_stop_gets_sigterm_and_stays_away(tmp_path: Path) -> None:
    async with running("good", tmp_path) as child:
        assert not (tmp_path / "exits").exists()
        child.tell_to_stop()
        await child.stop(10)
        assert child.pid is None
        assert (tmp_path / "exits").exists()
    assert not (tmp_path / "why").exists()  # the lifeline said nothing before the signal
    assert (tmp_path / "starts").read_text() == "x"


async def test_what_cannot_be_executed_is_an_error_as_well(tmp_path: Path) -> None:
    child = Child(command="none", options=(), program=(str(tmp_path / "missing"),))
    with pytest.raises(ChildError, match=r"The none could not be started: No such file"):
        await child.keep_running()


async def test_a_cancelled_parent_closes_the_lifeline(tmp_path: Path) -> None:
    async with running("good", tmp_path):
        pass
    assert (tmp_path / "why").read_text() == "eof"


async def test_a_child_that_does_not_end_is_killed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running("stubborn", tmp_path) as child:
        pid = child.pid
        await child.end(0.2)
        assert pid is not None
        assert gone(pid)
    assert "did not end within" in caplog.text


async def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    async with running("good", tmp_path) as child:
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)

        async def started_again() -> bool:
            return (tmp_path / "starts").read_text() == "xx"

        await eventually(started_again)
        assert (await child.ready())["start"] == 1


async def test_a_child_that_never_serves_is_an_error(tmp_path: Path) -> None:
    child = Child(
        command="broken", options=[f"--data-dir={tmp_path}"], program=(sys.executable, "-c", PROGRAM)
    )
    with trio.fail_after(30), pytest.raises(ChildError, match=r"The broken did not start \(exit 3\)"):
        await child.keep_running()
