"""From the request for a session to its being RUNNING, over HTTP."""

import time
from functools import partial

from .cases import Case
from .figures import Row
from .harness import (
    MANY,
    NO_POOL,
    BenchError,
    Effort,
    Subject,
    System,
    Taken,
    alternate,
    check_running,
    milliseconds,
)
from .wire import connect


async def start(system: System, count: int) -> Taken:
    """Start and end sessions one after the other; only the starts are timed."""
    values = []
    async with connect(system.requests.address) as connection:
        for _ in range(count):
            await system.pool_is_full()
            wanted = system.wanted()
            began = time.perf_counter()
            created = await system.call_on(connection, "POST", "/session", wanted, 201)
            values.append(milliseconds(began))
            check_running(created)
            await system.call_on(connection, "DELETE", f"/session/{created['sessionId']}")
    return Taken(values, count)


async def measure(kind: str, system: System, effort: Effort) -> list[Row]:
    before = (await system.pool())["misses"]
    (series,) = await alternate(effort.rounds, Subject(system, partial(start, system, effort.starts)))
    misses = (await system.pool())["misses"] - before
    if kind == "warm" and misses:
        raise BenchError(f"{misses} starts found no ready kernel")
    return [Row.of(f"start-{kind}", f"start of a session, {kind}", "ms", "lower", series)]


CASES = [
    Case("start-warm", partial(measure, "warm"), MANY),
    Case("start-cold", partial(measure, "cold"), NO_POOL),
]
