"""`up`: the local mode on the command line."""

import signal
import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click
import trio

from ..app.children import ChildError
from ..app.local import LocalError, LocalOptions, Running, run_local
from ..app.pgfiles import PostgresError
from ..domain.addresses import is_local_host
from ..runtime.logging import LoggingConfig, setup_logging
from ..runtime.notify import Notifier
from ..runtime.paths import default_data_dir
from . import options
from .errors import told

#: Tables of the children's files that ``--set`` reaches.
SETTABLE = ("agent", "manager", "limits")


def _settings(_: click.Context, __: click.Parameter, given: Sequence[str]) -> dict[tuple[str, str], Any]:
    """``agent.pool-size=0`` and the like; what is no TOML value is text."""
    settings: dict[tuple[str, str], Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        table, dot, key = name.partition(".")
        if not (equals and dot and key) or table not in SETTABLE:
            raise click.BadParameter(
                f"{text!r} is not agent.KEY=VALUE, manager.KEY=VALUE or limits.KEY=VALUE"
            )
        try:
            settings[table, key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[table, key] = value
    return settings


@click.command()
@options.data_dir
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="Port; 0 takes a free one."
)
@click.option(
    "--agent-port", type=click.IntRange(0, 65535), help="Port of the agent.  [default: 6001, else a free one]"
)
@click.option(
    "--allow-unisolated", is_flag=True, help="Serve other machines although sessions are not isolated here."
)
@click.option(
    "--isolation",
    type=click.Choice(["auto", "required", "none"]),
    default="auto",
    show_default=True,
    help="Enclose sessions if that can be done here; start only if it can; or do not.",
)
@click.option("--network", is_flag=True, help="Let sessions use this machine's network.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="TABLE.KEY=VALUE",
    callback=_settings,
    help="A setting of the agent, the manager or its limits, as in conf/*.toml; repeatable.",
)
@click.option("-v", "--verbose", is_flag=True, help="Log what happens, not only what goes wrong.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def up(data_dir: Path | None, verbose: bool, log_format: Literal["text", "json"], **rest: Any) -> Any:
    """Run the whole system here, in the foreground: PostgreSQL, the manager and an agent.

    Everything is kept in one folder; start it again and your data is there. Ctrl-C ends all sessions and
    every process; a second one hurries.
    """
    logging = LoggingConfig(level="INFO" if verbose else "WARNING", format=log_format)
    chosen = LocalOptions(data_dir=data_dir or default_data_dir(), logging=logging, **rest)
    return partial(_up, chosen)


async def _up(chosen: LocalOptions) -> None:
    setup_logging(chosen.logging)
    stop, hurry, notifier = trio.Event(), trio.Event(), Notifier.taken()
    with told(LocalError, PostgresError, ChildError):
        async with trio.open_nursery() as nursery:
            # Before anything starts: a signal during the start stops in good order too.
            await nursery.start(_watch_signals, stop, hurry, notifier)
            await run_local(
                chosen,
                announce=partial(_announce, chosen, notifier),
                stop=stop.wait,
                hurry=hurry.wait,
            )
            nursery.cancel_scope.cancel()


async def _watch_signals(
    stop: trio.Event, hurry: trio.Event, notifier: Notifier, *, task_status: trio.TaskStatus[None]
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        task_status.started()
        async for _ in signals:
            if stop.is_set():
                hurry.set()
            else:
                notifier.stopping()
                stop.set()


def _announce(chosen: LocalOptions, notifier: Notifier, running: Running) -> None:
    """Say where it serves, with which keys, and one line to try. Standard output is flushed."""
    notifier.ready(f"Serving at {running.endpoint}")
    where = "" if chosen.data_dir == default_data_dir() else f" --data-dir {chosen.data_dir}"
    lines = [
        f"backendai-mgr serves at {running.endpoint}; Ctrl-C ends it and all its sessions.",
        "",
        "  export BACKEND_ENDPOINT_TYPE=api",
        f"  export BACKEND_ENDPOINT={running.endpoint}",
        f"  export BACKEND_ACCESS_KEY={running.access_key}",
        f"  export BACKEND_SECRET_KEY={running.secret_key}",
        "",
        f"Try, in another terminal:  backendai-mgr run{where} 'print(6 * 7)'",
    ]
    if not is_local_host(chosen.host) and not running.isolated:
        lines.insert(1, "Sessions are NOT isolated: whoever has the keys can do what this account can.")
    click.echo("\n".join(lines))
