"""A PostgreSQL per test run, and for each test a database of its own with the example accounts."""

from collections.abc import AsyncIterator, Iterator

import pytest
import trio

from backendai_mgr.db.fixtures import example, populate
from backendai_mgr.db.pool import Database, open_database
from tests.support.postgres import TemporaryPostgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[TemporaryPostgres]:
    with TemporaryPostgres() as server:
        yield server


@pytest.fixture(scope="session")
def template(postgres: TemporaryPostgres) -> str:
    """A database with schema and example accounts, to copy."""
    parameters = postgres.database()

    async def fill() -> None:
        async with open_database(parameters) as db:
            await db.run(lambda conn: populate(conn, example("example-keypairs")))

    trio.run(fill)
    return parameters["database"]


@pytest.fixture
def parameters(postgres: TemporaryPostgres, template: str) -> Iterator[dict[str, str]]:
    """asyncpg's parameters of a fresh database with the example accounts."""
    made = postgres.database(template)
    yield made
    postgres.drop(made)


@pytest.fixture
async def db(parameters: dict[str, str]) -> AsyncIterator[Database]:
    async with open_database(parameters) as database:
        yield database
