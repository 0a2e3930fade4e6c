"""Sessions at once: create, execute ``1+1``, destroy."""

import time
from functools import partial

import trio

from .cases import Case
from .executes import legacy_http
from .figures import Row, Series
from .harness import MANY, Effort, Subject, System, Taken, alternate, check_running
from .wire import connect

COUNTS = (1, 10, 100)


async def one(system: System) -> None:
    """A session's whole life, on a connection of its own."""
    async with connect(system.requests.address) as connection:
        created = await system.call_on(connection, "POST", "/session", system.wanted(), 201)
        check_running(created)
        await legacy_http(system, created["sessionId"], connection)
        await system.call_on(connection, "DELETE", f"/session/{created['sessionId']}")


async def crowd(system: System, count: int) -> Taken:
    """Seconds until the last of *count* sessions that begin together has gone."""
    await system.pool_is_full()
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one, system)
    return Taken([time.perf_counter() - began], count)


async def measure(count: int, system: System, effort: Effort) -> list[Row]:
    rounds = max(2, effort.rounds if count < max(COUNTS) else effort.rounds // 2)
    (total,) = await alternate(rounds, Subject(system, partial(crowd, system, count)))
    each = Series(
        values=[value * 1000 / count for value in total.values],
        operations=total.operations,
        cpu=total.cpu,
        load=total.load,
    )
    title = f"{count} session{'s' if count > 1 else ''} at once: create, execute, destroy"
    return [
        Row.of(f"sessions-{count}", title, "s", "lower", total),
        Row.of(f"sessions-{count}-each", f"{title}, each", "ms", "lower", each),
    ]


CASES = [Case(f"sessions-{count}", partial(measure, count), MANY) for count in COUNTS]
