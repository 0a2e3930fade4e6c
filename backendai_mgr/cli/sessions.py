"""`ps`, `rm`, `restart`, `why`: commands about sessions."""

import json
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import click
import trio

from ..domain.status import Status
from . import options
from .client import Client, find_target, open_client
from .errors import CliError, told
from .places import parse_remote, remove
from .tables import age, print_table

#: As many rows as one request may ask for.
_PAGE = 100
#: Seconds for the manager to see a session's end.
_END = 30.0
#: Seconds for a restart, which the manager gives up earlier than that.
_RESTART = 150.0


@click.command()
@options.data_dir
@click.option("-a", "--all", "everything", is_flag=True, help="Also sessions that have ended.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
def ps(data_dir: Path | None, everything: bool, as_json: bool) -> Any:
    """List your sessions, newest first."""
    return partial(_ps, data_dir, everything, as_json)


async def _ps(data_dir: Path | None, everything: bool, as_json: bool) -> None:
    sessions: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": _PAGE}
    if everything:
        query["status"] = ",".join(Status)
    async with open_client(find_target(data_dir)) as client:
        while True:
            _, page = await client.call("GET", f"/sessions?{urlencode(query)}")
            sessions += page["sessions"]
            if not page.get("next"):
                break
            query["after"] = page["next"]
    if as_json:
        for session in sessions:
            click.echo(json.dumps(session))
    else:
        print_table(("NAME", "STATUS", "IMAGE", "AGE", "ID"), map(_row, sessions))


def _row(session: dict[str, Any]) -> tuple[str, ...]:
    created = age(datetime.fromisoformat(session["created_at"]))
    return session["name"], session["status"], session["image"], created, session["id"]


@click.command()
@options.data_dir
@click.option("--force", is_flag=True, help="Also a session that is starting or ending (administrators).")
@click.option("-r", "--recursive", is_flag=True, help="Also folders, with all that is in them.")
@click.argument("names", nargs=-1, required=True, metavar="NAME[:PATH]...")
def rm(data_dir: Path | None, force: bool, recursive: bool, names: tuple[str, ...]) -> Any:
    """End the sessions with these NAMES (or ids), or remove the file PATH in the session NAME."""
    return partial(_rm, data_dir, force, recursive, names)


async def _rm(data_dir: Path | None, force: bool, recursive: bool, names: tuple[str, ...]) -> int:
    failed = False

    async def end(client: Client, name: str) -> None:
        nonlocal failed
        try:
            if ":" in name:
                await remove(client, parse_remote(name), recursive=recursive)
            else:
                await _end_session(client, name, force)
        except CliError as error:
            failed = True
            click.echo(f"Error: {name}: {error}", err=True)
        else:
            click.echo(name)

    with told():
        async with open_client(find_target(data_dir)) as client, trio.open_nursery() as nursery:
            for name in dict.fromkeys(names):
                nursery.start_soon(end, client, name)
    return int(failed)


async def _end_session(client: Client, name: str, force: bool) -> None:
    # By id: the legacy call would take a name for the beginning of another.
    _, found = await client.call("GET", f"/session/{quote(name, safe='')}/why")
    forced = "?forced=true" if force else ""
    await client.call("DELETE", f"/session/{found['session_id']}{forced}", timeout=_END)


@click.command()
@options.data_dir
@click.argument("name")
def restart(data_dir: Path | None, name: str) -> Any:
    """Start the session NAME (or id) anew. Its files and its runs' output stay, its variables are gone."""
    return partial(_restart, data_dir, name)


async def _restart(data_dir: Path | None, name: str) -> None:
    with told():
        async with open_client(find_target(data_dir)) as client:
            # By id: the legacy call would take a name for the beginning of another.
            _, found = await client.call("GET", f"/session/{quote(name, safe='')}/why")
            await client.call("PATCH", f"/session/{found['session_id']}", timeout=_RESTART)
    click.echo(name)


@click.command()
@options.data_dir
@click.option("--json", "as_json", is_flag=True, help="Also the data behind the sentence, as JSON.")
@click.argument("name")
def why(data_dir: Path | None, as_json: bool, name: str) -> Any:
    """Tell in a sentence what the session NAME waits for, or why it ended."""
    return partial(_why, data_dir, as_json, name)


async def _why(data_dir: Path | None, as_json: bool, name: str) -> None:
    async with open_client(find_target(data_dir)) as client:
        _, found = await client.call("GET", f"/session/{quote(name, safe='')}/why")
    click.echo(json.dumps(found) if as_json else f"{found['name']} is {found['status']}. {found['sentence']}")
