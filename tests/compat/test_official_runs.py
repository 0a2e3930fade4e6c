"""The unmodified official client runs batches and programs that ask (22.03, command line and library)."""

import json
import subprocess
from pathlib import Path

import pytest

from ..system.harness import COMMAND
from .test_official_client import Official, official, up  # noqa: F401  (fixtures)

pytestmark = pytest.mark.compat

_LIBRARY = """
import asyncio, json, sys
from ai.backend.client.session import AsyncSession, Session

def step(session, run_id, code, mode="query", opts=None):
    result = session.execute(run_id, code, mode=mode, opts=opts)
    return result, [result["status"], result["exitCode"], result["console"]]

STEPS = {"clean": "echo c", "build": "echo b", "exec": "echo e; exit 3"}
told = {}
with Session() as api:
    session = api.ComputeSession.get_or_create("python", name="official-runs")
    said = []
    result, row = step(session, None, "", "batch", STEPS)
    said.append(row)
    while result["status"] != "finished":
        result, row = step(session, result["runId"], "", "continue")
        said.append(row)
    told["batch"] = said
    result, row = step(session, None, "print('hello', input('who? '))")
    told["asks"] = [row[0], result["options"]]
    result, row = step(session, result["runId"], "me", "input")
    while result["status"] == "continued":
        result, row = step(session, result["runId"], "", "continue")
    told["answered"] = row[0]
    told["raises"] = step(session, None, "1 / 0")[1]
    told["complete"] = session.complete("prin", {"row": 0, "col": 4, "line": "prin", "post": ""})

async def stream():
    frames = []
    async with AsyncSession() as api:
        session = await api.ComputeSession.get_or_create("python", name="official-runs")
        code = "print('hello', input('who? '))"
        async with session.stream_execute(code, mode="query") as socket:
            async for message in socket:
                frame = json.loads(message.data)
                frames.append(frame)
                if frame["status"] == "waiting-input":
                    await socket.send_str("stream")
                if frame["status"] in ("finished", "error"):
                    break
        await session.destroy()
    return frames

told["stream"] = asyncio.run(stream())
print(json.dumps(told))
"""


def test_the_library_runs_batches_answers_and_completes(official: Official) -> None:  # noqa: F811
    done = subprocess.run(
        [str(official._program.parent / "python"), "-c", _LIBRARY],
        env=official._environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    steps = [row for row in told["batch"] if row[0] != "continued"]
    assert [row[:2] for row in steps] == [["clean-finished", 0], ["build-finished", 0], ["finished", 3]]
    console = [item for row in told["batch"] for item in row[2]]
    assert "".join(text for stream, text in console if stream == "stdout") == "c\nb\ne\n"
    assert told["asks"] == ["waiting-input", {"is_password": False}]
    assert told["answered"] == "finished"
    assert told["raises"][:2] == ["finished", 0]
    assert "ZeroDivisionError" in told["raises"][2][-1][1]
    assert "print(" in told["complete"]["result"]["completions"]
    frames = told["stream"]
    assert "waiting-input" in [frame["status"] for frame in frames]
    assert frames[-1]["status"] == "finished"
    assert "hello stream" in "".join(text for frame in frames for _, text in frame["console"])


def test_the_command_line_runs_files_as_a_batch(official: Official, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "main.py").write_text("print('from a file')\n")
    done = official(
        *("run", "--basedir", str(tmp_path), "--build", "echo built", "--exec", "python3 main.py"),
        *("--rm", "python", str(tmp_path / "main.py")),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "built" in done.stdout
    assert "from a file" in done.stdout
