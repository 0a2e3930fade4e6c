"""The pipes between a parent and its children."""

import os
import signal
import sys

import pytest
import trio

from backendai_mgr.runtime.lifeline import Lifeline, read_ready, report_ready, watch_lifeline


async def test_closing_the_lifeline_is_end_of_file() -> None:
    lifeline = Lifeline.open()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            said: list[str] = []

            async def watch() -> None:
                said.append(await watch_lifeline(os.dup(lifeline.child_fd)))

            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            lifeline.close()
    assert said == ["eof"]


async def test_the_byte_says_end() -> None:
    lifeline = Lifeline.open()
    lifeline.end()
    with trio.fail_after(5):
        assert await watch_lifeline(os.dup(lifeline.child_fd)) == "end"
    lifeline.close()


def test_ending_a_child_that_has_gone_is_no_error() -> None:
    lifeline = Lifeline.open()
    lifeline.close_child_end()
    lifeline.end()
    lifeline.close()
    lifeline.end()
    lifeline.close()


async def test_a_parent_that_is_killed_lets_go_of_the_lifeline() -> None:
    read, write = os.pipe()
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    parent = await trio.lowlevel.open_process(sleep, pass_fds=(write,))
    os.close(write)
    with trio.fail_after(10):
        parent.send_signal(signal.SIGKILL)
        assert await watch_lifeline(read) == "eof"
        await parent.wait()


async def test_what_a_child_reports_reaches_the_parent() -> None:
    read, write = os.pipe()
    report_ready(write, {"addr": "127.0.0.1:6001"})
    with trio.fail_after(5):
        assert await read_ready(read) == {"addr": "127.0.0.1:6001"}


async def test_a_child_that_ends_without_a_word_is_none() -> None:
    read, write = os.pipe()
    os.write(write, b'{"addr": "half')
    os.close(write)
    with trio.fail_after(5):
        assert await read_ready(read) is None


def test_reporting_to_a_parent_that_has_gone_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    report_ready(write, {})
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(write)
