"""A kernel's standard output to one websocket client, beside a bare websocket that sends 64 KiB frames."""

import json
import time
from functools import partial
from typing import Any
from uuid import uuid4

from .cases import Case
from .figures import Row, Series
from .harness import Bare, BenchError, Effort, Subject, System, Taken, alternate, bare
from .wire import CLOSE, open_websocket

MB = 1e6
LINE = 80
WRITES = "import os\npiece = b'x' * 65535 + b'\\n'\nfor _ in range({count}): os.write(1, piece)"
LINES = f"line = 'x' * {LINE - 1}\nfor _ in range({{count}}): print(line)"


async def kernel(system: System, session: str, code: str, total: int) -> Taken:
    """MB/s from the start of a run that prints *total* bytes to its last frame; every byte is counted."""
    url = f"/session/{session}/runs/{uuid4().hex}"
    began = time.perf_counter()
    await system.call("PUT", url, {"code": code}, 201)
    taken = 0
    ends: dict[str, Any] = {}
    async with open_websocket(system.requests, f"/stream{url}?offset=0") as websocket:
        # Only the last two frames are parsed: the client has to be faster than the server.
        previous: Any = b""
        while not ends:
            opcode, payload = await websocket.receive()
            if opcode == CLOSE:
                raise BenchError(f"closed before the end of the run: {payload!r}")
            taken += len(payload)
            if len(payload) < 1000 and payload.startswith(b'{"finished"'):
                ends = json.loads(payload) | json.loads(previous)
            previous = payload
        elapsed = time.perf_counter() - began
        await websocket.finish()
    if (ends["exit_code"], ends["next_offset"]) != (0, total) or taken < total:
        raise BenchError(f"{total} bytes were printed, but the run ended as {ends}"[:500])
    return Taken([total / MB / elapsed], total / MB)


async def flood(reference: Bare, frames: int) -> Taken:
    """MB/s of a bare websocket."""
    began = time.perf_counter()
    total = 0
    async with open_websocket(reference.requests, f"/flood/{frames}") as websocket:
        while True:
            opcode, payload = await websocket.receive()
            if opcode == CLOSE:
                break
            total += len(payload)
    elapsed = time.perf_counter() - began
    return Taken([total / MB / elapsed], total / MB)


async def beside_flood(system: System, effort: Effort, code: str, total: int) -> list[Series]:
    async with system.session() as session, bare("websocket") as reference:
        return await alternate(
            effort.rounds,
            Subject(system, partial(kernel, system, session, code, total)),
            Subject(reference, partial(flood, reference, effort.flood_frames)),
        )


BESIDE = "bare websocket, 64 KiB frames"


async def writes(system: System, effort: Effort) -> list[Row]:
    count = effort.output_bytes // 65536
    ours, of_bare = await beside_flood(system, effort, WRITES.format(count=count), count * 65536)
    return [
        Row.of(
            "stdout-64k",
            "stdout to a websocket, writes of 64 KiB",
            "MB/s",
            "higher",
            ours,
            beside=(BESIDE, of_bare),
        )
    ]


async def lines(system: System, effort: Effort) -> list[Row]:
    ours, of_bare = await beside_flood(system, effort, LINES.format(count=effort.lines), effort.lines * LINE)
    counted = Series(
        values=[value * MB / LINE for value in ours.values],
        operations=ours.operations * MB / LINE,
        cpu=ours.cpu,
        load=ours.load,
    )
    title = "stdout to a websocket, lines of 80 bytes"
    return [
        Row.of("stdout-lines", title, "MB/s", "higher", ours, beside=(BESIDE, of_bare)),
        Row.of("stdout-lines-count", title, "lines/s", "higher", counted),
    ]


CASES = [Case("stdout-64k", writes), Case("stdout-lines", lines)]
