"""The legacy websocket: frames, errors, and what leaving does to the run."""

import json
from contextlib import asynccontextmanager

import pytest
import trio
import trio_websocket

from backendai_mgr.api.limits import Limits
from backendai_mgr.domain.errors import Conflict, Unavailable
from backendai_mgr.domain.status import RunState

from .harness import serving

TARGET = "/stream/session/my-session/execute"


@asynccontextmanager
async def connected(server, target=TARGET):
    with trio.fail_after(20):
        async with server.websocket(target) as socket:
            yield socket


async def ask(socket, **frame):
    await socket.send_message(json.dumps({"mode": "query", "code": "x", "options": None} | frame))


async def frames_of(socket):
    """All frames, and how the server closed."""
    frames = []
    try:
        while True:
            frames.append(json.loads(await socket.get_message()))
    except trio_websocket.ConnectionClosed as closed:
        return frames, closed.reason


async def the_run(server):
    """The run of the only connection, once it is being read."""
    with trio.fail_after(5):
        while not server.runs.runs:
            await trio.lowlevel.checkpoint()
        (run,) = server.runs.runs.values()
        await run.until(lambda: run.readers > 0)
    return run


async def test_a_run_from_its_code_to_its_end(server):
    def program(run):
        run.write(b"hel")
        run.write(b"lo\n")
        run.write(b"oops\n", "stderr")
        run.end(RunState.FINISHED, 1)

    server.runs.program = program
    async with connected(server) as socket:
        await ask(socket, code="print()")
        frames, reason = await frames_of(socket)
    assert frames == [
        {
            "status": "finished",
            "console": [["stdout", "hello\n"], ["stderr", "oops\n"]],
            "exitCode": 0,
            "options": None,
            "files": [],
        }
    ]
    assert reason.code == 1000
    ((run_id, run),) = server.runs.runs.items()
    assert len(run_id) == 16
    assert run.spec.code == "print()"


async def test_steps_while_it_runs(server):
    async with connected(server) as socket:
        await ask(socket)
        run = await the_run(server)
        run.write(b"first")
        assert json.loads(await socket.get_message()) == {
            "status": "continued", "console": [["stdout", "first"]], "exitCode": None, "options": None,
            "files": [],
        }  # fmt: skip
        run.write("ä".encode()[:1])
        run.write("ä".encode()[1:])
        run.end(RunState.TIMEOUT, 130)
        frames, _ = await frames_of(socket)
    assert "".join(text for frame in frames for _, text in frame["console"]) == "ä"
    assert frames[-1]["status"] == "exec-timeout"


@pytest.mark.parametrize("state", [RunState.CANCELLED, RunState.LOST])
async def test_an_end_against_its_will(server, state):
    server.runs.program = lambda run: run.end(state, None)
    async with connected(server) as socket:
        await ask(socket)
        frames, _ = await frames_of(socket)
    assert [(f["status"], f["exitCode"], f["console"]) for f in frames] == [("finished", 130, [])]


async def test_a_client_that_closes_interrupts_its_run(server):
    async with connected(server) as socket:
        await ask(socket)
        run = await the_run(server)
        await socket.aclose()
        with trio.fail_after(5):
            await run.until(lambda: run.interrupts == 1)
    assert run.status.state is RunState.CANCELLED


async def test_the_run_of_a_client_that_drops_goes_on_for_those_who_come_to_read_it(server):
    async with connected(server) as socket:
        await ask(socket)
        run = await the_run(server)
        await trio.aclose_forcefully(socket._stream)
        with trio.fail_after(5):
            await run.until(lambda: run.readers == 0)
        async with server.client() as client:  # a later request: the handler has ended by then
            assert (await client.get("/auth?echo=x")).status_code == 200
    assert run.interrupts == 0
    assert server.runs.abandoned == [run.status.run_id]
    assert run.status.state is RunState.RUNNING


async def test_frames_that_nobody_asked_for_are_ignored(server):
    async with connected(server) as socket:
        await ask(socket)
        run = await the_run(server)
        for _ in range(50):
            await socket.send_message("noise")
        run.end()
        frames, _ = await frames_of(socket)
    assert frames[-1]["status"] == "finished"


async def test_a_stopping_server_says_so_and_keeps_the_run(server):
    async with connected(server) as socket:
        await ask(socket)
        run = await the_run(server)
        server.health.stopping.set()
        frames, reason = await frames_of(socket)
    assert frames[-1]["status"] == "server-restarting"
    assert frames[-1]["msg"]
    assert reason.code == 1001
    assert run.interrupts == 0


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        ("not json", "body"),
        ("[]", "body"),
        ("{}", "mode"),
        ('{"mode": "query", "mode": "query"}', "body"),
        ('{"mode": 5, "code": ""}', "mode"),
        ('{"mode": "fly", "code": ""}', "mode"),
        ('{"mode": "batch", "options": {"exec": 1}}', "options.exec"),
        ('{"mode": "input", "code": ""}', "mode"),
        ('{"mode": "continue", "code": ""}', "mode"),
        ('{"mode": "query", "code": 5}', "code"),
        ('{"mode": "query", "code": "\\u0000"}', "code"),
        ('{"mode": "query", "code": "\\ud800"}', "code"),
        ('{"mode": "query", "code": "", "options": 5}', "options"),
        ("[" * 100_000, "body"),
        (b"\xff\xfe", "mode"),
    ],
)
async def test_a_bad_first_frame_is_told_in_a_frame(server, frame, named):
    async with connected(server) as socket:
        await socket.send_message(frame)
        frames, reason = await frames_of(socket)
    assert [f["status"] for f in frames] == ["error"]
    assert frames[0]["msg"].startswith("Invalid API parameters: ")
    assert named in frames[0]["msg"]
    assert reason.code == 1008
    assert not server.runs.runs


async def test_code_beyond_the_limit_is_refused():
    async with serving(Limits(code_bytes=100)) as server, connected(server) as socket:
        await ask(socket, code="ä" * 51)
        frames, _ = await frames_of(socket)
    assert "code" in frames[0]["msg"]


@pytest.mark.parametrize(
    ("refusal", "text"),
    [(Conflict("Too many runs wait."), "Too many runs wait."), (Unavailable("No agent."), "No agent.")],
)
async def test_what_the_back_end_refuses_is_told_in_a_frame(server, refusal, text):
    async with connected(server) as socket:
        server.runs.refusal = refusal
        await ask(socket)
        frames, reason = await frames_of(socket)
    assert frames[0]["status"] == "error"
    assert frames[0]["msg"].startswith("BackendError: ")
    assert text in frames[0]["msg"]
    assert reason.code == 1011


async def test_a_client_that_never_asks_is_sent_away():
    async with serving(Limits(first_message_seconds=0.1)) as server, connected(server) as socket:
        frames, reason = await frames_of(socket)
    assert frames[0]["status"] == "error"
    assert reason.code == 1008


async def test_an_unknown_session_is_a_problem_before_the_upgrade(client):
    handshake = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    reply = await client.get("/stream/session/nobody/execute", headers=handshake)
    assert reply.status_code == 404
    assert reply.json()["title"] == "No such session."
