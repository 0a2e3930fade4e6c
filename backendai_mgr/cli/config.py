"""Reading the configuration for a command; `config`: what is wrong with it, and what is in force."""

import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from ..runtime.config import ConfigError, Problem, dotted, find_config
from ..runtime.configfile import Reading, Schema, Setting, read_file
from ..runtime.configshow import as_written, resolved
from . import options
from .errors import CliError, told

_Config = TypeVar("_Config")

_ROLES = ("manager", "agent")

_role = click.argument("role", required=False, type=click.Choice(_ROLES))


@click.group()
def config() -> None:
    """Check and show manager.toml and agent.toml."""


@config.command()
@options.config_file
@click.option("--connect", is_flag=True, help="Look at the manager's database too.")
@_role
def check(config_path: Path | None, connect: bool, role: str | None) -> Any:
    """Tell everything that is wrong with a configuration, as this account would find it when it starts.

    The file is the manager's or the agent's by its name, or as you say; without one, that of the usual
    places. The environment counts. Exits with 1 when something is wrong.
    """
    return partial(_check, config_path, connect, _role_of(config_path, role))


async def _check(path: Path | None, connect: bool, role: str) -> int:
    schema, examine = _known(role)
    if connect and role != "manager":
        raise CliError("Only the manager has a database: leave out --connect.")
    try:
        reading = read_file(schema, path)
    except ConfigError as error:
        click.echo(error)
        return 1
    problems = list(reading.problems)
    if reading.config is not None:
        found = [problem for problem in examine(reading.config) if problem.path not in reading.wrong]
        problems += map(reading.sentence, found)
        if connect and not {place for place in reading.wrong if place[0] == "db"}:
            problems += await _look_at_database(reading, reading.config.db)
    for warning in (*reading.warnings, *_exposed(reading)):
        click.echo(f"warning: {warning}")
    for problem in problems:
        click.echo(problem)
    if problems:
        return 1
    if reading.path is not None:
        click.echo(f"{reading.path} is good.")
    else:
        click.echo(f"There is no {schema.file_name}; the defaults are good.")
    return 0


async def _look_at_database(reading: Reading[Any], database: Any) -> list[str]:
    """Say what is there; sentences of what is wrong with it."""
    from ..app.admin import StoreUnavailable, inspect_database

    where = database.addr if database.socket_dir is None else database.socket_dir
    place = ("db", "addr" if database.socket_dir is None else "socket-dir")
    try:
        found = await inspect_database(database)
    except StoreUnavailable as error:
        return [reading.sentence(Problem(place, f": {str(error).removesuffix('.')}"))]
    if found.problem:
        return [reading.sentence(Problem(place, f": {found.problem}"))]
    version = ".".join(map(str, found.server))
    click.echo(f"PostgreSQL {version} answers at {where}; the database {database.name} has {found.state}.")
    return []


def _exposed(reading: Reading[Any]) -> Iterator[str]:
    """Secrets in a file that everybody may read."""
    if reading.path is None or not reading.path.stat().st_mode & stat.S_IROTH:
        return
    for path, key in reading.schema.keys.items():
        if key.secret and reading.sources.get(path, "").startswith(f"{reading.path}:"):
            yield f"{reading.sources[path]}: `{dotted(path)}` can be read by every account (chmod 640)."


@config.command()
@options.config_file
@click.option(
    "--resolved", "in_force", is_flag=True, help="Every key with its value in force and where that is from."
)
@_role
def show(config_path: Path | None, in_force: bool, role: str | None) -> None:
    """Print a configuration file, with its secrets hidden.

    The file is the manager's or the agent's by its name, or as you say; without one, that of the usual
    places. With --resolved the environment counts as well, and what is printed is a configuration file again.
    """
    schema, _ = _known(_role_of(config_path, role))
    with told(ConfigError):
        reading = read_file(schema, config_path)
        if in_force:
            reading.checked()
    where = reading.path or f"There is no {schema.file_name}: what is not said here has its default."
    click.echo(f"# {where}")
    click.echo(resolved(reading) if in_force else as_written(schema, reading.text), nl=False)


def read_for(
    schema: Schema[_Config],
    data_dir: Path | None,
    config_path: Path | None,
    given: Sequence[Setting] = (),
) -> Reading[_Config]:
    """The file named on the command line, the one that `up` wrote into *data_dir*, or the one found.

    What `up` wrote says all: variables are not for `up`, which has options.
    """
    if config_path is None and data_dir is not None:
        return read_file(schema, data_dir / "etc" / schema.file_name, environ={}, given=given)
    return read_file(schema, config_path, given=given)


def _role_of(path: Path | None, role: str | None) -> str:
    """Whose file it is: as somebody said, else by its name. The manager's is looked for first."""
    if role is not None:
        return role
    path = path or find_config("manager.toml") or find_config("agent.toml")
    if path is None:
        return "manager"
    named = [known for known in _ROLES if known in path.name]
    if len(named) != 1:
        raise CliError(f"Say whose file {path} is: add `manager` or `agent` to the command.")
    return named[0]


def _known(role: str) -> tuple[Schema[Any], Callable[[Any], Iterable[Problem]]]:
    """What the file may hold, and what examines it on this machine."""
    if role == "manager":
        from ..app.checks import manager_problems
        from ..app.config import SCHEMA as MANAGER

        return MANAGER, manager_problems
    from ..agent.checks import agent_problems
    from ..agent.config import SCHEMA as AGENT

    return AGENT, agent_problems
