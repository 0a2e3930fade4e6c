"""`runs` and `output`: what a session has run, and the bytes that came of it."""

import json
import signal
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import click
import trio

from ..wire.records import from_json
from . import options
from .client import PATIENCE, Client, find_target, open_client
from .contact import show_contact
from .errors import ApiError, told
from .runstream import exit_code_of, follow_run
from .showing import OWN, Screen, stop_writing
from .tables import age, duration, print_table, size

#: As many rows as one request may ask for.
_PAGE = 100
_GONE = 404


@click.command()
@options.data_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.argument("words", nargs=-1, required=True, metavar="NAME | rm NAME RUN...")
def runs(data_dir: Path | None, as_json: bool, words: tuple[str, ...]) -> Any:
    """List the runs of the session NAME, newest first; or remove RUNs that have ended, with their output.

    Their output can be read with `backendai-mgr output`.
    """
    match words:
        # No session is called `rm`: names have four letters or more.
        case ("rm", name, *run_ids) if run_ids and not as_json:
            return partial(_remove, data_dir, name, tuple(dict.fromkeys(run_ids)))
        case (name,) if name != "rm":
            return partial(_list, data_dir, name, as_json)
    raise click.UsageError("Give a session's NAME, or rm NAME and the RUNs to remove.")


async def _list(data_dir: Path | None, name: str, as_json: bool) -> None:
    async with open_client(find_target(data_dir)) as client, aclosing(_pages(client, name)) as pages:
        if as_json:
            async for page in pages:
                for run in page:
                    click.echo(json.dumps(run))
        else:
            titles = ("RUN", "STATE", "EXIT", "MODE", "AGE", "TOOK", "OUTPUT")
            print_table(titles, [_row(run) async for page in pages for run in page])


async def _pages(client: Client, name: str) -> AsyncGenerator[Sequence[dict[str, Any]], None]:
    """The session's runs, page by page, newest first."""
    query: dict[str, Any] = {"limit": _PAGE}
    while True:
        _, page = await client.call("GET", f"{_path(name)}?{urlencode(query)}", patience=PATIENCE)
        yield page["runs"]
        if not page.get("next"):
            return
        query["after"] = page["next"]


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    began, ended = run["started_at"], run["ended_at"]
    return (
        run["run_id"],
        run["state"],
        "-" if run["exit_code"] is None else str(run["exit_code"]),
        run["mode"],
        age(datetime.fromtimestamp(run["queued_at"], UTC)),
        "-" if began is None or ended is None else duration(ended - began),
        size(run["end_offset"]),
    )


async def _remove(data_dir: Path | None, name: str, run_ids: Sequence[str]) -> int:
    failed = False
    async with open_client(find_target(data_dir)) as client:
        for run_id in run_ids:
            try:
                await client.call("DELETE", _path(name, run_id), patience=PATIENCE)
            except ApiError as error:
                if not (error.status == _GONE and error.repeated):
                    failed = True
                    click.echo(f"Error: {run_id}: {error}", err=True)
                    continue
            click.echo(run_id)
    return int(failed)


@click.command()
@options.data_dir
@click.option("--offset", type=click.IntRange(min=0), default=0, metavar="N", help="Leave out N bytes.")
@click.option("--follow", is_flag=True, help="Wait for more until the run ends; exit with its exit code.")
@click.option("--stream", type=click.Choice(OWN), help="Only this one of its two streams.")
@click.argument("name")
@click.argument("run_id", metavar="RUN")
def output(
    data_dir: Path | None, offset: int, follow: bool, stream: str | None, name: str, run_id: str
) -> Any:
    """Write what the RUN of the session NAME has written: the same bytes, on the same streams.

    The offset counts the bytes of all its streams. Output that was not kept is told on standard error.
    """
    wanted = OWN if stream is None else (stream,)
    return partial(_output, data_dir, name, run_id, offset, follow, Screen(wanted))


async def _output(
    data_dir: Path | None, name: str, run_id: str, offset: int, follow: bool, screen: Screen
) -> int:
    exit_code = 128 + signal.SIGINT
    with told():
        async with open_client(find_target(data_dir)) as client, trio.open_nursery() as nursery:
            await nursery.start(_leave_when_told, nursery.cancel_scope)
            if sys.stderr.isatty():
                nursery.start_soon(show_contact, client.contact, client.target.endpoint, screen)
            try:
                if follow:
                    # By id: the name may get another session while the connection is away.
                    _, run = await client.call("GET", _path(name, run_id), patience=PATIENCE)
                    end = await follow_run(client, run["session_id"], run_id, screen.show, offset=offset)
                    exit_code = exit_code_of(end)
                else:
                    await _copy(client, _path(name, run_id), offset, screen)
                    exit_code = 0
            except* BrokenPipeError:
                exit_code = stop_writing()
            nursery.cancel_scope.cancel()
    return exit_code


async def _leave_when_told(scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
    """End at Ctrl-C or SIGTERM, which the run does not hear of."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel()


async def _copy(client: Client, path: str, offset: int, screen: Screen) -> None:
    """Show what there is now."""
    while True:
        _, piece = await client.call("GET", f"{path}/output?offset={offset}", patience=PATIENCE)
        await screen.show([from_json(record) for record in piece["records"]])
        if piece["finished"] or piece["next_offset"] <= offset:
            return
        offset = piece["next_offset"]


def _path(name: str, run_id: str | None = None) -> str:
    path = f"/session/{quote(name, safe='')}/runs"
    return path if run_id is None else f"{path}/{quote(run_id, safe='')}"
