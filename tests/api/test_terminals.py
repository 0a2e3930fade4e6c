"""The terminal websocket: legacy clients, clients that come back, input that is counted, restarts."""

import json
from base64 import b64decode, b64encode
from contextlib import asynccontextmanager

import pytest
import trio
import trio_websocket

from backendai_mgr.domain.errors import Conflict, Unavailable
from backendai_mgr.domain.status import RunState
from backendai_mgr.wire.rpc import RunSpec
from tests.fakes.services import SESSION_ID, FakeRun

from .test_run_stream import rejected, shaken_hands, stalled

TARGET = "/stream/session/my-session/pty"


@asynccontextmanager
async def connected(server, query=""):
    with trio.fail_after(20):
        async with server.websocket(TARGET + query) as socket:
            yield socket


async def send(socket, kind, **members):
    await socket.send_message(json.dumps({"type": kind, **members}))


async def type_in(socket, text, **members):
    await send(socket, "stdin", chars=b64encode(text).decode(), **members)


async def frame(socket):
    return json.loads(await socket.get_message())


async def rest(socket):
    """The frames that are left, and the code and reason of the close."""
    frames = []
    try:
        while True:
            frames.append(await frame(socket))
    except trio_websocket.ConnectionClosed as closed:
        return frames, closed.reason


async def opened(server, name="terminal-1"):
    await server.terminals.until(lambda: name in server.runs.runs)
    return server.runs.runs[name]


async def test_a_legacy_client_types_and_sees(server):
    async with connected(server) as socket:
        run = await opened(server)
        run.write(b"$ ")
        assert await frame(socket) == {"type": "out", "data": b64encode(b"$ ").decode()}
        await type_in(socket, b"ls\xff\n")
        await send(socket, "ping")
        await send(socket, "resize", rows=50, cols=132)
        await server.terminals.until(lambda: server.terminals.sizes)
        assert server.terminals.typed == {"terminal-1": b"ls\xff\n"}
        assert server.terminals.sizes == [("terminal-1", 50, 132)]
        run.end()
        assert (await rest(socket))[1].code == 1000


async def test_leaving_ends_nothing_and_the_next_one_sees_the_screen_again(server):
    async with connected(server) as socket:
        run = await opened(server)
        run.write(b"first")
        await frame(socket)
    assert not run.status.ended
    assert run.interrupts == 0
    async with connected(server) as socket:
        assert b64decode((await frame(socket))["data"]) == b"first"


async def test_of_a_long_history_only_the_end_is_repeated(server):
    run = server.runs.runs["terminal-1"] = FakeRun("terminal-1", RunSpec(mode="terminal"))
    run.write(b"a" * 100_000)
    run.write(b"z" * 65536)
    async with connected(server) as socket:
        shown = b""
        while len(shown) < 65536:
            shown += b64decode((await frame(socket))["data"])
        assert shown == b"z" * 65536


async def test_after_the_end_a_legacy_client_gets_a_new_terminal(server):
    async with connected(server):
        (await opened(server)).end()
    async with connected(server):
        await opened(server, "terminal-2")


async def test_a_client_that_counts_is_told_where_it_is(server):
    async with connected(server, "?client=me") as socket:
        assert await frame(socket) == {
            "type": "attached",
            "session_id": str(SESSION_ID),
            "terminal": "terminal-1",
            "offset": 0,
            "input": 0,
        }
        await type_in(socket, b"abc", offset=0)
        assert await frame(socket) == {"type": "ack", "input": 3}
        run = server.runs.runs["terminal-1"]
        run.write(b"abc")
        assert (await frame(socket))["next_offset"] == 3
    async with connected(server, "?client=me&terminal=terminal-1&offset=3") as socket:
        assert (await frame(socket)) | {"offset": 3, "input": 3} == await _again(socket, run)
        await type_in(socket, b"abcde", offset=0)  # the answer to the first was lost
        assert await frame(socket) == {"type": "ack", "input": 5}
        await type_in(socket, b"xyz", offset=99)  # something is missing before it
        assert await frame(socket) == {"type": "ack", "input": 5}
        run.end(RunState.FINISHED, 7)
        frames, reason = await rest(socket)
        assert frames == [{"type": "exit", "state": "finished", "exit_code": 7, "reason": ""}]
        assert reason.code == 1000
    assert server.terminals.typed == {"terminal-1": b"abcde"}


async def _again(socket, run):
    """What the first frame has to be, besides its offsets; nothing of the screen came before it."""
    assert run.handed_out == 3
    return {
        "type": "attached",
        "session_id": str(SESSION_ID),
        "terminal": "terminal-1",
        "offset": 3,
        "input": 3,
    }


async def test_a_named_terminal_that_has_ended_shows_its_end(server):
    run = server.runs.runs["mine"] = FakeRun("mine", RunSpec(mode="terminal"))
    run.write(b"bye")
    run.end(RunState.FINISHED, 0)
    async with connected(server, "?terminal=mine&offset=1") as socket:
        frames, _ = await rest(socket)
    assert [given["type"] for given in frames] == ["attached", "out", "exit"]
    assert b64decode(frames[1]["data"]) == b"ye"


async def test_input_waits_for_room_and_arrives_whole(server):
    server.terminals.room = 0
    text = bytes(range(256)) * 1000
    async with connected(server) as socket:
        await type_in(socket, text)
        await type_in(socket, b"end")
        await server.terminals.until(lambda: "terminal-1" in server.terminals.typed)
        assert server.terminals.typed["terminal-1"] == b""
        server.terminals.room = 1000
        server.terminals.change()
        await server.terminals.until(lambda: server.terminals.typed["terminal-1"] == text + b"end")


async def test_what_is_typed_after_the_end_is_dropped(server):
    async with connected(server, "?client=me") as socket:
        await frame(socket)
        server.terminals.refusal = Conflict("it has ended")
        await type_in(socket, b"x", offset=0)
        assert await frame(socket) == {"type": "ack", "input": 0}
        server.terminals.refusal = Conflict("it has ended")
        await send(socket, "resize", rows=1, cols=1)
        await send(socket, "resize", rows=2, cols=2)
        await server.terminals.until(lambda: server.terminals.sizes == [("terminal-1", 2, 2)])


async def test_a_restart_goes_on_with_a_new_terminal(server):
    async with connected(server) as socket:
        run = await opened(server)

        async def restart(caller, reference):
            assert reference == str(SESSION_ID)
            run.end(RunState.LOST, None, "restarted")

        server.sessions.restart = restart
        await send(socket, "restart")
        second = await opened(server, "terminal-2")
        second.write(b"anew")
        assert b64decode((await frame(socket))["data"]) == b"anew"
        await type_in(socket, b"x")
        await server.terminals.until(lambda: server.terminals.typed.get("terminal-2") == b"x")


async def test_a_restart_ends_a_named_terminal(server):
    async with connected(server, "?terminal=mine") as socket:
        run = await opened(server, "mine")

        async def restart(caller, reference):
            run.end(RunState.LOST, None, "restarted")

        server.sessions.restart = restart
        await send(socket, "restart")
        frames, reason = await rest(socket)
    assert frames[-1] == {"type": "exit", "state": "lost", "exit_code": None, "reason": "restarted"}
    assert reason.code == 1000


async def test_a_restart_that_is_refused_closes(server):
    async with connected(server) as socket:
        await opened(server)
        server.sessions.refusal = Conflict("it is restarting already")
        await send(socket, "restart")
        _, reason = await rest(socket)
    assert (reason.code, reason.reason) == (1008, "it is restarting already")


WRONG = [
    "x",
    "[]",
    "{}",
    "1",
    b"bytes",
    '{"type": "fly"}',
    '{"type": "stdin"}',
    '{"type": "stdin", "chars": 1}',
    '{"type": "stdin", "chars": "?"}',
    '{"type": "stdin", "chars": "YQ==", "offset": -1}',
    '{"type": "stdin", "chars": "YQ==", "offset": "0"}',
    '{"type": "stdin", "chars": "YQ==", "offset": true}',
    '{"type": "stdin", "chars": "YQ==", "colour": 1}',
    '{"type": "resize", "rows": 0, "cols": 1}',
    '{"type": "resize", "rows": 1, "cols": 10000}',
    '{"type": "resize", "rows": 1.5, "cols": 1}',
    '{"type": "resize", "rows": true, "cols": 1}',
    '{"type": "resize", "rows": 1}',
    "[" * 100_000,
]


@pytest.mark.parametrize("message", WRONG, ids=lambda message: repr(message[:40]))
async def test_wrong_frames_close_with_a_reason(server, message):
    async with connected(server) as socket:
        await socket.send_message(message)
        _, reason = await rest(socket)
    assert reason.code == 1008
    assert reason.reason
    assert not server.terminals.sizes
    assert server.terminals.typed.get("terminal-1", b"") == b""


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("?terminal=a%20b", 400, "terminal"),
        ("?client=", 400, "client"),
        ("?offset=3", 400, "offset"),
        ("?terminal=t&offset=-1", 400, "offset"),
        ("?terminal=t&colour=red", 400, "colour"),
        ("?terminal=r1", 409, None),
        ("?terminal=done&offset=5", 400, "offset"),
    ],
)
async def test_wrong_parameters_are_problems(server, client, query, status, field):
    server.runs.runs["r1"] = FakeRun("r1", RunSpec(code="1"))
    done = server.runs.runs["done"] = FakeRun("done", RunSpec(mode="terminal"))
    done.write(b"1234")
    done.end()
    reply = await rejected(client, TARGET + query)
    assert reply.status_code == status
    if field:
        assert list(reply.json()["data"]) == [field]


async def test_an_agent_that_is_away_is_told_before(server, client):
    server.runs.refusal = Unavailable("away")
    assert (await rejected(client, TARGET)).status_code == 503


async def test_a_server_that_stops_says_so(server):
    async with connected(server) as socket:
        await opened(server)
        server.health.stopping.set()
        _, reason = await rest(socket)
    assert reason.code == 1001


async def test_a_client_that_reads_nothing_holds_up_nobody(server, client):
    with trio.fail_after(30):
        async with await shaken_hands(server, TARGET):
            run = await opened(server)
            for _ in range(400):
                run.write(b"x" * 65536)
            await stalled(run, client)
            async with connected(server) as other:
                await type_in(other, b"alive")
                await server.terminals.until(lambda: server.terminals.typed.get("terminal-1") == b"alive")
