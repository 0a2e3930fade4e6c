"""Batch runs, answers and completions by an agent's registry over real shims."""

import pytest

from backendai_mgr.domain.status import RunState
from backendai_mgr.wire.rpc import AgentRefusal, RunOrder, RunSpec

from .harness import PATIENCE, run, text


@pytest.fixture
async def kernel(registry, site):
    spec = site.spec()
    await registry.create_kernel(spec)
    return spec


async def begin(registry, kernel, run_id, body):
    return await registry.start_run(kernel.kernel_id, run_id, RunOrder.of(1, body))


async def poll(registry, kernel, run_id):
    return await registry.poll_run(kernel.kernel_id, run_id, wait=PATIENCE, max_bytes=65536)


async def test_a_poll_ends_with_each_step(registry, kernel):
    await begin(registry, kernel, "r", RunSpec(mode="batch", build="echo b", exec="echo e; exit 3"))
    clean, build, last = [await poll(registry, kernel, "r") for _ in range(3)]
    assert [record.stream for record in clean.records] == ["step"]
    assert text(build.records) == "b\n"
    assert build.records[-1].stream == "step"
    assert text(last.records) == "e\n"
    assert (last.run.state, last.run.exit_code) == (RunState.FINISHED, 3)


async def test_a_star_is_the_image_s_own_command(registry, site, kernel):
    (site.scratch(kernel) / "work" / "main.py").write_text("print('main')")
    await begin(registry, kernel, "r", RunSpec(mode="batch", clean="*", build="*", exec="*"))
    polls = [await poll(registry, kernel, "r") for _ in range(3)]
    assert text(polls[2].records) == "main\n"
    assert polls[2].run.exit_code == 0


async def test_a_poll_ends_at_a_prompt_which_is_answered_once(registry, kernel):
    await begin(registry, kernel, "r", RunSpec(code="print(input())"))
    asked = (await poll(registry, kernel, "r")).run.prompt
    answered = await registry.answer_run(kernel.kernel_id, "r", asked.offset, "yes")
    assert answered.prompt is None
    with pytest.raises(AgentRefusal, match="no-prompt"):
        await registry.answer_run(kernel.kernel_id, "r", asked.offset, "no")
    # The reply may have been lost: the same answer is known again, also after the end.
    await registry.answer_run(kernel.kernel_id, "r", asked.offset, "yes")
    assert text((await poll(registry, kernel, "r")).records) == "yes\n"
    assert (await registry.answer_run(kernel.kernel_id, "r", asked.offset, "yes")).ended


async def test_code_is_completed(registry, kernel):
    await run(registry, kernel, "r", "some_name = 1")
    assert await registry.complete(kernel.kernel_id, "some_n", 6) == ["some_name"]
