"""Files and logs there and back over the link."""

import os

import pytest

from backendai_mgr.wire.call import MAX_OUTPUT
from backendai_mgr.wire.callosum import FrameError
from backendai_mgr.wire.files import Condition, LogPlace
from backendai_mgr.wire.rpc import AgentRefusal

from .conftest import KERNEL


async def test_a_file_of_the_largest_pieces_travels(link):
    data = os.urandom(2 * MAX_OUTPUT)
    for offset in (0, MAX_OUTPUT):
        piece = data[offset : offset + MAX_OUTPUT]
        await link.write_file(KERNEL, "f", upload="u", offset=offset, data=piece, final=offset > 0)
    got = b""
    while len(got) < len(data):
        piece = await link.read_file(KERNEL, "f", offset=len(got), max_bytes=1 << 30)
        assert 0 < len(piece.data) <= MAX_OUTPUT
        got += piece.data
    assert got == data
    assert (piece.size, piece.inode) == (len(data), 1)


async def test_a_piece_that_is_too_large_is_not_sent(link, agent):
    with pytest.raises((FrameError, ValueError)):
        await link.write_file(KERNEL, "f", upload="u", offset=0, data=bytes(MAX_OUTPUT + 1), final=True)
    assert not agent.calls["write_file"]


async def test_changes_travel_with_their_conditions(link):
    condition = Condition(match=["1"])
    made = await link.write_file(KERNEL, "f", upload="u", offset=0, data=b"abc", final=True)
    assert (made.size, made.inode) == (3, 1)
    assert (await link.patch_file(KERNEL, "f", offset=None, data=b"d")).size == 4
    assert (await link.move_file(KERNEL, "f", to="g", replace=False)).created
    with pytest.raises(AgentRefusal) as caught:
        await link.remove_file(KERNEL, "g", recursive=True, condition=Condition(unlike=["*"]))
    assert caught.value.code == "precondition"
    assert await link.remove_file(KERNEL, "g", recursive=True, condition=condition) is False
    await link.write_file(KERNEL, "h", upload="u", offset=0, data=b"abc", final=False)
    await link.drop_upload(KERNEL, "h", upload="u")


async def test_lists_archives_and_logs(link):
    assert (await link.list_files(KERNEL, "d/\udcff")).path == "d/\udcff"
    assert await link.archive_file(KERNEL, "d", max_bytes=1 << 30) == b"tar of d"
    newest = await link.read_log(KERNEL, before=None, max_bytes=100)
    assert (newest.data, newest.before) == (b"log", LogPlace(run_id="r", offset=7))
    assert (await link.read_log(KERNEL, before=newest.before, max_bytes=100)).before is None


async def test_a_refusal_keeps_its_code(link):
    with pytest.raises(AgentRefusal) as caught:
        await link.read_file(KERNEL, "missing", offset=0, max_bytes=1)
    assert (caught.value.code, caught.value.message) == ("no-such-file", "there is no such file")
