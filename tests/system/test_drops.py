"""A few drops by each transport; tests/faults has hundreds."""

from contextlib import closing

import pytest

from .harness import Up
from .http import Http
from .outputs import Output
from .readers import TRANSPORTS, Drop, Reader
from .runs import Runs

pytestmark = pytest.mark.system

DROPS = [Drop(0, True), Drop(150, False), Drop(3_000, True), Drop(70_000, False), Drop(9_000, True)]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_drops_its_connection_reads_on_where_it_was(shared_up: Up, transport: str) -> None:
    output = Output(count=1500, longest=400)
    with closing(Http(shared_up.said)) as http, Runs.in_new_session(http, "drops") as runs:
        reader = Reader(http, runs.start(output.code), transport, max_bytes=20_000)
        await reader.read(DROPS)
        assert reader.end is not None
        assert (reader.digest, reader.end["exit_code"]) == (output.digest, 0)
        assert (reader.drops, reader.gaps) == (len(DROPS), [])
