"""A disk that fills up under a run's log: the program goes on, and what was not kept is told by its range."""

import os
from contextlib import closing

import pytest
import trio

from .disks import fill, small_disk
from .harness import Up
from .http import Http
from .readers import TRANSPORTS, Reader, together, until
from .runs import Runs

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts"),
]

BLOCK = 16384
#: Blocks before, while, and after the disk is full. Whole pages: no piece of them fits into the end of one.
BEFORE, LOST, AFTER = 4, 128, 4
#: After a failure the log is tried again a little later, which the program lets pass.
PROGRAM = f"""
import os, time
def wait_for(name):
    while not os.path.exists(name): time.sleep(0.01)
def write(letter, count):
    for _ in range(count): os.write(1, letter * {BLOCK})
write(b"a", {BEFORE})
wait_for("full")
write(b"b", {LOST})
open("through", "w").close()
wait_for("room")
time.sleep(0.3)
write(b"c", {AFTER})
"""


async def test_the_program_goes_on_and_one_gap_tells_what_was_not_kept(shared_up: Up) -> None:
    with closing(Http(shared_up.said)) as http, Runs.in_new_session(http, "full") as runs:
        kernel = shared_up.data_dir / "kernels" / runs.session_id
        with small_disk(kernel / "runs"):
            url = runs.start(PROGRAM)
            followers = [Reader(http, url, transport) for transport in TRANSPORTS]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(together, *followers)
                await until(lambda: all(reader.next == BEFORE * BLOCK for reader in followers))
                filler = fill(kernel / "runs")
                (kernel / "work" / "full").touch()
                await until((kernel / "work" / "through").exists)
                filler.unlink()
                (kernel / "work" / "room").touch()
            later = [Reader(http, url, transport) for transport in TRANSPORTS]
            await together(*later)
            gap = BEFORE * BLOCK, (BEFORE + LOST) * BLOCK
            for reader in followers + later:
                assert reader.end is not None
                assert (reader.gaps, reader.end["exit_code"]) == ([gap], 0), reader.transport
                assert reader.data == b"a" * (BEFORE * BLOCK) + b"c" * (AFTER * BLOCK)
            assert runs.run("print('room again')") == ("room again\n", 0)
        assert runs.run("print('on its own disk again')") == ("on its own disk again\n", 0)
