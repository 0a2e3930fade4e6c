"""Files and logs of real kernels: they work whatever the interpreter does."""

import pytest
import trio

from backendai_mgr.wire.files import LogPlace
from backendai_mgr.wire.rpc import AgentRefusal

from .harness import PATIENCE, destroy, ended, run, start


@pytest.fixture
async def kernel(registry, site):
    spec = site.spec()
    await registry.create_kernel(spec)
    return spec


async def log_of(registry, spec, max_bytes=1 << 20):
    """The whole log, read in pieces."""
    pieces, before = [], None
    while True:
        piece = await registry.files(spec.kernel_id).log(before, max_bytes)
        pieces.insert(0, piece.data)
        if (before := piece.before) is None:
            return b"".join(pieces).decode()


async def test_the_program_and_we_share_the_files(registry, kernel):
    files = registry.files(kernel.kernel_id)
    await files.write("in/data.txt", "u1", 0, b"6 7", final=True)
    code = (
        "a, b = map(int, open('in/data.txt').read().split())\n"
        "with open('in/data.txt', 'a') as f: f.write('!')\n"
        "with open('in/out.txt', 'w') as f: f.write(str(a * b))\n"
        "import os; os.remove('in/data.txt')"
    )
    _, status = await run(registry, kernel, "r", code)
    assert status.exit_code == 0
    assert (await files.read("/home/work/in/out.txt", 0, 100)).data == b"42"
    assert [entry.filename for entry in (await files.list("in")).entries] == ["out.txt"]


async def test_files_and_logs_of_a_busy_kernel(registry, kernel):
    await start(registry, kernel, "busy", "print('on it', flush=True)\nwhile True: pass")
    await registry.read_output(kernel.kernel_id, "busy", offset=0, max_bytes=1, wait=30)
    files = registry.files(kernel.kernel_id)
    await files.write("f", "u", 0, b"x", final=True)
    assert (await files.read("f", 0, 1)).data == b"x"
    assert (await log_of(registry, kernel)).endswith("on it\n")
    await registry.interrupt_run(kernel.kernel_id, "busy")


async def test_what_a_program_links_to_is_not_ours_to_read(registry, kernel):
    await run(registry, kernel, "r", "import os; os.symlink('/etc/passwd', 'p'); os.mkfifo('q')")
    files = registry.files(kernel.kernel_id)
    for path, code in (("p", "outside"), ("q", "no-such-file"), ("../spec.json", "outside")):
        with pytest.raises(AgentRefusal, match=code):
            await files.read(path, 0, 1)


async def test_a_log_has_all_runs_in_order(registry, kernel):
    await run(registry, kernel, "b", "print('first')")
    await run(registry, kernel, "a", "import sys; print('second', file=sys.stderr)")
    await run(registry, kernel, "c", "print('third'); 1/0")
    log = await log_of(registry, kernel)
    assert log.index("first") < log.index("second") < log.index("third") < log.index("ZeroDivisionError")


@pytest.mark.parametrize("max_bytes", [1, 7, 100])
async def test_a_log_in_pieces_is_the_log(registry, kernel, max_bytes):
    for number in range(3):
        await run(registry, kernel, str(number), f"for n in range(20): print({number}, n)")
    whole = await log_of(registry, kernel)
    assert whole.endswith("".join(f"{run} {n}\n" for run in range(3) for n in range(20)))
    pieces = await log_of(registry, kernel, max_bytes)
    assert whole.endswith(pieces)
    assert pieces.endswith("2 19\n")


async def test_a_log_from_a_place_that_is_gone_ends_there(registry, kernel):
    gone = LogPlace(run_id="nothing", offset=5)
    assert (await registry.files(kernel.kernel_id).log(gone, 100)).before is None


async def test_the_log_of_a_kernel_that_ended_is_there_until_it_is_acknowledged(registry, site, kernel):
    await run(registry, kernel, "r", "print('last words')")
    await registry.destroy_kernel(kernel.kernel_id, 1, "user-requested")
    await ended(registry, kernel.kernel_id)
    files = registry.files(kernel.kernel_id)
    assert (await log_of(registry, kernel)).endswith("last words\n")
    with pytest.raises(AgentRefusal, match="kernel-ended"):
        await files.write("f", "u", 0, b"", final=True)
    await destroy(registry, site, kernel)
    with pytest.raises(AgentRefusal, match="no-such-kernel"):
        registry.files(kernel.kernel_id)


async def test_an_agent_has_a_limit_of_its_own_for_uploads(site):
    with trio.fail_after(PATIENCE):
        async with site.agent(upload_size=5) as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            files = registry.files(spec.kernel_id)
            await files.write("f", "u", 0, b"12345", final=True)
            with pytest.raises(AgentRefusal, match=r"too-large: 5 bytes .*upload-size"):
                await files.write("g", "v", 0, b"123456", final=True)
            await destroy(registry, site, spec)


async def test_calls_that_are_cancelled_leave_the_files_usable(registry, kernel):
    files = registry.files(kernel.kernel_id)
    for number in range(50):
        with trio.move_on_after(0):
            await files.write("f", f"u{number}", 0, b"x", final=True)
    await files.write("f", "last", 0, b"last", final=True)
    assert (await files.read("f", 0, 9)).data == b"last"
