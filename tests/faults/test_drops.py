"""Clients drop their connection again and again, anywhere: what they read in the end is every byte, once."""

import random
from contextlib import closing

import pytest

from tests.system.harness import wait_until
from tests.system.http import Http
from tests.system.outputs import Output
from tests.system.readers import TRANSPORTS, Drop, Reader, together
from tests.system.runs import Runs

from .support import HEALED, Site, connections, started

pytestmark = pytest.mark.faults

DROPS = 80  # of each transport


def plan(seed: int) -> list[Drop]:
    """Where one reader drops: before the reply, in its head, in its first records, or after many of them."""
    source = random.Random(seed)
    longest = [0, 200, 2_000, 60_000, 400_000]
    return [
        Drop(after=int(source.random() * longest[number % 5]), abrupt=source.random() < 0.5)
        for number in range(DROPS)
    ]


async def test_240_drops_lose_no_byte_and_repeat_none(site: Site) -> None:
    plans = {transport: plan(number) for number, transport in enumerate(TRANSPORTS)}
    most = max(sum(drop.after for drop in drops) for drops in plans.values())
    # More than anybody can have read by its last drop, so that all of them are in the middle.
    output = Output(seed=11, count=most // 1000 + 1000, longest=2_400, burst=25, pause=0.01)
    assert len(output.data) > most
    with started(site) as up, closing(Http(up.said)) as http, Runs.in_new_session(http, "dropped") as runs:
        before = connections(up)
        url = runs.start(output.code)
        readers = [Reader(http, url, transport) for transport in TRANSPORTS]
        await together(*readers, drops=plans.values())
        for reader in readers:
            assert reader.end is not None
            assert (reader.drops, reader.cuts, reader.gaps) == (DROPS, 0, []), reader.transport
            assert (reader.digest, reader.end["exit_code"]) == (output.digest, 0), reader.transport
        wait_until(lambda: connections(up) <= before + 1, HEALED, "nothing of the dropped stays open")
        assert runs.run("print(len(open('starts').read()))") == ("1\n", 0)
