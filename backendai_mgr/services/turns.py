"""Loops that one worker of the cluster runs for all. Others wait until it is their turn."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

import trio

from ..runtime.supervise import supervise
from .ports import StoreUnavailable, Turns

log = logging.getLogger(__name__)

RETRY = 1.0


async def run_in_turn(turns: Turns, loops: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
    """For ever: wait for the turn, and run the *loops* for as long as it lasts, each by itself."""
    while True:
        try:
            async with turns.take():
                log.info("this worker has the turn: %s", ", ".join(loops))
                async with trio.open_nursery() as nursery:
                    for name, loop in loops.items():
                        nursery.start_soon(partial(supervise, loop, name=name))
        except* StoreUnavailable as group:
            log.warning("the turn is lost: %s", group.exceptions[0])
        await trio.sleep(RETRY)
