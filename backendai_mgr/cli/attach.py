"""`attach`: be at a run that somebody else started."""

import signal
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import trio

from . import options
from .client import PATIENCE, find_target, open_client
from .errors import CliError, told
from .following import Follower
from .runstream import exit_code_of
from .showing import stop_writing

_AT_WORK = ("running", "waiting-input")


@click.command()
@options.data_dir
@click.option("--from-now", is_flag=True, help="Leave out what the run has written until now.")
@click.argument("name")
@click.argument("run_id", metavar="[RUN]", required=False)
def attach(data_dir: Path | None, from_now: bool, name: str, run_id: str | None) -> Any:
    """Follow what the session NAME runs now, or its run with the id RUN, and answer what it asks.

    Exits with the run's exit code. Ctrl-C interrupts the run; a second one leaves.
    """
    return partial(_attach, data_dir, from_now, name, run_id)


async def _attach(data_dir: Path | None, from_now: bool, name: str, run_id: str | None) -> int:
    exit_code = 128 + signal.SIGINT
    with told():
        async with open_client(find_target(data_dir)) as client, trio.open_nursery() as nursery:
            path = f"/session/{quote(name, safe='')}/runs"
            if run_id is None:
                _, found = await client.call("GET", f"{path}?limit=100", patience=PATIENCE)
                run = next((run for run in found["runs"] if run["state"] in _AT_WORK), None)
                if run is None:
                    raise CliError(f"The session {name} runs nothing now.")
            else:
                _, run = await client.call("GET", f"{path}/{quote(run_id, safe='')}", patience=PATIENCE)
            follower = Follower(client, run["session_id"], run["run_id"])
            await nursery.start(_watch_signals, follower, nursery.cancel_scope)
            if run["prompt"] is not None:
                follower.look_for_prompt()
            try:
                exit_code = exit_code_of(await follower.follow(offset=run["end_offset"] if from_now else 0))
            except* BrokenPipeError:
                exit_code = stop_writing()
            nursery.cancel_scope.cancel()
    return exit_code


async def _watch_signals(
    follower: Follower, leave: trio.CancelScope, *, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGINT and not follower.interrupt.is_set():
                follower.interrupt.set()
            else:
                leave.cancel()
