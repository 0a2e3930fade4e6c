"""`cp` and `logs`: files of a session, and what it has written."""

import os
import stat
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import attrs
import click
import trio

from . import options
from .client import OCTETS, PATIENCE, Client, find_target, open_client
from .errors import ApiError, CliError, told

#: Bytes that travel at a time.
PIECE = 4 << 20
#: Seconds for one of them.
_TIMEOUT = 120.0
_LOG_TIMEOUT = 60.0

Advance = Callable[[int], None]


# ---------------------------------------------------------------- which files


@attrs.frozen
class Remote:
    """A path in a session; relative to its work folder, empty for that itself."""

    session: str
    path: str

    def __str__(self) -> str:
        return f"{self.session}:{self.path}"

    def __truediv__(self, name: str) -> "Remote":
        return Remote(self.session, f"{self.path.rstrip('/')}/{name}" if self.path else name)

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name

    @property
    def relative(self) -> str:
        """The path from the work folder on, empty for that itself."""
        return self.path.removeprefix("/home/work").strip("/")

    @property
    def parent(self) -> "Remote":
        """The folder that it is in."""
        folder = PurePosixPath(self.relative).parent.as_posix()
        return Remote(self.session, "" if folder == "." else folder)

    def url(self, **query: Any) -> str:
        path = self.path.removeprefix("/home/work").lstrip("/")
        base = f"/session/{quote(self.session, safe='')}/files/{quote(path)}"
        return f"{base}?{urlencode(query)}" if query else base


def parse_place(text: str) -> Remote | Path:
    """``NAME:PATH`` is in a session; what has a slash before the colon, or no colon, is here."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name or not name:
        return Path(text)
    if path.startswith("/") and path != "/home/work" and not path.startswith("/home/work/"):
        raise CliError(f"{text}: paths in a session are relative to /home/work, or begin with it.")
    return Remote(name, path)


@click.command()
@options.data_dir
@click.option("-r", "--recursive", is_flag=True, help="Also folders, with all files in them.")
@click.argument("source")
@click.argument("destination")
def cp(data_dir: Path | None, recursive: bool, source: str, destination: str) -> Any:
    """Copy a file into a session, or out of it: one side is NAME:PATH.

    PATH is relative to the session's work folder. A DESTINATION that is a folder takes the file's name.
    """
    return partial(_cp, data_dir, recursive, source, destination)


async def _cp(data_dir: Path | None, recursive: bool, source: str, destination: str) -> int:
    copy: Callable[[Client, bool, Progress], Awaitable[bool]]
    match parse_place(source), parse_place(destination):
        case Path() as here, Remote() as there:
            copy = partial(_upload, here, there)
        case Remote() as there, Path() as here:
            copy = partial(_download, there, here)
        case _:
            raise CliError("One side of a copy is NAME:PATH, a path in a session; the other is a path here.")
    with told(OSError), _progress() as progress:
        async with open_client(find_target(data_dir)) as client:
            return int(await copy(client, recursive, progress))


# ---------------------------------------------------------------- into a session


async def _upload(here: Path, there: Remote, client: Client, recursive: bool, progress: "Progress") -> bool:
    """Whether something was left out."""
    if _is_dir(here) and not recursive:
        raise CliError(f"{here} is a folder; copy it with -r.")
    if there.path in ("", "/home/work") or there.path.endswith("/") or await is_folder(client, there):
        there = Remote(there.session, there.path.rstrip("/")) / _own_name(here)
    if not _is_dir(here):
        await _put(client, here, there, progress)
        return False
    left_out = False
    for path in _walk(here):
        if stat.S_ISREG(path.lstat().st_mode):
            await _put(client, path, there / path.relative_to(here).as_posix(), progress)
        else:
            left_out = _leave_out(str(path))
    return left_out


def _walk(folder: Path) -> Iterator[Path]:
    """What is below the folder, except for folders."""
    for where, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(where, name))]
        for name in sorted(names + links):
            yield Path(where, name)


async def is_folder(client: Client, place: Remote) -> bool:
    """Whether there is a folder at this place."""
    try:
        response = await client.exchange("GET", place.url(length=0), patience=PATIENCE)
    except ApiError as error:
        if error.status == 404 and "path" in (error.problem.get("data") or {}):
            return False
        raise
    return bool(response.headers["Content-Type"] == "application/json")


async def _put(client: Client, here: Path, there: Remote, progress: "Progress") -> None:
    """Send a file in pieces, each again if its answer is lost; it is in place when all are there."""
    with here.open("rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise CliError(f"{here} is not a regular file.")
        advance = progress.begin(str(there), os.fstat(file.fileno()).st_size)
        upload, offset = uuid4().hex, 0
        piece = await trio.to_thread.run_sync(file.read, PIECE)
        while True:
            following = await trio.to_thread.run_sync(file.read, PIECE)
            final = "false" if following else "true"
            url = there.url(upload=upload, offset=offset, final=final)
            await client.exchange("PUT", url, piece, OCTETS, timeout=_TIMEOUT, patience=PATIENCE)
            offset += len(piece)
            advance(len(piece))
            if not following:
                return
            piece = following


# ---------------------------------------------------------------- out of a session


async def _download(there: Remote, here: Path, client: Client, recursive: bool, progress: "Progress") -> bool:
    """Whether something was left out."""
    if not await is_folder(client, there):
        target = here / there.name if _is_dir(here) else here
        await _get(client, there, target, progress)
        return False
    if not recursive:
        raise CliError(f"{there} is a folder; copy it with -r.")
    if _is_dir(here) and there.name:
        here = here / there.name
    left_out = False
    async for mode, place, names in _below(client, there, ()):
        if mode == "-":
            await _get(client, place, here.joinpath(*names), progress)
        elif mode == "d":
            here.joinpath(*names).mkdir(parents=True, exist_ok=True)
        else:
            left_out = _leave_out(str(place))
    return left_out


async def _below(
    client: Client, folder: Remote, names: tuple[str, ...]
) -> AsyncIterator[tuple[str, Remote, tuple[str, ...]]]:
    """(kind as `ls -l` shows it, place, names from the top) of the folder and of all that is below it."""
    yield "d", folder, names
    _, listing = await client.call("GET", folder.url())
    if listing["cut"]:
        raise CliError(f"{folder} has more than {len(listing['entries'])} files.")
    for entry in listing["entries"]:
        name, kind = entry["filename"], entry["mode"][0]
        if not _is_usable(name):
            kind = "?"
        if kind == "d":
            async for found in _below(client, folder / name, (*names, name)):
                yield found
        else:
            yield kind, folder / name, (*names, name)


def _is_usable(name: str) -> bool:
    """Whether a name from a session stays within our folder and can be asked for."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name not in ("", ".", "..") and "/" not in name


async def _get(client: Client, there: Remote, here: Path, progress: "Progress") -> None:
    """Fetch a file in pieces, each again if it is lost; it is in place when all are there."""
    draft = tempfile.NamedTemporaryFile(dir=here.parent, prefix=".cp-", delete=False)  # noqa: SIM115
    try:
        with draft:
            advance, tag, offset = None, None, 0
            while True:
                response = await client.exchange(
                    "GET", there.url(offset=offset, length=PIECE), timeout=_TIMEOUT, patience=PATIENCE
                )
                if advance is None:
                    tag, size = response.headers.get("X-File-Id"), int(response.headers["X-File-Size"])
                    advance = progress.begin(str(there), size)
                elif response.headers.get("X-File-Id") != tag:
                    raise CliError(f"{there} was replaced while it was copied.")
                await trio.to_thread.run_sync(draft.write, response.content)
                offset += len(response.content)
                advance(len(response.content))
                if offset >= size:
                    break
                if not response.content:
                    raise CliError(f"{there} was cut short while it was copied.")
        os.chmod(draft.name, 0o666 & ~_umask())
        os.replace(draft.name, here)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft.name)
        raise


def _is_dir(path: Path) -> bool:
    return path.is_dir()


def _own_name(path: Path) -> str:
    """Its last name, also of ``.``."""
    return os.path.basename(os.path.abspath(path))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _leave_out(what: str) -> bool:
    shown = what.encode(errors="backslashreplace").decode()
    click.echo(f"Left out: {shown} (not a regular file, or a name that is not UTF-8)", err=True)
    return True


# ---------------------------------------------------------------- progress


class Progress:
    """Nothing to see: standard error is no terminal."""

    def begin(self, name: str, size: int) -> Advance:
        """A file of *size* bytes begins; tell the result of each piece that is done."""
        return lambda count: None


class _Bars(Progress):
    def __init__(self, bars: Any) -> None:
        self._bars = bars

    def begin(self, name: str, size: int) -> Advance:
        from rich.markup import escape

        for task in self._bars.task_ids:  # one bar at a time
            self._bars.remove_task(task)
        task = self._bars.add_task(escape(name), total=size)

        def advance(count: int) -> None:
            self._bars.advance(task, count)

        return advance


@contextmanager
def _progress() -> Iterator[Progress]:
    """Bars on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    with Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bars:
        yield _Bars(bars)


# ---------------------------------------------------------------- logs


@click.command()
@options.data_dir
@click.argument("name")
def logs(data_dir: Path | None, name: str) -> Any:
    """Show what the session NAME (or its id) has written: its runs in order, at most the newest 10 MiB.

    Of a session that has ended the newest MiB is kept.
    """
    return partial(_logs, data_dir, name)


async def _logs(data_dir: Path | None, name: str) -> None:
    async with open_client(find_target(data_dir)) as client:
        # By id: the legacy call would take a name for the beginning of another.
        _, found = await client.call("GET", f"/session/{quote(name, safe='')}/why")
        _, answer = await client.call("GET", f"/session/{found['session_id']}/logs", timeout=_LOG_TIMEOUT)
    click.echo(answer["result"]["logs"], nl=False)
