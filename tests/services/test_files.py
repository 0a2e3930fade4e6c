"""Files and logs of sessions on a fake agent."""

import attrs
import pytest
import trio
import trio.lowlevel

from backendai_mgr.domain.errors import (
    AgentFailed,
    Conflict,
    Forbidden,
    InvalidParameters,
    NoRoom,
    NotFound,
    PayloadTooLarge,
    PreconditionFailed,
    QuotaExceeded,
    Unavailable,
)
from backendai_mgr.domain.status import Status
from backendai_mgr.services.files import LOG_BYTES, READ_BYTES, IsFolder
from backendai_mgr.services.sessions import CreateRequest
from backendai_mgr.wire.call import MAX_OUTPUT
from backendai_mgr.wire.files import Condition, LogPiece, LogPlace
from backendai_mgr.wire.rpc import AgentRefusal

from .conftest import ADMIN, CALLER

NAME = "test-session"


@pytest.fixture
async def agent(world, autojump_clock, nursery):
    """The agent on which the session runs."""
    await world.start(nursery)
    await world.running(NAME)
    return world.agents["i-1"]


async def read(world, path, **options):
    content = await world.files.read(CALLER, NAME, path, exact=True, **options)
    return content, b"".join([piece async for piece in content.pieces])


async def test_a_large_file_goes_in_pieces(world, agent):
    data = bytes(range(256)) * (10 * MAX_OUTPUT // 1024)
    done = await world.files.write(CALLER, NAME, "f", data, exact=True)
    assert (done.end, done.file.size) == (len(data), len(data))
    paths, uploads, offsets, sizes, finals = zip(*agent.writes, strict=True)
    assert (set(paths), len(set(uploads))) == ({"f"}, 1)
    assert offsets == (0, MAX_OUTPUT, 2 * MAX_OUTPUT)
    assert max(sizes) == MAX_OUTPUT
    assert finals == (False, False, True)
    content, got = await read(world, "f")
    assert (content.file.size, content.length, got) == (len(data), len(data), data)


async def test_an_empty_file_is_a_file(world, agent):
    assert (await world.files.write(CALLER, NAME, "f", b"", exact=True)).end == 0
    assert agent.writes[0][3:] == (0, True)
    content, got = await read(world, "f")
    assert (content.length, got) == (0, b"")


async def test_a_piece_of_a_callers_upload_is_passed_on(world, agent):
    options = {"exact": True, "upload": "mine", "offset": 7}
    done = await world.files.write(CALLER, NAME, "f", b"abc", final=False, **options)
    assert (done.end, done.file) == (10, None)
    assert agent.writes == [("f", "mine", 7, 3, False)]


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [(0, 3, b"012"), (8, 5, b"89"), (10, None, b""), (99, 5, b""), (0, 0, b""), (4, None, b"456789")],
)
async def test_any_part_of_a_file(world, agent, offset, length, expected):
    agent.files["f"] = b"0123456789"
    content, got = await read(world, "f", offset=offset, length=length)
    assert (content.file.size, content.length, got) == (10, len(expected), expected)


async def test_a_growing_file_is_read_to_where_it_was(world, agent):
    agent.files["f"] = bytes(READ_BYTES + 5)
    content = await world.files.read(CALLER, NAME, "f", exact=True)
    agent.files["f"] += b"more"
    assert sum([len(piece) async for piece in content.pieces]) == READ_BYTES + 5


@pytest.mark.parametrize("change", ["shorter", "another"])
async def test_a_file_that_changes_under_its_reader_is_told(world, agent, change):
    agent.files["f"] = bytes(READ_BYTES + 5)
    content = await world.files.read(CALLER, NAME, "f", exact=True)
    assert len(await anext(content.pieces)) == READ_BYTES
    if change == "shorter":
        agent.files["f"] = b"short"
    else:
        agent.inode += 1
    with pytest.raises(Conflict):
        await anext(content.pieces)


@pytest.mark.parametrize(
    ("code", "refusal", "field"),
    [
        ("no-such-file", NotFound, "path"),
        ("is-folder", IsFolder, "path"),
        ("outside", InvalidParameters, "path"),
        ("bad-path", InvalidParameters, "path"),
        ("denied", Forbidden, "path"),
        ("too-large", PayloadTooLarge, "body"),
        ("disk-full", NoRoom, "body"),
        ("quota-used-up", QuotaExceeded, "body"),
        ("precondition", PreconditionFailed, "path"),
        ("exists", Conflict, "rename"),
        ("target", InvalidParameters, "rename"),
        ("upload-gap", Conflict, "offset"),
        ("kernel-ended", Conflict, None),
        ("no-such-kernel", Unavailable, None),
        ("file-failed", AgentFailed, None),
    ],
)
async def test_what_an_agent_refuses_names_the_field(world, agent, code, refusal, field):
    agent.refuse["write_file"] = AgentRefusal(code, "because")
    with pytest.raises(refusal) as caught:
        await world.files.write(CALLER, NAME, "f", b"", exact=True)
    assert (caught.value.data or {}) == ({field: "because"} if field else {})


async def test_an_archive_that_is_too_large_names_the_path(world, agent):
    agent.refuse["archive_file"] = AgentRefusal("too-large", "at most 5 bytes")
    with pytest.raises(PayloadTooLarge) as caught:
        await world.files.archive(CALLER, NAME, "d", 5)
    assert caught.value.data == {"path": "at most 5 bytes"}


async def test_files_of_others_and_of_silent_agents(world, agent):
    with pytest.raises(NotFound):
        await world.files.read(ADMIN, NAME, "f", exact=True)
    with pytest.raises(NotFound):
        await world.files.list(CALLER, "test", "f", exact=True)
    assert (await world.files.list(CALLER, "test", "d", exact=False)).path == "d"
    assert await world.files.archive(CALLER, "test", "d", 100) == b"tar of d"
    agent.silent = True
    with pytest.raises(Unavailable):
        await world.files.list(CALLER, NAME, "d", exact=True)


async def test_few_pieces_are_under_way_at_once(world, agent):
    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(lambda n=number: world.files.write(CALLER, NAME, f"f{n}", b"x", exact=True))
        await trio.lowlevel.checkpoint()
        assert world.files._pieces.borrowed_tokens <= 16
    assert len(agent.writes) == 100


# ---------------------------------------------------------------- changes


async def chunks(*sizes, then=None):
    for size in sizes:
        yield b"x" * size
    if then is not None:
        await then()


@pytest.mark.parametrize(
    ("sizes", "pieces"),
    [
        ((), [0]),
        ((10, 20), [30]),
        ((MAX_OUTPUT,), [MAX_OUTPUT]),
        ((MAX_OUTPUT, 1), [MAX_OUTPUT, 1]),
        ((3 * MAX_OUTPUT + 5,), [MAX_OUTPUT] * 3 + [5]),
        ((MAX_OUTPUT - 1, 3), [MAX_OUTPUT, 2]),
    ],
)
async def test_a_file_is_passed_on_as_it_comes(world, agent, sizes, pieces):
    done = await world.files.write_all(CALLER, NAME, "f", chunks(*sizes))
    assert [size for *_, size, _ in agent.writes] == pieces
    assert [final for *_, final in agent.writes] == [False] * (len(pieces) - 1) + [True]
    assert len({upload for _, upload, *_ in agent.writes}) == 1
    assert (done.end, done.file.size, done.file.created) == (sum(sizes), sum(sizes), len(pieces) == 1)
    assert not agent.dropped


async def test_what_breaks_off_is_forgotten(world, agent):
    with trio.move_on_after(5) as scope:
        await world.files.write_all(CALLER, NAME, "f", chunks(MAX_OUTPUT + 1, then=trio.sleep_forever))
    assert scope.cancelled_caught
    ((path, upload),) = agent.dropped
    assert (path, upload) == ("f", agent.writes[0][1])


async def test_a_refusal_in_mid_file_is_told_and_the_rest_forgotten(world, agent):
    agent.refuse["write_file"] = AgentRefusal("disk-full", "full")
    with pytest.raises(NoRoom):
        await world.files.write_all(CALLER, NAME, "f", chunks(2 * MAX_OUTPUT + 1))
    assert len(agent.dropped) == 1


async def test_an_agent_that_dies_in_mid_file_keeps_nobody_waiting(world, agent):
    agent.silent = True
    with pytest.raises(Unavailable):
        await world.files.write_all(CALLER, NAME, "f", chunks(MAX_OUTPUT + 1))


async def test_conditions_are_passed_on(world, agent):
    new, wrong = Condition(unlike=["*"]), Condition(match=["1-2-3"])
    await world.files.write_all(CALLER, NAME, "f", chunks(1), condition=new)
    for change in (
        world.files.write_all(CALLER, NAME, "f", chunks(1), condition=new),
        world.files.write(CALLER, NAME, "f", b"", exact=True, condition=wrong),
        world.files.patch(CALLER, NAME, "f", b"", offset=0, condition=wrong),
        world.files.move(CALLER, NAME, "f", "g", replace=True, condition=wrong),
        world.files.remove(CALLER, NAME, "f", recursive=True, condition=wrong),
    ):
        with pytest.raises(PreconditionFailed):
            await change
    assert agent.files == {"f": b"x"}


async def test_a_file_is_written_into_moved_and_removed(world, agent):
    agent.files["f"] = b"abc"
    assert (await world.files.patch(CALLER, NAME, "f", b"d", offset=None)).size == 4
    assert (await world.files.patch(CALLER, NAME, "f", b"x", offset=1)).size == 2
    assert (await world.files.move(CALLER, NAME, "f", "g", replace=False)).size == 2
    assert agent.files == {"g": b"ax"}
    await world.files.remove(CALLER, NAME, "g", recursive=False)
    assert agent.files == {}


async def test_a_removal_takes_as_many_calls_as_it_needs_and_not_more(world, agent):
    agent.files["d"] = b""
    agent.removals = 400
    seen = Condition(match=["*"])
    await world.files.remove(CALLER, NAME, "d", recursive=True, condition=seen)
    assert agent.files == {}
    agent.files["d"], agent.removals = b"", 10_000
    with pytest.raises(Conflict):
        await world.files.remove(CALLER, NAME, "d", recursive=True)


# ---------------------------------------------------------------- logs


async def log(world, caller=CALLER, **options):
    return await world.files.log(caller, NAME, exact=False, **options)


async def test_a_log_is_put_together_from_its_pieces(world, agent):
    agent.logs = [
        LogPiece(data="é!".encode()[1:], before=LogPlace(run_id="r", offset=1)),
        LogPiece(data=b"old " + "é".encode()[:1], before=None),
    ]
    assert await log(world) == "old é!"


async def test_the_newest_of_a_log_is_kept(world, agent):
    agent.logs = [LogPiece(data=b"x" * MAX_OUTPUT, before=LogPlace(run_id="r", offset=0))]
    assert await log(world) == "x" * LOG_BYTES


async def test_a_log_without_end_is_given_up(world, agent):
    agent.logs = [LogPiece(data=b"", before=LogPlace(run_id="r", offset=0))]
    assert await log(world) == ""


async def test_the_log_of_a_session_that_ended_was_stored(world, agent):
    session = next(iter(world.store.sessions.values()))
    agent.end_kernel(session.id)
    await world.until(lambda: agent.acked)
    assert world.store.logs == {session.id: b"log\n"}
    agent.silent = True
    assert await log(world) == "log\n"


async def test_an_end_is_acknowledged_although_its_log_cannot_be_had(world, agent):
    session = next(iter(world.store.sessions.values()))
    agent.refuse["read_log"] = AgentRefusal("file-failed", "broken disk")
    agent.end_kernel(session.id)
    await world.until(lambda: agent.acked)
    assert await log(world) == ""


async def test_a_session_without_a_kernel_has_an_empty_log(world):
    await world.sessions.create(CALLER, CreateRequest(name=NAME, image="python", enqueue_only=True))
    assert await log(world) == ""
    (session,) = world.store.sessions.values()
    placed = attrs.evolve(session, status=Status.PREPARING, agent_id="i-1", agent_addr="a")
    world.store.sessions[session.id] = placed
    assert await log(world) == ""


async def test_logs_of_others_need_the_right(world, agent):
    with pytest.raises(NotFound):
        await log(world, ADMIN)
    assert await log(world, ADMIN, owner_access_key=CALLER.access_key) == "log\n"
    with pytest.raises(Forbidden):
        await log(world, CALLER, owner_access_key=ADMIN.access_key)
    with pytest.raises(InvalidParameters):
        await log(world, ADMIN, owner_access_key="AKIANOBODY")
