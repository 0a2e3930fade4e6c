"""200 readers of one run: every byte to each; one watch at the shim and one reading of the files for all."""

import hashlib
from collections import Counter

import pytest
import trio
import trio.testing

from backendai_mgr.agent.shimlink import ShimLink
from backendai_mgr.shim.runlog import RunLogReader
from tests.system.outputs import Output

from .harness import PATIENCE, start, text

READERS = 200
SIZE = 65536
WAIT_FOR_GO = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.005)\n"


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """How often the shim was asked to watch, and the files were read."""
    counted: Counter = Counter()
    watch, read = ShimLink.watch, RunLogReader.read

    async def counting_watch(self, *arguments):
        counted["watch"] += 1
        await watch(self, *arguments)

    def counting_read(self, *arguments):
        counted["read"] += 1
        return read(self, *arguments)

    monkeypatch.setattr(ShimLink, "watch", counting_watch)
    monkeypatch.setattr(RunLogReader, "read", counting_read)
    return counted


async def follow(registry, kernel_id, run_id: str, *, size: int = SIZE) -> tuple[str, int]:
    """The digest of all output, and in how many pieces it came."""
    digest, offset, pieces = hashlib.sha256(), 0, 0
    while True:
        chunk = await registry.read_output(kernel_id, run_id, offset=offset, max_bytes=size, wait=PATIENCE)
        for record in chunk.records:
            assert record.offset == offset
            offset = record.end
            digest.update(record.data)
        pieces += bool(chunk.records)
        if chunk.run.ended and offset >= chunk.run.end_offset:
            return digest.hexdigest(), pieces


async def test_two_hundred_readers_cost_the_shim_and_the_disk_as_much_as_one(registry, site, calls):
    output = Output(count=3000, longest=600, burst=100, pause=0.01)
    spec = site.spec()
    await registry.create_kernel(spec)
    await start(registry, spec, "flood", WAIT_FOR_GO + output.code)
    got = []

    async def reader() -> None:
        got.append(await follow(registry, spec.kernel_id, "flood"))

    async with trio.open_nursery() as nursery:
        for _ in range(READERS):
            nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        calls.clear()
        (site.scratch(spec) / "work" / "go").touch()
    assert {digest for digest, _ in got} == {output.digest}
    most = max(pieces for _, pieces in got)
    # Each wake-up is one watch and one reading, whoever does it; without sharing it were 200 times as many.
    assert calls["watch"] <= 2 * most
    assert calls["read"] <= 4 * most


async def test_one_note_of_the_shim_wakes_all_who_wait(registry, site, calls):
    spec = site.spec()
    await registry.create_kernel(spec)
    await start(registry, spec, "quiet", f"{WAIT_FOR_GO}print('here')\nwhile True: time.sleep(1)")
    chunks = []

    async def reader() -> None:
        chunks.append(
            await registry.read_output(spec.kernel_id, "quiet", offset=0, max_bytes=SIZE, wait=PATIENCE)
        )

    async with trio.open_nursery() as nursery:
        for _ in range(READERS):
            nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        reads = calls["read"]
        assert calls["watch"] <= 1, "the first output of a new run is told unasked"
        (site.scratch(spec) / "work" / "go").touch()
    assert [text(chunk.records) for chunk in chunks] == ["here\n"] * READERS
    assert calls["read"] - reads <= 2
