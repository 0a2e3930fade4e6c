"""Readers that stop reading: they cost a fixed buffer, delay nobody, and go on where they were."""

from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.system.harness import psql
from tests.system.http import Http
from tests.system.outputs import Output
from tests.system.processes import child
from tests.system.readers import TRANSPORTS, Reader, together, until
from tests.system.runs import Runs

from .support import HEALED, Site, connections, started

pytestmark = pytest.mark.faults

FROZEN = 24
#: About 24 MB, so that a buffer that grows with the output shows.
FLOOD = Output(seed=3, count=12_000, longest=4000, burst=400, pause=0.05)
#: Of each frozen reader: what it may hold up in the worker, whatever is written meanwhile.
EACH = 1 << 20
#: A worker that has worked is larger than before by so much for other reasons.
OTHER = 24 << 20
LOST = "SELECT count(*) FROM events WHERE type = 'agent_lost'"


def resident(pid: int | None) -> int:
    """Bytes of memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))


async def test_readers_that_stop_cost_a_fixed_buffer_and_delay_nobody(site: Site) -> None:
    """While others read on; they go on over the same connections. The agent's reports come all the time."""
    whole = len(FLOOD.data)
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "slow") as runs:
        url = runs.start(FLOOD.code)
        transports = [TRANSPORTS[1 + number % 2] for number in range(FROZEN)]
        frozen = [Reader(http, url, transport, stop_at=1) for transport in transports]
        others = [Reader(http, url, transport) for transport in TRANSPORTS]
        worker, agent = child(up, "worker"), child(up, "agent")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(together, *frozen)
            await until(lambda: all(reader.next for reader in frozen))
            before = resident(worker), resident(agent)
            nursery.start_soon(together, *others)
            await until(lambda: min(reader.next for reader in others) > whole / 3)
            early = resident(worker), resident(agent)
            await until(lambda: all(reader.end for reader in others))
            late = resident(worker), resident(agent)
            assert all(reader.end is None for reader in frozen)
            for reader in frozen:
                reader.go_on.set()
        for reader in others + frozen:
            assert (reader.digest, reader.gaps, reader.cuts) == (FLOOD.digest, [], 0), reader.transport
        for held, then, at_last in zip(before, early, late, strict=True):
            assert then - held < FROZEN * EACH + OTHER
            assert at_last - then < OTHER, "two thirds of the output came meanwhile"
        assert psql(up, LOST) == "0"
        assert (child(up, "worker"), child(up, "agent")) == (worker, agent)


async def test_readers_that_stop_for_too_long_are_cut_and_go_on_where_they_were(site: Site) -> None:
    cut = "--set", "limits.send-seconds=1"
    with started(site, *cut) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "cut") as runs:
        before = connections(up)
        url = runs.start(FLOOD.code)
        frozen = [Reader(http, url, transport, stop_at=100_000) for transport in TRANSPORTS[1:]]
        live = Reader(http, url, "websocket")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(together, *frozen)
            await live.read()
            await until(lambda: connections(up) <= before + 1, 2 * HEALED)
            for reader in frozen:
                reader.go_on.set()
        for reader in [live, *frozen]:
            assert (reader.digest, reader.gaps) == (FLOOD.digest, [])
        assert [reader.cuts for reader in frozen] == [1, 1]
        assert live.cuts == 0


async def test_two_hundred_readers_get_every_byte(site: Site) -> None:
    output = Output(seed=5, count=2000, longest=600, burst=50, pause=0.02)
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "many") as runs:
        url = runs.start(output.code)
        readers = [Reader(http, url, TRANSPORTS[number % 3]) for number in range(200)]
        await together(*readers)
        for reader in readers:
            assert (reader.digest, reader.gaps, reader.cuts) == (output.digest, [], 0), reader.transport
        assert psql(up, LOST) == "0"
