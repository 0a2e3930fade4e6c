"""The same work done by a Jupyter server with ipykernel, which runs in an environment of its own.

Its limits on output are lifted, as ours are high enough; both sides are asked over a websocket. It sends
small messages with Nagle's algorithm on, so that each waits for the acknowledgement of the one before: 40 ms
where clients delay it as usual. Ours acknowledges at once, since that is not what is to be compared.
"""

import json
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from secrets import token_hex
from typing import Any
from uuid import uuid4

import trio

from . import output
from .cases import Case
from .executes import CODE, legacy_websocket_open
from .figures import Row
from .harness import (
    MANY,
    START,
    Bare,
    BenchError,
    Effort,
    Subject,
    System,
    Taken,
    alternate,
    check_running,
    child,
    milliseconds,
)
from .wire import Address, Requests, WebSocket, connect, open_websocket

NAME = "jupyter_server"
TOTAL = 50_000_000

Measure = Callable[[], Awaitable[Taken]]


@asynccontextmanager
async def jupyter(python: str) -> AsyncIterator[Bare]:
    """A Jupyter server of this interpreter's environment."""
    token, port = token_hex(16), _free_port()
    with tempfile.TemporaryDirectory(prefix="bm-rival-") as folder:
        options = [
            *("-m", "jupyter_server", "--no-browser", "--allow-root", f"--ServerApp.port={port}"),
            *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--log-level=ERROR"),
            "--ZMQChannelsWebsocketConnection.iopub_data_rate_limit=1e12",
            "--ZMQChannelsWebsocketConnection.iopub_msg_rate_limit=1e9",
        ]
        requests = Requests(address=Address("127.0.0.1", port), headers=(f"Authorization: token {token}",))
        async with child(options, until=None, python=python, quiet=True) as (process, _):
            with trio.fail_after(START):
                await _serves(requests)
            yield Bare(requests, process.pid, NAME)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _serves(requests: Requests) -> None:
    while True:
        try:
            async with connect(requests.address) as connection:
                await connection.exchange(requests.make("GET", "/api/status"))
                return
        except OSError:
            await trio.sleep(0.1)


async def call(server: Bare, method: str, target: str, body: Any = None, *expected: int) -> Any:
    async with connect(server.requests.address) as connection:
        answer = await connection.exchange(server.requests.make(method, target, body), *expected)
        return json.loads(answer) if answer else None


@asynccontextmanager
async def kernel(server: Bare) -> AsyncIterator[str]:
    """A kernel of its own, by its id."""
    made = await call(server, "POST", "/api/kernels", {"name": "python3"}, 201)
    try:
        yield made["id"]
    finally:
        with trio.move_on_after(START, shield=True):
            await call(server, "DELETE", f"/api/kernels/{made['id']}", None, 204)


@asynccontextmanager
async def channels(server: Bare, kernel_id: str) -> AsyncIterator[WebSocket]:
    """A websocket to a kernel. It has to be read from all the time, or its pings are not answered."""
    target = f"/api/kernels/{kernel_id}/channels?session_id={uuid4().hex}"
    async with open_websocket(server.requests, target, quick_ack=True) as websocket:
        yield websocket


async def execute(websocket: WebSocket, code: str) -> int:
    """Run code until the kernel is idle again; the number of characters that it printed."""
    header = {"msg_id": uuid4().hex, "msg_type": "execute_request", "version": "5.3"}
    header |= {"username": "", "session": uuid4().hex, "date": ""}
    content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    await websocket.send({**message, "channel": "shell", "buffers": []})
    printed, replied, idle = 0, False, False
    while not (replied and idle):
        answer = json.loads((await websocket.receive())[1])
        if answer["parent_header"].get("msg_id") != header["msg_id"]:
            continue
        match answer["msg_type"], answer["content"]:
            case "stream", {"text": text}:
                printed += len(text)
            case "execute_reply", {"status": status}:
                if status != "ok":
                    raise BenchError(f"the rival could not run it: {answer['content']}")
                replied = True
            case "status", {"execution_state": "idle"}:
                idle = True
    return printed


# ---------------------------------------------------------------- what both do


async def first_result(server: Bare, count: int) -> Taken:
    values = []
    for _ in range(count):
        began = time.perf_counter()
        async with kernel(server) as kernel_id, channels(server, kernel_id) as websocket:
            await execute(websocket, CODE)
            values.append(milliseconds(began))
    return Taken(values, count)


async def our_first_result(system: System, count: int) -> Taken:
    values = []
    for _ in range(count):
        await system.pool_is_full()
        began = time.perf_counter()
        async with connect(system.requests.address) as connection:
            created = await system.call_on(connection, "POST", "/session", system.wanted(), 201)
            check_running(created)
            await legacy_websocket_open(system, created["sessionId"], connection)
            values.append(milliseconds(began))
            await system.call_on(connection, "DELETE", f"/session/{created['sessionId']}")
    return Taken(values, count)


async def round_trips(server: Bare, kernel_id: str, count: int) -> Taken:
    values = []
    async with channels(server, kernel_id) as websocket:
        await execute(websocket, CODE)
        for _ in range(count):
            began = time.perf_counter()
            await execute(websocket, CODE)
            values.append(milliseconds(began))
    return Taken(values, count + 1)


async def our_round_trips(system: System, session: str, count: int) -> Taken:
    async with connect(system.requests.address) as connection:
        values = [await legacy_websocket_open(system, session, connection) for _ in range(count)]
    return Taken(values, count)


async def prints(server: Bare, kernel_id: str, code: str, total: int) -> Taken:
    async with channels(server, kernel_id) as websocket:
        began = time.perf_counter()
        printed = await execute(websocket, code)
        elapsed = time.perf_counter() - began
    if printed != total:
        raise BenchError(f"the rival printed {printed} of {total} characters")
    return Taken([elapsed], 1)


async def our_prints(system: System, session: str, code: str, total: int) -> Taken:
    began = time.perf_counter()
    await output.kernel(system, session, code, total)
    return Taken([time.perf_counter() - began], 1)


def cases(python: str) -> list[Case]:
    """The cases, with the rival's interpreter."""
    return [Case("rivals", partial(measure, python), MANY)]


async def measure(python: str, system: System, effort: Effort) -> list[Row]:
    count = effort.lines // 5 * 2  # 200,000 in a whole run
    lines = f"for number in range({count}): print('line %06d' % number)"
    writes = f"import sys\nfor _ in range({TOTAL // 50_000}): sys.stdout.write('x' * 49_999 + '\\n')"
    rows: list[Row] = []

    async with jupyter(python) as server, system.session() as session, kernel(server) as kernel_id:

        async def add(name: str, title: str, unit: str, ours: Measure, theirs: Measure) -> None:
            own, other = await alternate(effort.rounds, Subject(system, ours), Subject(server, theirs))
            rows.append(Row.of(f"rivals-{name}", title, unit, "lower", own, beside=(NAME, other)))

        await add(
            *("start", "kernel made, to the result of 1+1", "ms"),
            partial(our_first_result, system, effort.starts),
            partial(first_result, server, effort.starts),
        )
        await add(
            *("execute", "execute 1+1 on an open websocket", "ms"),
            partial(our_round_trips, system, session, effort.samples),
            partial(round_trips, server, kernel_id, effort.samples),
        )
        for name, title, code, total in (
            ("lines", f"{count:,} lines of 12 bytes", lines, count * 12),
            ("bytes", f"{TOTAL // 10**6} MB", writes, TOTAL),
        ):
            await add(
                *(name, title, "s"),
                partial(our_prints, system, session, code, total),
                partial(prints, server, kernel_id, code, total),
            )
    return rows
