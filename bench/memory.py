"""Memory of the processes: proportional set size, so that shared pages are counted once."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial

import trio

from . import output, processes, requests
from .cases import Case
from .figures import Row, Series
from .harness import MANY, Effort, System

IDLE_KERNELS = 10
LOOK_EVERY = 0.2
#: What belongs to a kernel: the shim outside and all that is inside.
KERNEL = ("shim", "kernel")


def memory(system: System) -> dict[str, float]:
    """MiB by role. What may not be read (another account's processes) is left out."""
    found: dict[str, float] = {}
    for process in system.processes():
        if (size := processes.pss(process.pid)) is not None:
            role = "kernels" if process.role in KERNEL else process.role
            found[role] = found.get(role, 0) + size
    return found


def largest(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {role: max(one.get(role, 0), other.get(role, 0)) for role in {*one, *other}}


async def loaded(system: System, session: str, effort: Effort) -> dict[str, float]:
    """The most that was seen while 8 connections send requests and a kernel prints to a websocket."""
    most: dict[str, float] = {}
    count = effort.output_bytes // 65536
    async with trio.open_nursery() as looking:

        async def look() -> None:
            nonlocal most
            while True:
                most = largest(most, memory(system))
                await trio.sleep(LOOK_EVERY)

        looking.start_soon(look)
        async with trio.open_nursery() as loads:
            loads.start_soon(requests.rate, system.requests, requests.TARGET, 8, effort.seconds * 2)
            code = output.WRITES.format(count=count)
            loads.start_soon(partial(output.kernel, system, session, code, count * 65536))
        looking.cancel_scope.cancel()
    return most


async def measure(system: System, effort: Effort) -> list[Row]:
    async with AsyncExitStack() as stack:
        before = memory(system)
        sessions = [await stack.enter_async_context(system.session()) for _ in range(IDLE_KERNELS)]
        idle = memory(system)
        ready = (await system.pool())["ready"]
        busy = await loaded(system, sessions[0], effort)

    def row(name: str, title: str, size: float) -> Row:
        return Row.of(f"memory-{name}", f"memory of {title}", "MiB", "lower", Series(values=[size]))

    rows = [
        row("worker-idle", "the worker, idle", before["worker"]),
        row("agent-idle", "the agent, idle", before["agent"]),
        row(
            "kernel-idle", f"a kernel, idle, one of {IDLE_KERNELS}", idle["kernels"] / (IDLE_KERNELS + ready)
        ),
        row("worker-loaded", "the worker, loaded", busy["worker"]),
        row("agent-loaded", "the agent, loaded", busy["agent"]),
    ]
    added = busy["kernels"] - idle["kernels"] * (IDLE_KERNELS + ready - 1) / (IDLE_KERNELS + ready)
    rows.append(row("kernel-loaded", "a kernel that prints", added))
    return rows


CASES = [Case("memory", measure, MANY)]
