"""Our client against a peer that breaks off: what is asked again, what is not, and what is told."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio_websocket import (
    ConnectionClosed,
    WebSocketConnection,
    WebSocketRequest,
    serve_websocket,
    wrap_server_stream,
)

from backendai_mgr.cli import frames, runstream
from backendai_mgr.cli.client import Client, Target, find_target, open_client
from backendai_mgr.cli.errors import ApiError, Away, CliError, told
from backendai_mgr.cli.runstream import RunEnd, follow_run
from backendai_mgr.wire.records import Record, to_json

ENVIRON = {"BACKEND_ENDPOINT": "http://h:1/", "BACKEND_ACCESS_KEY": "k", "BACKEND_SECRET_KEY": "s"}


def test_the_data_directory_goes_before_the_environment(tmp_path: Path) -> None:
    (tmp_path / "up.json").write_text(
        json.dumps({"endpoint": "http://127.0.0.1:1", "access_key": "a", "secret_key": "b", "pid": 1})
    )
    assert find_target(tmp_path, ENVIRON).endpoint == "http://127.0.0.1:1"


def test_the_environment_names_a_manager() -> None:
    assert find_target(None, ENVIRON) == Target(endpoint="http://h:1", access_key="k", secret_key="s")


def test_half_an_environment_is_told() -> None:
    with pytest.raises(CliError, match=r"^BACKEND_ENDPOINT is set but BACKEND_SECRET_KEY is not\.$"):
        find_target(None, {name: value for name, value in ENVIRON.items() if "SECRET" not in name})


def test_secrets_do_not_show_in_a_representation() -> None:
    assert "s3cret" not in repr(Target(endpoint="e", access_key="k", secret_key="s3cret"))


@pytest.mark.parametrize(
    ("status", "problem", "line"),
    [
        (404, {"title": "No such session."}, "No such session"),
        (400, {"title": "Bad request.", "msg": "Unsupported."}, "Bad request: Unsupported."),
        (
            400,
            {"title": "Invalid.", "msg": "Input", "data": {"name": "too short", "image": "required"}},
            "Invalid: Input (name: too short; image: required)",
        ),
        (404, {"title": "Too many.", "data": {"matches": [1, 2]}}, "Too many"),
        (502, {}, "The manager answered with status 502"),
    ],
)
def test_a_problem_is_one_line(status: int, problem: dict[str, object], line: str) -> None:
    assert str(ApiError(status, problem)) == line


@asynccontextmanager
async def peer(answers: Sequence[bytes]) -> AsyncIterator[Target]:
    """A server that reads a request on each connection and gives the next answer, then closes."""
    remaining = list(answers)

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            if answer := remaining.pop(0):
                await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        yield Target(endpoint=f"http://127.0.0.1:{port}", access_key="k", secret_key="s")
        assert remaining == []
        nursery.cancel_scope.cancel()


def answer(status: int, body: object) -> bytes:
    text = json.dumps(body).encode()
    return b"HTTP/1.1 %d -\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text)


async def test_a_lost_answer_is_asked_for_again_when_that_is_safe() -> None:
    with trio.fail_after(20):
        async with (
            peer([b"", b"HTTP/1.1 200", answer(503, {}), answer(200, {"x": 1})]) as target,
            open_client(target) as client,
        ):
            assert await client.call("PUT", "/x", body={}, patience=10) == (200, {"x": 1})


async def test_a_lost_answer_is_told_when_it_may_not_be_asked_for_again() -> None:
    with trio.fail_after(20):
        async with peer([b""]) as target, open_client(target) as client:
            with pytest.raises(Away) as caught:
                await client.call("POST", "/x", body={})
            assert caught.value.sent


async def test_a_manager_that_never_was_there_is_not_waited_for() -> None:
    target = Target(endpoint="http://127.0.0.1:9", access_key="k", secret_key="s")
    with trio.fail_after(5):
        async with open_client(target) as client:
            with pytest.raises(Away, match="backendai-mgr up") as caught:
                await client.call("GET", "/x", patience=60)
            assert not caught.value.sent


class Runs:
    """A stream server that holds one run's records and breaks off after as many frames as the script says."""

    def __init__(self, records: Sequence[Record], breaks: Sequence[tuple[int, int | None]]) -> None:
        self.records = records
        #: For each connection but the last: frames to send, and the close code (None: the connection is cut).
        self.breaks = list(breaks)
        self.offsets: list[int] = []

    async def serve(self, request: WebSocketRequest) -> None:
        offset = int(request.path.partition("offset=")[2])
        self.offsets.append(offset)
        frames, code = self.breaks.pop(0) if self.breaks else (len(self.records), 1000)
        last = frames == len(self.records) and code == 1000
        websocket = await request.accept()
        try:
            for record in [record for record in self.records if record.offset >= offset][:frames]:
                frame = {"records": [to_json(record)], "next_offset": record.end}
                await websocket.send_message(json.dumps(frame))
            if last:
                end = {"finished": True, "state": "finished", "exit_code": 3, "reason": ""}
                await websocket.send_message(json.dumps(end))
            if code is None:
                await websocket._stream.aclose()
            else:
                await websocket.aclose(code)
        except ConnectionClosed:
            return


@pytest.mark.parametrize(
    "breaks", [[], [(1, 1001)], [(2, None)], [(0, 1001), (1, None), (0, 1013), (1, 1001)]]
)
async def test_a_run_is_followed_without_loss_or_repetition(breaks: list[tuple[int, int | None]]) -> None:
    records = [
        Record(0, 1, "stdout", b"one"),
        Record(3, 2, "stderr", b"two"),
        Record(6, 3, "stdout", b"\xff"),
    ]
    runs = Runs(records, breaks)
    shown: list[Record] = []

    async def show(piece: Sequence[Record]) -> None:
        await trio.lowlevel.checkpoint()
        shown.extend(piece)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, runs.serve, "127.0.0.1", 0, None)
            endpoint = f"http://127.0.0.1:{server.port}"
            target = Target(endpoint=endpoint, access_key="k", secret_key="s")
            async with open_client(target) as client:
                end = await follow_run(client, "id", "run", show)
            nursery.cancel_scope.cancel()
    assert end == RunEnd("finished", 3, "")
    assert [(record.offset, record.data) for record in shown] == [(r.offset, r.data) for r in records]
    assert len(runs.offsets) == len(breaks) + 1
    assert runs.offsets == sorted(runs.offsets)


@asynccontextmanager
async def streaming(serve: Callable[[WebSocketRequest], Awaitable[None]]) -> AsyncIterator[Client]:
    """A client of a stream server."""
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            server = await nursery.start(serve_websocket, serve, "127.0.0.1", 0, None)
            target = Target(endpoint=f"http://127.0.0.1:{server.port}", access_key="k", secret_key="s")
            async with open_client(target) as client:
                yield client
            nursery.cancel_scope.cancel()


async def ignore(piece: Sequence[Record]) -> None:
    await trio.lowlevel.checkpoint()


async def end_stream(websocket: WebSocketConnection) -> None:
    end = {"finished": True, "state": "finished", "exit_code": 0, "reason": ""}
    await websocket.send_message(json.dumps(end))


async def test_patience_begins_when_a_stream_breaks_off_however_long_it_was_silent(monkeypatch) -> None:
    monkeypatch.setattr(runstream, "PATIENCE", 1.0)
    monkeypatch.setattr(runstream, "_WORKED", 1.5)
    opened = 0

    async def serve(request: WebSocketRequest) -> None:
        nonlocal opened
        opened += 1
        if opened == 2:
            await request.reject(503)
            return
        websocket = await request.accept()
        if opened == 1:
            await trio.sleep(2)  # the silence is what is tested
            await websocket._stream.aclose()
        else:
            await end_stream(websocket)

    async with streaming(serve) as client:
        assert (await follow_run(client, "id", "run", ignore)).exit_code == 0


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_patience_with_a_stream_is_bounded(monkeypatch, status: int) -> None:
    monkeypatch.setattr(runstream, "PATIENCE", 0.5)
    tries = 0

    async def serve(request: WebSocketRequest) -> None:
        nonlocal tries
        tries += 1
        await request.reject(status, body=b'{"title": "Away."}')

    async with streaming(serve) as client:
        with pytest.raises(ApiError, match="Away"):
            await follow_run(client, "id", "run", ignore)
        assert client.contact.left() is None
    assert tries > 2


async def test_the_run_of_a_session_that_ends_meanwhile_is_lost(monkeypatch) -> None:
    ends = [409, 404]

    async def serve(request: WebSocketRequest) -> None:
        await request.reject(ends.pop(0))

    async def dead(client: Client, session_id: str) -> RunEnd:
        await trio.lowlevel.checkpoint()
        return RunEnd("lost", None, "its session has ended")

    monkeypatch.setattr(runstream, "_end_of_session", dead)
    async with streaming(serve) as client:
        assert (await follow_run(client, "id", "run", ignore)).state == "lost"
    assert ends == []


async def test_a_run_that_is_not_there_is_told(monkeypatch) -> None:
    async def serve(request: WebSocketRequest) -> None:
        await request.reject(404, body=b'{"title": "No such run."}')

    async def living(client: Client, session_id: str) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(runstream, "_end_of_session", living)
    async with streaming(serve) as client:
        with pytest.raises(ApiError, match="No such run"):
            await follow_run(client, "id", "run", ignore)


async def test_streams_that_open_and_close_at_once_are_given_up_too(monkeypatch) -> None:
    monkeypatch.setattr(runstream, "PATIENCE", 0.5)

    async def serve(request: WebSocketRequest) -> None:
        await (await request.accept()).aclose(1011)

    async with streaming(serve) as client:
        with pytest.raises(Away):
            await follow_run(client, "id", "run", ignore)


async def test_a_stream_that_only_stays_silent_is_opened_again(monkeypatch) -> None:
    monkeypatch.setattr(frames, "_QUIET", 0.2)
    monkeypatch.setattr(frames, "_PONG", 0.5)
    opened = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal opened
        opened += 1
        if opened == 2:
            async with trio.open_nursery() as nursery:
                request = await wrap_server_stream(nursery, stream)
                websocket = await request.accept()
                await trio.sleep(1.5)  # pongs are answered: a run may be silent
                await end_stream(websocket)
                nursery.cancel_scope.cancel()
            return
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            await request.accept()
            nursery.cancel_scope.cancel()  # nobody answers pings any more, and the connection stays
        await trio.sleep_forever()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            (listener, *_) = await nursery.start(trio.serve_tcp, serve, 0)
            port = listener.socket.getsockname()[1]
            target = Target(endpoint=f"http://127.0.0.1:{port}", access_key="k", secret_key="s")
            async with open_client(target) as client:
                assert (await follow_run(client, "id", "run", ignore)).exit_code == 0
            nursery.cancel_scope.cancel()
    assert opened == 2


async def test_patience_with_a_call_begins_when_its_answer_is_missed() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            if not answered.is_set():
                answered.set()
                await trio.sleep(1)  # longer than the patience
            else:
                await stream.send_all(answer(200, {"x": 1}))

    answered = trio.Event()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            (listener, *_) = await nursery.start(trio.serve_tcp, serve, 0)
            port = listener.socket.getsockname()[1]
            target = Target(endpoint=f"http://127.0.0.1:{port}", access_key="k", secret_key="s")
            async with open_client(target) as client:
                assert await client.call("PUT", "/x", timeout=None, patience=0.5) == (200, {"x": 1})
            nursery.cancel_scope.cancel()


class Expected(Exception):
    pass


def test_expected_failures_become_one_line_also_out_of_groups() -> None:
    with pytest.raises(CliError, match=r"^two lines$"), told(Expected):
        raise Expected("two\nlines")
    with pytest.raises(CliError, match=r"^inside$"), told(Expected):
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [Expected("inside")])])
    with pytest.raises(CliError, match=r"^as it is$"), told(Expected):
        raise ExceptionGroup("outer", [CliError("as it is", 5)])


def test_what_is_unexpected_stays_what_it_is() -> None:
    with pytest.RaisesGroup(Expected, ValueError), told(Expected):
        raise ExceptionGroup("outer", [Expected("a"), ValueError("b")])
    with pytest.raises(ValueError, match="b"), told(Expected):
        raise ValueError("b")
