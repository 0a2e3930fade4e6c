"""Supervised loops on a clock that jumps."""

import logging

import pytest
import trio
from trio.testing import MockClock

from backendai_mgr.runtime.supervise import Backoff, supervise


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(first=1, longest=30, quiet=60)
    assert [backoff.after(0.0) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]


def test_a_quiet_time_makes_the_delays_start_over() -> None:
    backoff = Backoff(first=1, longest=30, quiet=60)
    assert [backoff.after(lasted) for lasted in (0, 5, 59.9, 60, 0)] == [1, 2, 4, 1, 2]


async def test_a_loop_that_crashes_is_logged_and_started_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    starts = []

    async def loop() -> None:
        starts.append(trio.current_time())
        if len(starts) <= 3:
            raise ValueError(f"crash {len(starts)}")

    began = trio.current_time()
    with caplog.at_level(logging.ERROR):
        await supervise(loop, name="the loop")
    assert [start - began for start in starts] == pytest.approx([0, 1, 3, 7])
    assert [record.exc_info is not None for record in caplog.records] == [True] * 3
    assert all("the loop crashed" in record.getMessage() for record in caplog.records)


async def test_a_loop_that_returns_is_over() -> None:
    calls = 0

    async def loop() -> None:
        nonlocal calls
        calls += 1

    with trio.fail_after(5):
        await supervise(loop, name="once")
    assert calls == 1


async def test_cancellation_passes_through_without_a_restart(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    starts = 0

    async def loop() -> None:
        nonlocal starts
        starts += 1
        await trio.sleep_forever()

    with trio.move_on_after(10) as scope:
        await supervise(loop, name="sleeper")
    assert scope.cancelled_caught
    assert starts == 1
    assert caplog.records == []


async def test_a_crash_within_a_nursery_is_a_crash_too(autojump_clock: MockClock) -> None:
    starts = 0

    async def loop() -> None:
        nonlocal starts
        starts += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            if starts == 1:
                raise ValueError("inside")
            nursery.cancel_scope.cancel()

    await supervise(loop, name="nested")
    assert starts == 2
