"""`schema` and `fixture`: preparing a database."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..app.config import SCHEMA, DatabaseConfig
from ..runtime.config import ConfigError
from . import options
from .config import read_for
from .errors import CliError, told


@click.group()
def schema() -> None:
    """Prepare the database."""


@schema.command()
@options.data_dir
@options.config_file
def oneshot(data_dir: Path | None, config_path: Path | None) -> Any:
    """Make all tables in an empty database; nothing changes where they are up to date."""
    return partial(_oneshot, data_dir, config_path)


async def _oneshot(data_dir: Path | None, config_path: Path | None) -> None:
    from ..app.admin import SchemaMismatch, StoreUnavailable, make_schema

    database = _database(data_dir, config_path)
    with told(SchemaMismatch, StoreUnavailable):
        made = await make_schema(database)
    click.echo("The tables are made." if made else "The tables are up to date.")


@click.group()
def fixture() -> None:
    """Load rows from a file into the database."""


@fixture.command("populate")
@options.data_dir
@options.config_file
@click.argument("file", type=click.File(encoding="utf-8"))
def populate(data_dir: Path | None, config_path: Path | None, file: Any) -> Any:
    """Insert the rows of FILE (JSON: table name to rows) that are not there yet."""
    try:
        document = json.load(file)
    except ValueError as error:
        raise CliError(f"{file.name} is not JSON: {error}.") from error
    if not isinstance(document, dict) or not all(isinstance(rows, list) for rows in document.values()):
        raise CliError(f"{file.name} must be an object of table names, each with a list of rows.")
    return partial(_populate, data_dir, config_path, document)


async def _populate(data_dir: Path | None, config_path: Path | None, document: dict[str, Any]) -> None:
    from ..app.admin import InvalidParameters, StoreUnavailable, populate_fixture

    database = _database(data_dir, config_path)
    with told(InvalidParameters, StoreUnavailable):
        inserted = await populate_fixture(database, document)
    for table, count in inserted.items():
        click.echo(f"{table}: {count} new")


def _database(data_dir: Path | None, config_path: Path | None) -> DatabaseConfig:
    """The database of the configuration file, or of the local system of *data_dir*."""
    with told(ConfigError):
        return read_for(SCHEMA, data_dir, config_path).checked().db
