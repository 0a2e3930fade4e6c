"""Work on the database itself, for operators: the schema and fixtures."""

from collections.abc import Mapping
from typing import Any

from ..db.fixtures import populate
from ..db.pool import open_database
from ..db.schema import SchemaMismatch, ensure_schema
from ..domain.errors import InvalidParameters
from ..services.ports import StoreUnavailable
from .config import DatabaseConfig

__all__ = ["InvalidParameters", "SchemaMismatch", "StoreUnavailable", "make_schema", "populate_fixture"]


async def make_schema(config: DatabaseConfig) -> bool:
    """Make the tables in an empty database; False when they are there already.

    `SchemaMismatch` when the database is not ours or of another version, `StoreUnavailable` when it is away.
    """
    async with open_database(config.parameters) as database:
        return await database.run(ensure_schema)


async def populate_fixture(config: DatabaseConfig, document: Mapping[str, Any]) -> Mapping[str, int]:
    """Insert a fixture's rows where they are not there yet; the number of new rows by table.

    `InvalidParameters` names what does not fit; then nothing is inserted.
    """
    async with open_database(config.parameters) as database:
        return await database.run(lambda conn: populate(conn, document))
