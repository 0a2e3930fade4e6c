"""`run`: code in, output out as it comes, the code's exit code at the end."""

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import click
import trio

from ..runtime.config import parse_duration
from . import options
from .client import PATIENCE, Client, find_target, open_client
from .errors import ApiError, Away, CliError, told
from .following import Follower
from .runstream import RunEnd, exit_code_of
from .showing import stop_writing

#: After so many seconds of waiting a terminal is told what for, and again when that changes.
_SAY_WHY = 2.0
#: Seconds for the last requests of a command that is left.
_FAREWELL = 20.0
_FAREWELL_HURRIED = 3.0


@attrs.frozen(kw_only=True)
class _Job:
    """What to run (in the body of the request) and where. Without a name the session is new and ours."""

    what: dict[str, str | None]
    image: str
    session: str | None
    keep: bool
    timeout: float | None


def _seconds(_: click.Context, __: click.Parameter, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_duration(float(text) if text.replace(".", "", 1).isdecimal() else text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@options.data_dir
@click.option("--image", default="python", show_default=True, help="What the session runs.")
@click.option("--session", metavar="NAME", help="Run in this session; it is created if there is none.")
@click.option("--keep", is_flag=True, help="Leave a session that this command created.")
@click.option(
    "-f", "--file", "path", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Code to run."
)
@click.option("--timeout", callback=_seconds, help="Interrupt the code after so many seconds (or 10m, 1h).")
@click.option("--batch", metavar="COMMAND", help="Run this command line instead of code (*: the image's).")
@click.option("--build", metavar="COMMAND", help="Run this first; when it fails, --batch is not run.")
@click.option("--clean", metavar="COMMAND", help="Run this before all else.")
@click.argument("code", required=False)
def run(
    data_dir: Path | None,
    path: Path | None,
    code: str | None,
    batch: str | None,
    build: str | None,
    clean: str | None,
    **rest: Any,
) -> Any:
    """Run CODE in a session and show its output as it comes.

    Without CODE (or as -) it is read from standard input. What the code writes to its standard output and
    error comes out at ours, what it asks for is read from our standard input, and this command exits with its
    exit code. Ctrl-C interrupts the code; a second
    one leaves. A connection that breaks is opened again, and nothing is lost or run twice.
    """
    if batch is not None or build is not None or clean is not None:
        if path is not None or code is not None:
            raise click.UsageError("Give code, or command lines (--batch, --build, --clean), not both.")
        what = {"mode": "batch", "clean": clean, "build": build, "exec": batch}
        return partial(_run, data_dir, _Job(what=what, **rest))
    if path is not None and code is not None:
        raise click.UsageError("Give CODE or --file, not both.")
    try:
        if path is not None:
            code = path.read_text("utf-8")
        elif code is None or code == "-":
            code = sys.stdin.buffer.read().decode()
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise CliError(f"The code is not UTF-8 text (byte {error.start}).") from error
    return partial(_run, data_dir, _Job(what={"code": code}, **rest))


async def _run(data_dir: Path | None, job: _Job) -> int:
    with told():
        async with open_client(find_target(data_dir)) as client, trio.open_nursery() as nursery:
            conductor = _Conductor(client, job)
            await nursery.start(conductor.watch_signals)
            await conductor.conduct()
            nursery.cancel_scope.cancel()
    return conductor.exit_code


class _Conductor:
    """One run from the session's creation to its end, and what Ctrl-C means at each moment of it."""

    def __init__(self, client: Client, job: _Job) -> None:
        self._client = client
        self._job = job
        self._name = job.session or f"run-{uuid4().hex[:12]}"
        self._run_id = uuid4().hex
        self._session_id: str | None = None
        #: There is, or may be, a session that this command has to remove.
        self._ours = False
        self._interrupt = trio.Event()
        self._leave = trio.CancelScope()
        self._hurried = False
        #: The exit status of this command; that of an interrupted one until the run has ended.
        self.exit_code = 128 + signal.SIGINT

    async def watch_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        """First Ctrl-C: interrupt the code, or leave while there is none. Second, or SIGTERM: leave."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGINT and self._session_id and not self._interrupt.is_set():
                    self._interrupt.set()
                else:
                    self._hurried = self._leave.cancel_called or self._session_id is not None
                    self._leave.cancel()

    async def conduct(self) -> None:
        """Run the code, and clean up whatever happens."""
        try:
            with self._leave:
                await self._open_session()
                self.exit_code = exit_code_of(await self._run_code())
        except* BrokenPipeError:
            self.exit_code = stop_writing()
        finally:
            if self._ours and not self._job.keep:
                await self._remove_session()

    async def _open_session(self) -> None:
        """Find or create the session, and wait until it runs."""
        async with trio.open_nursery() as nursery:
            if sys.stderr.isatty():
                nursery.start_soon(self._say_why)
            body = {"name": self._name, "image": self._job.image}
            made = await self._create(body)
            state = made["status"]
            while state in ("PENDING", "SCHEDULED", "PREPARING", "PULLING", "RESTARTING"):
                await trio.sleep(0.5)
                state = (await self._why(made["sessionId"]))["status"]
            nursery.cancel_scope.cancel()
        if state != "RUNNING":
            why = await self._why(made["sessionId"])
            raise CliError(f"The session did not start: {why['sentence']}")
        self._session_id = made["sessionId"]

    async def _create(self, body: dict[str, str]) -> Any:
        """The session of that name, created unless it is there: so a lost request may be sent again."""
        self._ours = self._job.session is None
        try:
            status, made = await self._client.call(
                "POST", "/session", body=body, timeout=None, patience=PATIENCE
            )
        except (ApiError, Away) as error:
            self._ours = self._ours and isinstance(error, Away) and error.sent
            raise
        self._ours = self._ours or status == 201
        return made

    async def _why(self, session_id: str) -> Any:
        return (await self._client.call("GET", f"/session/{session_id}/why", patience=PATIENCE))[1]

    async def _say_why(self) -> None:
        said = ""
        while True:
            await trio.sleep(_SAY_WHY)
            try:
                _, why = await self._client.call("GET", f"/session/{self._name}/why")
            except (ApiError, Away):
                continue  # not stored yet, or the manager is away, which whoever creates it sees to
            if why["sentence"] != said:
                said = why["sentence"]
                click.echo(f"Waiting: {said}", err=True)

    async def _run_code(self) -> RunEnd:
        """Start the run, exactly once whatever happens to the connection, and show all of its output."""
        assert self._session_id is not None
        path = f"/session/{self._session_id}/runs/{self._run_id}"
        body = {"timeout": self._job.timeout} | self._job.what
        await self._client.call("PUT", path, body=body, patience=PATIENCE)
        follower = Follower(self._client, self._session_id, self._run_id)
        follower.interrupt = self._interrupt
        return await follower.follow()

    async def _remove_session(self) -> None:
        """End the session that we made. A failure is told but changes nothing of the run's result."""
        wait = _FAREWELL_HURRIED if self._hurried else _FAREWELL
        with trio.move_on_after(wait, shield=True) as farewell:
            try:
                reference = self._session_id or self._name
                forced = "" if self._session_id else "?forced=true"
                await self._client.call("DELETE", f"/session/{reference}{forced}", patience=wait)
            except ApiError as error:
                if error.status != 404:
                    click.echo(f"The session {self._name} was not removed: {error}", err=True)
            except CliError as error:
                click.echo(f"The session {self._name} was not removed: {error}", err=True)
        if farewell.cancelled_caught:
            click.echo(
                f"The session {self._name} may still be there: backendai-mgr rm {self._name}", err=True
            )
