"""What another process does, of which no event tells us."""

import os
from collections.abc import Awaitable, Callable

import trio


async def eventually(happened: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it has happened; the caller's deadline bounds it."""
    while not await happened():  # noqa: ASYNC110
        await trio.sleep(0.05)


def gone(pid: int) -> bool:
    """Whether there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
