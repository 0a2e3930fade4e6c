"""`ls` and `mv`, and what `rm` does to files: the work folder of a session, looked at and put in order."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from . import options
from .client import PATIENCE, Client, find_target, open_client
from .errors import ApiError, CliError
from .files import Remote, is_folder, parse_place
from .tables import age, print_table, size

#: Seconds for a folder with very much in it.
_REMOVAL = 600.0
_GONE = 404


def parse_remote(text: str) -> Remote:
    """``NAME:PATH``, or ``NAME`` for its work folder."""
    place = parse_place(text if ":" in text else f"{text}:")
    if not isinstance(place, Remote):
        raise CliError(f"{text}: give NAME:PATH, a path in the session NAME.")
    return place


@click.command()
@options.data_dir
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.argument("place", metavar="NAME[:PATH]")
def ls(data_dir: Path | None, as_json: bool, place: str) -> Any:
    """List the files in the session NAME, in its work folder or the folder PATH there."""
    return partial(_ls, data_dir, parse_remote(place), as_json)


async def _ls(data_dir: Path | None, place: Remote, as_json: bool) -> None:
    async with open_client(find_target(data_dir)) as client:
        entries, cut = await _entries(client, place)
    if as_json:
        for entry in entries:
            click.echo(json.dumps(entry))
    else:
        print_table(("MODE", "SIZE", "AGE", "NAME"), map(_row, entries))
    if cut:
        click.echo(f"Only {len(entries)} of the files are listed.", err=True)


async def _entries(client: Client, place: Remote) -> tuple[Sequence[dict[str, Any]], bool]:
    """What is in a folder, or the file itself; whether that is not all."""
    folder = place if await is_folder(client, place) else place.parent
    _, listing = await client.call("GET", folder.url(), patience=PATIENCE)
    entries = [entry for entry in listing["entries"] if folder is place or entry["filename"] == place.name]
    return entries, listing["cut"]


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    name = entry["filename"].encode(errors="backslashreplace").decode()
    shown = "".join(letter if letter.isprintable() else "?" for letter in name)
    return entry["mode"], size(entry["size"]), age(datetime.fromtimestamp(entry["mtime"], UTC)), shown


@click.command()
@options.data_dir
@click.option("-f", "--force", is_flag=True, help="Replace the file that has that path now.")
@click.argument("source", metavar="NAME:PATH")
@click.argument("destination", metavar="NAME:NEW")
def mv(data_dir: Path | None, force: bool, source: str, destination: str) -> Any:
    """Give a file or a folder in a session another path. Into a DESTINATION that is a folder it goes."""
    here, there = parse_remote(source), parse_remote(destination)
    if here.session != there.session:
        raise CliError("Files are moved within one session; between two, copy them with cp.")
    return partial(_mv, data_dir, here, there, force)


async def _mv(data_dir: Path | None, here: Remote, there: Remote, force: bool) -> None:
    async with open_client(find_target(data_dir)) as client:
        if there.path.endswith("/") or not there.relative or await is_folder(client, there):
            there = there / here.name
        query = {"rename": there.relative, **({"replace": "true"} if force else {})}
        try:
            await client.call("PATCH", here.url(**query), patience=PATIENCE)
        except ApiError as error:
            if not (error.status == _GONE and error.repeated):
                raise


async def remove(client: Client, place: Remote, *, recursive: bool) -> None:
    """Remove a file, or with *recursive* a folder; one that an earlier try has removed is no error."""
    if not place.relative:
        raise CliError("the work folder itself stays; name what is in it")
    query = {"recursive": "true"} if recursive else {}
    try:
        await client.call("DELETE", place.url(**query), timeout=_REMOVAL, patience=PATIENCE)
    except ApiError as error:
        if not (error.status == _GONE and error.repeated):
            raise
