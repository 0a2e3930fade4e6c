"""Many readers of one run, one reader by each transport, coming back, and files."""

import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any
from uuid import uuid4

import attrs
import trio

from .cases import Case
from .executes import echo, hello
from .figures import Row, Series
from .harness import Bare, BenchError, Effort, Subject, System, Taken, alternate, bare, milliseconds
from .output import BESIDE, LINES, MB, WRITES
from .wire import CLOSE, Connection, Requests, WebSocket, WireError, connect, open_websocket

CROWDS = (1, 10, 50, 200)
#: All readers together take so many times the output of a row with one.
CROWD_SHARE = 8
FRAME = 65536
#: Pieces of files, as large as one request may carry.
PIECE = 16 << 20
EVENTS = "Accept: text/event-stream"


# ---------------------------------------------------------------- many readers


async def crowd(system: System, session: str, readers: int, size: int) -> Taken:
    """MB/s that all readers take together, all of them connected before the run prints *size* bytes."""
    url = f"/session/{session}/runs/{uuid4().hex}"
    code = "input()\n" + WRITES.format(count=size // FRAME)
    await system.call("PUT", url, {"code": code}, 201)
    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(open_websocket(system.requests, f"/stream{url}?offset=0"))
            for _ in range(readers)
        ]
        for socket in sockets:
            await socket.receive()  # the prompt
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for socket in sockets:
                nursery.start_soon(_whole, socket, size)
            await system.call("POST", f"{url}/input", {"text": ""})
        elapsed = time.perf_counter() - began
    total = readers * size / MB
    return Taken([total / elapsed], total)


async def _whole(socket: WebSocket, size: int) -> None:
    taken = 0
    while True:
        opcode, payload = await socket.receive()
        if opcode == CLOSE:
            raise BenchError(f"closed before the end of the run: {payload!r}")
        taken += len(payload)
        if len(payload) < 1000 and payload.startswith(b'{"finished"'):
            break
    await socket.finish()
    if json.loads(payload)["exit_code"] != 0 or taken < size:
        raise BenchError(f"{taken} of {size} bytes came")


async def bare_crowd(reference: Bare, readers: int, size: int) -> Taken:
    """The same of a bare websocket that sends each of them its frames."""

    async def one(socket: WebSocket) -> None:
        while (await socket.receive())[0] != CLOSE:
            pass

    async with AsyncExitStack() as stack:
        target = f"/wait/{size // FRAME}"
        sockets = [
            await stack.enter_async_context(open_websocket(reference.requests, target))
            for _ in range(readers)
        ]
        began = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for socket in sockets:
                await socket.send("go")
                nursery.start_soon(one, socket)
        elapsed = time.perf_counter() - began
    total = readers * size / MB
    return Taken([total / elapsed], total)


async def crowds(readers: int, system: System, effort: Effort) -> list[Row]:
    size = max(FRAME, min(effort.output_bytes, effort.output_bytes * CROWD_SHARE // readers) // FRAME * FRAME)
    rounds = max(2, effort.rounds // 2)
    async with system.session() as session, bare("websocket") as reference:
        ours, other = await alternate(
            rounds,
            Subject(system, partial(crowd, system, session, readers, size)),
            Subject(reference, partial(bare_crowd, reference, readers, size)),
        )
    title = f"one run to {readers} websocket{'s' if readers > 1 else ''}, all together"
    name = f"bare websocket to {readers}"
    return [Row.of(f"readers-{readers}", title, "MB/s", "higher", ours, beside=(name, other))]


# ---------------------------------------------------------------- by each transport


@attrs.frozen
class Seen:
    """What one reading of a run brought: bytes as they were received, and records."""

    bytes: int
    records: int


#: Reads a run from an offset to its end; the callback is called with the first output.
Transport = Callable[[Requests, str, int, Callable[[], None]], Awaitable[Seen]]
_RECORD = b'"stream":'


async def by_json(requests: Requests, url: str, offset: int, first: Callable[[], None]) -> Seen:
    seen = records = 0
    async with connect(requests.address) as connection:
        while True:
            body = await connection.exchange(
                requests.make("GET", f"{url}/output?offset={offset}&wait=10&max_bytes=1048576")
            )
            first()
            seen += len(body)
            records += body.count(_RECORD)
            piece = json.loads(body)
            offset = piece["next_offset"]
            if piece["finished"]:
                return Seen(seen, records)


async def by_events(requests: Requests, url: str, offset: int, first: Callable[[], None]) -> Seen:
    requests = attrs.evolve(requests, headers=(*requests.headers, EVENTS))
    async with connect(requests.address) as connection:
        await connection.stream.send_all(requests.make("GET", f"{url}/output?offset={offset}"))
        while b"\ndata: " not in connection.buffer:
            await connection.more()
        if not connection.buffer.startswith(b"HTTP/1.1 200"):
            raise WireError(f"no events: {bytes(connection.buffer[:500])!r}")
        first()
        seen = records = 0
        while b"\nevent: end" not in connection.buffer and not connection.buffer.startswith(b"event: end"):
            done = max(0, len(connection.buffer) - 64)
            records += connection.buffer.count(_RECORD, 0, done)
            seen += done
            del connection.buffer[:done]
            await connection.more()
        return Seen(seen + len(connection.buffer), records + connection.buffer.count(_RECORD))


async def by_websocket(requests: Requests, url: str, offset: int, first: Callable[[], None]) -> Seen:
    seen = records = 0
    async with open_websocket(requests, f"/stream{url}?offset={offset}") as socket:
        while True:
            opcode, payload = await socket.receive()
            first()
            if opcode == CLOSE:
                raise BenchError(f"closed before the end of the run: {payload!r}")
            seen += len(payload)
            records += payload.count(_RECORD)
            if payload.startswith(b'{"finished"'):
                await socket.finish()
                return Seen(seen, records)


TRANSPORTS: dict[str, Transport] = {"json": by_json, "events": by_events, "websocket": by_websocket}


async def printed(system: System, session: str, code: str, total: int) -> str:
    """The URL of a run that has printed all of it."""
    url = f"/session/{session}/runs/{uuid4().hex}"
    await system.call("PUT", url, {"code": code}, 201)
    offset: Any = 0
    finished = False
    while not finished:
        piece = await system.call("GET", f"{url}/output?offset={offset}&wait=20&max_bytes=1048576")
        offset, finished = piece["next_offset"], piece["finished"]
    if offset != total:
        raise BenchError(f"{offset} of {total} bytes were printed")
    return url


async def reading(system: System, effort: Effort) -> list[Row]:
    """A run that has ended, read from its beginning."""
    total = effort.lines * 80 // 2
    rows = []
    async with system.session() as session, bare("websocket") as reference:
        url = await printed(system, session, LINES.format(count=effort.lines // 2), total)
        for name, transport in TRANSPORTS.items():
            records: list[float] = []

            async def once(transport: Transport = transport, records: list[float] = records) -> Taken:
                began = time.perf_counter()
                seen = await transport(system.requests, url, 0, lambda: None)
                elapsed = time.perf_counter() - began
                if seen.bytes < total:
                    raise BenchError(f"{seen.bytes} bytes came of {total}")
                records.append(seen.records / elapsed)
                return Taken([total / MB / elapsed], total / MB)

            async def flood() -> Taken:
                began = time.perf_counter()
                await bare_flood(reference, effort.flood_frames)
                size = effort.flood_frames * FRAME / MB
                return Taken([size / (time.perf_counter() - began)], size)

            ours, other = await alternate(effort.rounds, Subject(system, once), Subject(reference, flood))
            title = f"an ended run, lines of 80 bytes, by {name}"
            rows.append(Row.of(f"reading-{name}", title, "MB/s", "higher", ours, beside=(BESIDE, other)))
            series = Series(values=records[1:])
            rows.append(Row.of(f"reading-{name}-records", title, "records/s", "higher", series))
    return rows


async def bare_flood(reference: Bare, frames: int) -> None:
    async with open_websocket(reference.requests, f"/flood/{frames}") as socket:
        while (await socket.receive())[0] != CLOSE:
            pass


async def resuming(system: System, effort: Effort) -> list[Row]:
    """From the connect to the first output, in the middle of what a run has printed."""
    total = effort.output_bytes // 4 // FRAME * FRAME
    likewise: dict[str, tuple[str, str, Callable[[Requests, Connection], Awaitable[float]]]] = {
        "json": ("quart", "bare Quart-Trio", hello),
        "events": ("quart", "bare Quart-Trio", hello),
        "websocket": ("websocket", "bare websocket, echo", echo),
    }
    rows = []
    async with system.session() as session:
        url = await printed(system, session, WRITES.format(count=total // FRAME), total)
        for name, transport in TRANSPORTS.items():
            server, label, like = likewise[name]

            async def resume(transport: Transport = transport) -> Taken:
                values = []
                for number in range(effort.samples):
                    # The last of it, so that reading the rest does not take long.
                    offset = total - FRAME + number
                    began = time.perf_counter()
                    took: list[float] = []

                    def note(took: list[float] = took, began: float = began) -> None:
                        if not took:
                            took.append(milliseconds(began))

                    await transport(system.requests, url, offset, note)
                    values += took
                return Taken(values, effort.samples)

            async with bare(server) as reference:

                async def bare_once(
                    reference: Bare = reference,
                    like: Callable[[Requests, Connection], Awaitable[float]] = like,
                ) -> Taken:
                    values = []
                    for _ in range(effort.samples):
                        began = time.perf_counter()
                        async with connect(reference.requests.address) as connection:
                            await like(reference.requests, connection)
                        values.append(milliseconds(began))
                    return Taken(values, effort.samples)

                ours, other = await alternate(
                    effort.rounds, Subject(system, resume), Subject(reference, bare_once)
                )
            title = f"back at an offset, to the first output, by {name}"
            rows.append(Row.of(f"resume-{name}", title, "ms", "lower", ours, beside=(label, other)))
    return rows


# ---------------------------------------------------------------- files


async def files(system: System, effort: Effort) -> list[Row]:
    """A file in pieces, up and down again, over one connection."""
    pieces = max(1, effort.output_bytes // PIECE)
    total = pieces * PIECE / MB
    content = bytes(range(256)) * (PIECE // 256)

    async with system.session() as session, connect(system.requests.address) as connection:
        url = f"/session/{session}/files/big"

        async def upload() -> Taken:
            upload_id = uuid4().hex
            began = time.perf_counter()
            for number in range(pieces):
                final = "true" if number == pieces - 1 else "false"
                target = f"{url}?upload={upload_id}&offset={number * PIECE}&final={final}"
                await connection.exchange(system.requests.make("PUT", target, raw=content), 200, 201, 204)
            return Taken([total / (time.perf_counter() - began)], total)

        async def download() -> Taken:
            began = time.perf_counter()
            for number in range(pieces):
                target = f"{url}?offset={number * PIECE}&length={PIECE}"
                if await connection.exchange(system.requests.make("GET", target), 200, 206) != content:
                    raise BenchError("the file came back as something else")
            return Taken([total / (time.perf_counter() - began)], total)

        up, down = await alternate(effort.rounds, Subject(system, upload), Subject(system, download))
    return [
        Row.of("files-upload", "a file in pieces of 16 MiB, up", "MB/s", "higher", up),
        Row.of("files-download", "a file in pieces of 16 MiB, down", "MB/s", "higher", down),
    ]


CASES = [
    *(Case(f"readers-{count}", partial(crowds, count)) for count in CROWDS),
    Case("reading", reading),
    Case("resume", resuming),
    Case("files", files),
]
