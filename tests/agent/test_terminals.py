"""Terminals on a real agent: sandboxed where that can be done, and found again by the next agent."""

from functools import partial

import pytest
import trio

from backendai_mgr.agent.registry import KernelRegistry
from backendai_mgr.domain.status import RunState
from backendai_mgr.wire.rpc import AgentRefusal, KernelSpec, RunOrder, RunSpec

from .harness import PATIENCE, Site, destroy, ended, read_all, run, text

TERMINAL = RunSpec(mode="terminal")


async def open_terminal(registry: KernelRegistry, spec: KernelSpec, run_id: str = "t") -> None:
    await registry.start_run(spec.kernel_id, run_id, RunOrder.of(spec.incarnation, TERMINAL))


async def type_in(
    registry: KernelRegistry, spec: KernelSpec, line: str, offset: int | None = None, run_id: str = "t"
) -> int:
    return await registry.type_input(spec.kernel_id, run_id, "w", offset, line.encode())


async def shows(registry: KernelRegistry, spec: KernelSpec, wanted: str, run_id: str = "t") -> str:
    """What it has shown, once the text is among that."""
    shown, offset = "", 0
    with trio.fail_after(PATIENCE):
        while wanted not in shown:
            chunk = await registry.read_output(
                spec.kernel_id, run_id, offset=offset, max_bytes=65536, wait=PATIENCE
            )
            assert not chunk.run.ended, shown
            shown += text(list(chunk.records))
            offset = chunk.next_offset
    return shown


@pytest.mark.parametrize("sandboxed", [True, False])
async def test_a_shell_inside_of_the_kernel(site: Site, sandboxed: bool) -> None:
    site.sandboxed = sandboxed
    with trio.fail_after(2 * PATIENCE):
        async with site.agent() as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            await open_terminal(registry, spec)
            await registry.resize_terminal(spec.kernel_id, "t", 33, 99)
            await type_in(registry, spec, "stty size; tty; touch made; echo $BACKENDAI_KERNEL_ID.\r")
            shown = await shows(registry, spec, f"{spec.kernel_id}.")
            assert "33 99" in shown
            assert "/dev/pts/" in shown
            assert (site.scratch(spec) / "work" / "made").exists()
            await type_in(registry, spec, "exit 5\r")
            _, status = await read_all(registry, spec.kernel_id, "t")
            assert (status.state, status.exit_code, status.mode) == (RunState.FINISHED, 5, "terminal")
            await destroy(registry, site, spec)


async def test_the_next_agent_finds_the_terminal_and_what_was_typed(site: Site) -> None:
    with trio.fail_after(2 * PATIENCE):
        async with site.agent() as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            await open_terminal(registry, spec)
            line = "kept=yes; echo fi''rst\r"
            assert await type_in(registry, spec, line, 0) == len(line)
            await shows(registry, spec, "first")
        async with site.agent() as registry:
            await open_terminal(registry, spec)
            again = f"{line}echo kept=$kept\r"
            assert await type_in(registry, spec, again, 0) == len(again)
            assert (await shows(registry, spec, "kept=yes\r\n")).count("first") == 1
            await destroy(registry, site, spec)


async def test_the_agents_limit_of_runs_is_not_for_terminals(site: Site) -> None:
    with trio.fail_after(2 * PATIENCE):
        async with site.agent(run_timeout=0.2) as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            await open_terminal(registry, spec)
            await registry.start_run(
                spec.kernel_id, "q", RunOrder.of(1, RunSpec(code="import time; time.sleep(100)"))
            )
            assert (await read_all(registry, spec.kernel_id, "q"))[1].state is RunState.TIMEOUT
            await type_in(registry, spec, "echo al''ive\r")
            await shows(registry, spec, "alive")
            await destroy(registry, site, spec)


async def test_it_ends_with_its_kernel_and_its_output_stays(registry: KernelRegistry, site: Site) -> None:
    spec = site.spec()
    await registry.create_kernel(spec)
    await open_terminal(registry, spec)
    await type_in(registry, spec, "echo la''st\r")
    await shows(registry, spec, "last")
    await run(registry, spec, "q", "print('printed')")
    assert (await registry.files(spec.kernel_id).log(None, 1 << 20)).data == b"printed\n"
    await registry.destroy_kernel(spec.kernel_id, 1, "user-requested")
    await ended(registry, spec.kernel_id)
    records, status = await read_all(registry, spec.kernel_id, "t")
    assert (status.state, status.reason) == (RunState.LOST, "user-requested")
    assert "last" in text(records)
    for call in (
        partial(type_in, registry, spec, "x"),
        partial(registry.resize_terminal, spec.kernel_id, "t", 1, 1),
    ):
        with pytest.raises(AgentRefusal) as refused:
            await call()
        assert refused.value.code == "no-terminal"


async def test_there_are_not_too_many(registry: KernelRegistry, site: Site) -> None:
    spec = site.spec()
    await registry.create_kernel(spec)
    for number in range(16):
        await open_terminal(registry, spec, f"t{number}")
    with pytest.raises(AgentRefusal) as refused:
        await open_terminal(registry, spec, "one-more")
    assert refused.value.code == "too-many"
    await registry.interrupt_run(spec.kernel_id, "t0")
    await read_all(registry, spec.kernel_id, "t0")
    await open_terminal(registry, spec, "one-more")
    await destroy(registry, site, spec)
