import hashlib
import json
import random
import socket
from functools import partial
from itertools import pairwise

import pytest
import trio
import trio.testing

from backendai_mgr.agent.scratch import read_json
from backendai_mgr.wire.rpc import AgentRefusal, RunOrder

from .harness import PATIENCE, read_all, run, run_spec, start, text

WAIT_FOR_GO = "import os, time\nwhile not os.path.exists('go'): time.sleep(0.005)\n"


@pytest.fixture
async def kernel(registry, site):
    spec = site.spec()
    await registry.create_kernel(spec)
    return spec


def let_go(site, spec):
    (site.scratch(spec) / "work" / "go").touch()


async def poll(registry, spec, run_id, *, wait=PATIENCE, max_bytes=65536):
    return await registry.poll_run(spec.kernel_id, run_id, wait=wait, max_bytes=max_bytes)


# ---------------------------------------------------------------- starting


async def test_a_run_starts_once_however_often_it_is_asked_for(registry, site, kernel):
    body = run_spec("open('starts', 'a').write('x'); print('done')")
    ask = partial(registry.start_run, kernel.kernel_id, "once", RunOrder.of(1, body))
    answers = []
    async with trio.open_nursery() as nursery:
        for _ in range(10):

            @nursery.start_soon
            async def one():
                answers.append(await ask())

    assert sorted(answer.created for answer in answers) == [False] * 9 + [True]
    await read_all(registry, kernel.kernel_id, "once")
    assert not (await ask()).created
    assert (site.scratch(kernel) / "work" / "starts").read_text() == "x"


async def test_another_body_under_the_same_id_conflicts(registry, kernel):
    await run(registry, kernel, "taken", "1")
    with pytest.raises(AgentRefusal, match="run-conflict"):
        await start(registry, kernel, "taken", "2")


@pytest.mark.parametrize("run_id", ["", "a/b", "..\n", "x" * 65, "ü"])
async def test_an_unusable_run_id_is_a_bad_request(registry, kernel, run_id):
    with pytest.raises(AgentRefusal, match="bad-request"):
        await start(registry, kernel, run_id, "1")


async def test_what_is_unknown_is_told_apart(registry, site, kernel):
    with pytest.raises(AgentRefusal, match="no-such-run"):
        await registry.get_run(kernel.kernel_id, "never")
    with pytest.raises(AgentRefusal, match="no-such-run"):
        await registry.interrupt_run(kernel.kernel_id, "never")
    with pytest.raises(AgentRefusal, match="no-such-kernel"):
        await registry.get_run(site.spec().kernel_id, "never")
    stale = run_spec("1")
    with pytest.raises(AgentRefusal, match="stale-incarnation"):
        await registry.start_run(kernel.kernel_id, "r", RunOrder.of(2, stale))
    assert await registry.interrupt_run(kernel.kernel_id, None) is None
    assert list(await registry.list_runs(kernel.kernel_id)) == []


async def test_state_stays_from_run_to_run_and_exit_codes_are_true(registry, kernel):
    await run(registry, kernel, "set", "value = 41")
    assert (await run(registry, kernel, "get", "print(value + 1)"))[0] == "42\n"
    assert (await run(registry, kernel, "raise", "1/0"))[1].exit_code == 1
    assert (await run(registry, kernel, "exit", "raise SystemExit(3)"))[1].exit_code == 3
    listed = await registry.list_runs(kernel.kernel_id)
    assert [each.run_id for each in listed] == ["exit", "raise", "get", "set"]


async def test_an_interrupted_run_is_cancelled_and_the_kernel_goes_on(registry, kernel):
    await start(registry, kernel, "endless", "print('in', flush=True)\nwhile True: pass")
    await registry.read_output(kernel.kernel_id, "endless", offset=0, max_bytes=10, wait=PATIENCE)
    interrupted = await registry.interrupt_run(kernel.kernel_id, None)
    assert interrupted.run_id == "endless"
    _, status = await read_all(registry, kernel.kernel_id, "endless")
    assert (status.state, status.exit_code) == ("cancelled", 130)
    assert (await run(registry, kernel, "after", "print('alive')"))[0] == "alive\n"


# ---------------------------------------------------------------- reading


async def test_output_is_the_same_from_every_offset_and_in_any_pieces(registry, kernel):
    code = (
        "import sys\n"
        "for i in range(12):\n"
        "    print('out', i, 'é' * i, flush=True)\n"
        "    print('err', i, file=sys.stderr, flush=True)\n"
    )
    await start(registry, kernel, "mixed", code)
    records, status = await read_all(registry, kernel.kernel_id, "mixed")
    whole = b"".join(record.data for record in records)
    assert len(whole) == status.end_offset
    assert text(records, "stderr") == "".join(f"err {i}\n" for i in range(12))
    for offset in range(len(whole) + 1):
        size = 1 + offset % 50
        pieces, _ = await read_all(registry, kernel.kernel_id, "mixed", offset=offset, max_bytes=size)
        assert b"".join(piece.data for piece in pieces) == whole[offset:]
        assert [piece.offset for piece in pieces[:1]] == ([offset] if offset < len(whole) else [])
        assert all(len(piece.data) <= size for piece in pieces)


async def test_an_offset_past_the_end_of_an_ended_run_is_refused(registry, kernel):
    _, status = await run(registry, kernel, "short", "print('x')")
    read = partial(registry.read_output, kernel.kernel_id, "short", max_bytes=10, wait=PATIENCE)
    assert (await read(offset=status.end_offset)).records == []
    with pytest.raises(AgentRefusal, match="offset-past-end"):
        await read(offset=status.end_offset + 1)
    with pytest.raises(AgentRefusal, match="bad-request"):
        await read(offset=-1)


async def test_a_reader_ahead_of_a_run_waits_until_the_run_has_come_there(registry, site, kernel):
    await start(registry, kernel, "ahead", f"{WAIT_FOR_GO}print('0123456789')")
    chunks = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def reader():
            chunks.append(
                await registry.read_output(kernel.kernel_id, "ahead", offset=5, max_bytes=100, wait=PATIENCE)
            )

        let_go(site, kernel)
    ((record,),) = (chunk.records for chunk in chunks)
    assert (record.offset, record.data) == (5, b"56789\n")


async def test_a_wait_ends_on_time_with_nothing(registry, kernel):
    await start(registry, kernel, "silent", "import time; time.sleep(1000)")
    chunk = await registry.read_output(kernel.kernel_id, "silent", offset=0, max_bytes=100, wait=0.01)
    assert (chunk.records, chunk.next_offset, chunk.run.state) == ([], 0, "running")


async def test_fifty_readers_of_one_run_all_get_every_byte(registry, site, kernel):
    code = (
        f"{WAIT_FOR_GO}"
        "import random\n"
        "source = random.Random(1)\n"
        "for _ in range(2000): print(source.getrandbits(3200))\n"
    )
    source = random.Random(1)
    expected = hashlib.sha256()
    for _ in range(2000):
        expected.update(f"{source.getrandbits(3200)}\n".encode())
    await start(registry, kernel, "flood", code)
    digests = []

    async def reader(size):
        records, status = await read_all(registry, kernel.kernel_id, "flood", max_bytes=size)
        assert status.state == "finished"
        digests.append(hashlib.sha256(b"".join(record.data for record in records)).hexdigest())

    async with trio.open_nursery() as nursery:
        for index in range(50):
            nursery.start_soon(reader, (65536, 262144, 50_000)[index % 3])
        let_go(site, kernel)
    assert digests == [expected.hexdigest()] * 50


async def test_a_reader_that_gives_up_does_not_disturb_the_others(registry, site, kernel):
    await start(registry, kernel, "shared", f"{WAIT_FOR_GO}print('here')")
    read = partial(registry.read_output, kernel.kernel_id, "shared", offset=0, max_bytes=100)
    chunks = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def patient():
            chunks.append(await read(wait=PATIENCE))

        for _ in range(3):  # the first may have armed the watch for all
            with trio.move_on_after(0):
                await read(wait=PATIENCE)
            await read(wait=0.001)
        let_go(site, kernel)
    assert [text(chunk.records) for chunk in chunks] == ["here\n"]


# ---------------------------------------------------------------- legacy polls


async def test_polls_hand_out_each_byte_once_and_end_with_the_run(registry, site, kernel):
    await start(registry, kernel, "legacy", f"print('one', flush=True)\n{WAIT_FOR_GO}print('two')")
    await registry.read_output(kernel.kernel_id, "legacy", offset=0, max_bytes=10, wait=PATIENCE)
    first = await poll(registry, kernel, "legacy", wait=0.01)
    assert (text(first.records), first.run.ended) == ("one\n", False)
    nothing = await poll(registry, kernel, "legacy", wait=0.01)
    assert (nothing.records, nothing.next_offset) == ([], 4)
    let_go(site, kernel)
    last = await poll(registry, kernel, "legacy")
    assert (text(last.records), last.run.state, last.run.exit_code) == ("two\n", "finished", 0)
    again = await poll(registry, kernel, "legacy")
    assert (again.records, again.run.state) == ([], "finished")
    assert text((await read_all(registry, kernel.kernel_id, "legacy"))[0]) == "one\ntwo\n"


async def test_polls_at_once_take_turns(registry, site, kernel):
    await start(registry, kernel, "turns", f"{WAIT_FOR_GO}print('x' * 99_999)")
    chunks = []
    async with trio.open_nursery() as nursery:
        for _ in range(10):

            @nursery.start_soon
            async def poller():
                chunks.append(await poll(registry, kernel, "turns", max_bytes=10_000))

        let_go(site, kernel)
    taken = sorted((record.offset, record.end) for chunk in chunks for record in chunk.records)
    assert taken[0][0] == 0
    assert taken[-1][1] == 100_000
    assert all(before[1] == after[0] for before, after in pairwise(taken))


async def test_a_poll_does_not_wait_when_it_can_be_filled(registry, kernel):
    await start(registry, kernel, "much", "print('x' * 9, flush=True)\nimport time; time.sleep(1000)")
    with trio.fail_after(PATIENCE / 2):
        chunk = await poll(registry, kernel, "much", max_bytes=4)
    assert text(chunk.records) == "xxxx"


async def test_a_cancelled_poll_takes_nothing(registry, site, kernel):
    await start(registry, kernel, "given-up", f"{WAIT_FOR_GO}print('all')")
    with trio.move_on_after(0.02):
        await poll(registry, kernel, "given-up")
    let_go(site, kernel)
    assert text((await poll(registry, kernel, "given-up")).records) == "all\n"


# ---------------------------------------------------------------- a stalled agent


async def test_an_abandoned_run_is_interrupted_unless_somebody_reads_it(registry, kernel):
    for name in ("left", "read"):
        await start(registry, kernel, name, f"print('{name}', flush=True)\nimport time\ntime.sleep(1000)")
        await registry.read_output(kernel.kernel_id, name, offset=0, max_bytes=9, wait=PATIENCE)
        await registry.abandon_run(kernel.kernel_id, name, 0.2)
        if name == "read":
            await trio.testing.wait_all_tasks_blocked()
            await registry.read_output(kernel.kernel_id, name, offset=0, max_bytes=9, wait=0)
            await registry.abandon_run(kernel.kernel_id, "left", 0.2)  # it has ended: nothing happens
            await registry.abandon_run(kernel.kernel_id, "never begun", 0.2)
            chunk = await registry.read_output(kernel.kernel_id, name, offset=5, max_bytes=9, wait=0.5)
            assert chunk.run.state == "running"
        else:
            with trio.fail_after(PATIENCE):
                while not (status := await registry.get_run(kernel.kernel_id, name)).ended:
                    pass  # each look asks the shim
            assert (status.state, status.exit_code) == ("cancelled", 130)


async def test_a_connection_that_the_shim_dropped_is_made_again(registry, site, kernel, caplog):
    """The shim drops a client for which too much waits, as happens to an agent that was stopped for long."""
    await start(registry, kernel, "read", f"print('a', flush=True)\n{WAIT_FOR_GO}print('b')")
    await registry.read_output(kernel.kernel_id, "read", offset=0, max_bytes=1, wait=PATIENCE)
    results = []
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def reader():
            results.append(await read_all(registry, kernel.kernel_id, "read"))

        await trio.testing.wait_all_tasks_blocked()
        queue_and_cancel(read_json(site.scratch(kernel) / "shim.json")["socket"], 2200)
        let_go(site, kernel)
    ((records, status),) = results
    assert (text(records), status.state) == ("a\nb\n", "finished")
    assert (await run(registry, kernel, "after", "print('well')"))[0] == "well\n"
    assert "connecting again" in caplog.text


def queue_and_cancel(path, times):
    """Make the shim send notes by the thousand while this thread, in which the agent runs, does not read."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        file = connection.makefile("rwb")

        def ask(**request):
            body = json.dumps({"id": 1, **request}).encode()
            file.write(len(body).to_bytes(4, "big") + body)
            file.flush()
            return json.loads(file.read(int.from_bytes(file.read(4), "big")))

        for number in range(times):
            spec = {"mode": "query", "code": "1", "timeout": None}
            run_id = f"queued-{number}-{'x' * 40}"
            assert "ok" in ask(op="start", run_id=run_id, incarnation=1, digest="0", spec=spec)
            assert "ok" in ask(op="interrupt", run_id=run_id)
