"""Waiting for what another process does, of which no event tells us."""

from collections.abc import Awaitable, Callable

import trio


async def eventually(happened: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it has happened; the caller's deadline bounds it."""
    while not await happened():  # noqa: ASYNC110
        await trio.sleep(0.05)
