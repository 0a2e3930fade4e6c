"""``1+1``: from the request to its result, by each way in; beside the like of a bare server."""

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from uuid import uuid4

from .cases import Case
from .figures import Row
from .harness import BenchError, Effort, Subject, System, Taken, alternate, bare, milliseconds
from .wire import CLOSE, Connection, Requests, connect, open_websocket

CODE = "1+1"
RESULT = "2"
QUERY = {"mode": "query", "code": CODE, "options": {}}

#: Executes once in the session and returns the milliseconds that it took; the connection is kept between.
Way = Callable[[System, str, Connection], Awaitable[float]]


async def legacy_websocket_open(system: System, session: str, _: Connection) -> float:
    """From the first frame on a websocket that is open already, to the frame with the end of the run."""
    async with open_websocket(system.requests, f"/stream/session/{session}/execute") as websocket:
        began = time.perf_counter()
        await websocket.send(QUERY)
        console: list[Any] = []
        while True:
            opcode, payload = await websocket.receive()
            if opcode == CLOSE:
                raise BenchError(f"closed before the end of the run: {payload!r}")
            frame = json.loads(payload)
            console += frame["console"] or []
            if frame["status"] == "finished":
                break
        took = milliseconds(began)
        await websocket.finish()
    _check(console[0][1])
    return took


async def legacy_websocket(system: System, session: str, connection: Connection) -> float:
    """From the connect of a websocket of its own to the end of the run and of the websocket."""
    began = time.perf_counter()
    await legacy_websocket_open(system, session, connection)
    return milliseconds(began)


async def runs_websocket(system: System, session: str, connection: Connection) -> float:
    """PUT on a kept connection, then a websocket of its own to the end of the run."""
    url = f"/session/{session}/runs/{uuid4().hex}"
    began = time.perf_counter()
    await system.call_on(connection, "PUT", url, {"code": CODE}, 201)
    async with open_websocket(system.requests, f"/stream{url}?offset=0") as websocket:
        text = ""
        while True:
            opcode, payload = await websocket.receive()
            if opcode == CLOSE:
                raise BenchError(f"closed before the end of the run: {payload!r}")
            frame = json.loads(payload)
            text += _stdout(frame)
            if frame.get("finished"):
                break
        took = milliseconds(began)
        await websocket.finish()
    _check(text)
    return took


async def legacy_http(system: System, session: str, connection: Connection) -> float:
    """POST until it is finished."""
    body: dict[str, Any] = {**QUERY, "runId": uuid4().hex}
    began = time.perf_counter()
    console: list[Any] = []
    while True:
        result = (await system.call_on(connection, "POST", f"/session/{session}", body))["result"]
        console += result["console"] or []
        if result["status"] == "finished":
            break
        body |= {"mode": "continue", "code": ""}
    took = milliseconds(began)
    _check(console[0][1])
    return took


async def runs_http(system: System, session: str, connection: Connection) -> float:
    """PUT, then GET of the output until it is finished."""
    url = f"/session/{session}/runs/{uuid4().hex}"
    began = time.perf_counter()
    await system.call_on(connection, "PUT", url, {"code": CODE}, 201)
    text, offset, finished = "", 0, False
    while not finished:
        piece = await system.call_on(connection, "GET", f"{url}/output?offset={offset}&wait=10")
        text += _stdout(piece)
        offset, finished = piece["next_offset"], piece["finished"]
    took = milliseconds(began)
    _check(text)
    return took


def _stdout(piece: Mapping[str, Any]) -> str:
    return "".join(record["data"] for record in piece.get("records", ()) if record["stream"] == "stdout")


def _check(text: str) -> None:
    if text.strip() != RESULT:
        raise BenchError(f"{CODE} gave {text!r}")


# ---------------------------------------------------------------- references


async def echo_open(requests: Requests, _: Connection) -> float:
    """A message and its answer on an open websocket."""
    async with open_websocket(requests, "/echo") as websocket:
        began = time.perf_counter()
        await websocket.send(QUERY)
        await websocket.receive()
        took = milliseconds(began)
        await websocket.finish()
    return took


async def echo(requests: Requests, connection: Connection) -> float:
    """The same with the websocket's opening and end."""
    began = time.perf_counter()
    await echo_open(requests, connection)
    return milliseconds(began)


async def hello(requests: Requests, connection: Connection) -> float:
    began = time.perf_counter()
    await connection.exchange(requests.make("GET", "/"))
    return milliseconds(began)


# ---------------------------------------------------------------- rows


async def repeated(once: Callable[[Connection], Awaitable[float]], requests: Requests, count: int) -> Taken:
    async with connect(requests.address) as connection:
        return Taken([await once(connection) for _ in range(count)], count)


async def measure(
    name: str,
    title: str,
    way: Way,
    beside: tuple[str, str, Callable[[Requests, Connection], Awaitable[float]]],
    system: System,
    effort: Effort,
) -> list[Row]:
    server, label, likewise = beside
    async with system.session() as session, bare(server) as reference:
        ours, other = await alternate(
            effort.rounds,
            Subject(
                system,
                partial(repeated, partial(way, system, session), system.requests, effort.samples),
            ),
            Subject(
                reference,
                partial(repeated, partial(likewise, reference.requests), reference.requests, effort.samples),
            ),
        )
    return [Row.of(name, title, "ms", "lower", ours, beside=(label, other))]


_ECHO = ("websocket", "bare websocket, echo", echo)
_ECHO_OPEN = ("websocket", "bare websocket, echo when open", echo_open)
_HELLO = ("quart", "bare Quart-Trio", hello)

CASES = [
    Case(name, partial(measure, name, title, way, beside))
    for name, title, way, beside in (
        ("execute-websocket-open", "execute 1+1, open websocket (legacy)", legacy_websocket_open, _ECHO_OPEN),
        ("execute-websocket-legacy", "execute 1+1, websocket of its own (legacy)", legacy_websocket, _ECHO),
        ("execute-websocket-runs", "execute 1+1, PUT and websocket", runs_websocket, _ECHO),
        ("execute-http-legacy", "execute 1+1, POST (legacy)", legacy_http, _HELLO),
        ("execute-http-runs", "execute 1+1, PUT and GET of the output", runs_http, _HELLO),
    )
]
