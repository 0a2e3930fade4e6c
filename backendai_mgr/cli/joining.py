"""`join-token`: what lets an agent of another machine join."""

import socket
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click

from ..app.config import SCHEMA, ManagerConfig
from ..runtime.config import ConfigError, Seconds, parse_duration
from . import options
from .config import read_for
from .errors import told

#: Where `agent` looks for a token that is not on its command line.
TOKEN_VARIABLE = "BACKENDAI_MGR_JOIN_TOKEN"
#: The longest life of a token, seconds.
_LONGEST = parse_duration("30d")


def _duration(_: click.Context, __: click.Parameter, given: str) -> Seconds:
    try:
        seconds = parse_duration(float(given) if given.replace(".", "", 1).isdecimal() else given)
    except ValueError as error:
        raise click.BadParameter(f"{error}") from error
    if not 1 <= seconds <= _LONGEST:
        raise click.BadParameter("a token lives from 1 second to 30 days")
    return seconds


@click.command()
@options.data_dir
@options.config_file
@click.option("--scaling-group", default="default", show_default=True, help="Where the agents are to work.")
@click.option(
    "--expires",
    "lifetime",
    default="1h",
    show_default=True,
    callback=_duration,
    help="How long the token can be used: seconds, or a text such as 90m or 2d.",
)
@click.option(
    "--uses",
    type=click.IntRange(1, 100_000),
    default=1,
    show_default=True,
    help="How many agents may use it.",
)
def join_token(data_dir: Path | None, config_path: Path | None, **wishes: Any) -> Any:
    """Print a new token that lets agents of other machines join this cluster.

    Run it where the manager runs. The token alone goes to standard output; the rest says what to do with it.
    """
    return partial(_join_token, data_dir, config_path, **wishes)


async def _join_token(
    data_dir: Path | None, config_path: Path | None, *, scaling_group: str, lifetime: Seconds, uses: int
) -> None:
    from ..app.admin import NotFound, SchemaMismatch, StoreUnavailable, make_join_token

    with told(ConfigError):
        config = read_for(SCHEMA, data_dir, config_path).checked()
    with told(NotFound, SchemaMismatch, StoreUnavailable):
        token = await make_join_token(config.db, scaling_group=scaling_group, lifetime=lifetime, uses=uses)
    click.echo(token)
    click.echo(
        f"\nOn the agent's machine, within {_spoken(lifetime)}:\n\n"
        f"  {TOKEN_VARIABLE}={token} backendai-mgr agent --join {_manager_url(config)}\n",
        err=True,
    )


def _manager_url(config: ManagerConfig) -> str:
    """Where agents reach the manager, as far as its own settings tell."""
    address = config.service_addr
    host = socket.getfqdn() if address.host in ("0.0.0.0", "::") else address.host
    scheme = "http" if config.tls is None else "https"
    return f"{scheme}://{attrs.evolve(address, host=host)}"


def _spoken(seconds: float) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit and seconds % unit == 0:
            count = int(seconds // unit)
            return f"{count} {name}{'s' if count > 1 else ''}"
    return f"{seconds:g} seconds"
