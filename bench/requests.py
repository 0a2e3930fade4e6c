"""Authenticated requests per second, beside a bare Quart-Trio hello and a bare Hypercorn-Trio one."""

import time
from contextlib import AsyncExitStack
from functools import partial

import trio

from .cases import Case
from .figures import Row
from .harness import Effort, Subject, System, Taken, alternate, bare
from .wire import Requests, connect

TARGET = "/auth?echo=x"


async def rate(requests: Requests, target: str, connections: int, seconds: float) -> Taken:
    """Requests per second over so many kept-alive connections, each with one request on its way."""
    done = 0
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(connect(requests.address)) for _ in range(connections)]
        request = requests.make("GET", target)
        began = time.perf_counter()
        until = began + seconds

        async def send(number: int) -> None:
            nonlocal done
            while time.perf_counter() < until:
                await opened[number].exchange(request)
                done += 1

        async with trio.open_nursery() as nursery:
            for number in range(connections):
                nursery.start_soon(send, number)
        elapsed = time.perf_counter() - began
    return Taken([done / elapsed], done)


async def measure(connections: int, system: System, effort: Effort) -> list[Row]:
    async with bare("quart") as quart, bare("asgi") as asgi:
        ours, of_quart, of_asgi = await alternate(
            effort.rounds,
            Subject(system, partial(rate, system.requests, TARGET, connections, effort.seconds)),
            Subject(quart, partial(rate, quart.requests, "/", connections, effort.seconds)),
            Subject(asgi, partial(rate, asgi.requests, "/", connections, effort.seconds)),
        )
    name = f"requests-{connections}"
    title = f"authenticated requests, {connections} connection{'s' if connections > 1 else ''}"
    return [
        Row.of(name, title, "/s", "higher", ours, beside=("bare Quart-Trio", of_quart)),
        Row.of(f"{name}-asgi", title, "/s", "higher", ours, beside=("bare Hypercorn-Trio", of_asgi)),
    ]


CASES = [Case(f"requests-{connections}", partial(measure, connections)) for connections in (1, 8)]
