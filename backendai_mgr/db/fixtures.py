"""Fill tables from a fixture: ``{"table": [{"column": value, …}, …], …}``, in the order of its tables.

Rows that are there already stay as they are, so that a fixture can be applied again and again.
"""

import json
import os
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import asyncpg

from ..domain.errors import InvalidParameters
from ..domain.passwords import hash_password, is_hashed
from ..runtime.resources import resource
from .pool import Conn

Row = Mapping[str, Any]
Document = Mapping[str, Sequence[Row]]


def example(name: str) -> Document:
    """A fixture of the package: "example-keypairs" or "example-resource-presets"."""
    document: Document = json.loads(resource(f"conf/fixtures/{name}.json").read_text("utf-8"))
    return document


COLUMNS = """
SELECT table_name::text, array_agg(column_name::text) FROM information_schema.columns
 WHERE table_schema = current_schema() GROUP BY table_name
"""

KNOWN_USERS = "SELECT email FROM users WHERE email = ANY($1::text[])"


async def populate(conn: Conn, document: Document) -> dict[str, int]:
    """Insert what is missing; returns the number of new rows by table.

    Runs in the caller's transaction (`Database.run`). `InvalidParameters` names the table or column that does
    not exist or whose value does not fit. Plain passwords of new users are hashed.
    """
    columns = {table: set(names) for table, names in await conn.fetch(COLUMNS)}
    inserted = {}
    for table, rows in document.items():
        if table not in columns:
            raise InvalidParameters(f"the fixture names an unknown table: {table}", {table: "unknown table"})
        for row in rows:
            if unknown := sorted(set(row) - columns[table]):
                raise InvalidParameters(
                    f"the fixture names an unknown column: {table}.{unknown[0]}",
                    {f"{table}.{name}": "unknown column" for name in unknown},
                )
        if table == "users":
            rows = await _new_users(conn, rows)
        inserted[table] = await _insert(conn, table, rows)
    return inserted


async def _insert(conn: Conn, table: str, rows: Sequence[Row]) -> int:
    """Rows of equal columns go in together; columns that a row does not name get their defaults."""
    count = 0
    for names, group in groupby(rows, key=_names):
        listed = ", ".join(f'"{name}"' for name in names)
        # The names were found in the catalogue; PostgreSQL itself turns JSON into the columns' types.
        statement = (
            f'INSERT INTO "{table}" ({listed}) SELECT {listed}'
            f' FROM jsonb_populate_recordset(NULL::"{table}", $1::jsonb) ON CONFLICT DO NOTHING'
        )
        try:
            status = await conn.execute(statement, list(group))
        except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
            raise InvalidParameters(f"a row of {table} does not fit: {error}", {table: str(error)}) from error
        count += int(status.rpartition(" ")[2])
    return count


def _names(row: Row) -> tuple[str, ...]:
    return tuple(row)


async def _new_users(conn: Conn, rows: Sequence[Row]) -> list[Row]:
    """The users not yet there, with hashed passwords; hashing is slow, so only theirs are."""
    emails = [row["email"] for row in rows if isinstance(row.get("email"), str)]
    known = {email for (email,) in await conn.fetch(KNOWN_USERS, emails)}
    return [_hashed(row) for row in rows if row.get("email") not in known]


def _hashed(row: Row) -> Row:
    password = row.get("password")
    if not isinstance(password, str) or is_hashed(password):
        return row
    return {**row, "password": hash_password(password, os.urandom(16))}
