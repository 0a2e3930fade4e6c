"""Configuration as text again: the file as it is written, or every key with where its value comes from.

Values of secret keys are hidden.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from .config import HostPort, KeyPath, fields_of, table_class
from .configfile import Reading, Schema, statements

HIDDEN = "********"

_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


def as_written(schema: Schema[Any], text: str) -> str:
    """The file's text, with `HIDDEN` for secrets."""
    secrets = {path for path, key in schema.keys.items() if key.secret}
    shown = []
    for _, statement, table, parsed in statements(text):
        masked = _masked(parsed, table, secrets)
        shown.append(statement if masked == parsed else "".join(_assignments(masked)))
    return "".join(shown)


def _masked(values: Mapping[str, Any], path: KeyPath, secrets: set[KeyPath]) -> dict[str, Any]:
    return {
        key: _masked(value, (*path, key), secrets)
        if isinstance(value, Mapping)
        else HIDDEN
        if (*path, key) in secrets and value
        else value
        for key, value in values.items()
    }


def _assignments(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield f"{toml_key(key)} = {toml_value(value)}\n"


def resolved(reading: Reading[Any]) -> str:
    """Every key with its value, and a comment that says where that is from; itself such a file, but for
    secrets. A key without a value is a comment."""
    schema = reading.schema
    lines = list(_table(reading, schema.cls, reading.config, (schema.main,), at_top=True))
    return "\n".join(lines).lstrip("\n") + "\n"


def _table(
    reading: Reading[Any], cls: type[Any], value: Any, path: KeyPath, *, at_top: bool = False
) -> Iterator[str]:
    heading = ".".join(map(toml_key, path))
    if value is None:
        yield f"\n#[{heading}]  # not set"
        return
    yield f"\n[{heading}]"
    tables = []
    for name, (field, hint) in fields_of(cls).items():
        inner = getattr(value, field.name)
        if table := table_class(hint):
            tables.append((table, inner, (name,) if at_top else (*path, name)))
            continue
        source = reading.sources.get((*path, name), "default")
        if inner is None:
            yield f"#{name} =  # {source}"
        else:
            shown = HIDDEN if not field.repr and inner else inner
            yield f"{name} = {toml_value(shown)}  # {_comment(source)}"
    for table, inner, place in tables:
        yield from _table(reading, table, inner, place)


def _comment(text: str) -> str:
    """A file's name may hold anything, a comment may not."""
    return text if text.isprintable() else ascii(text)


def toml_key(key: str) -> str:
    """The key as TOML writes it."""
    return key if _BARE.fullmatch(key) else _string(key)


def toml_value(value: Any) -> str:
    """The value as TOML writes it, from which reading makes the same again."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() | Path():
            return _string(str(value))
        case HostPort():
            try:
                same = type(value).parse(str(value)) == value
            except ValueError:
                same = False
            return _string(str(value)) if same else toml_value([value.host, value.port])
        case tuple() | list():
            return f"[{', '.join(map(toml_value, value))}]"
        case dict():
            pairs = (f"{toml_key(key)} = {toml_value(inner)}" for key, inner in value.items())
            return f"{{ {', '.join(pairs)} }}" if value else "{}"
    if attrs.has(type(value)):
        fields = fields_of(type(value)).items()
        given = {name: getattr(value, field.name) for name, (field, _) in fields}
        return toml_value({name: inner for name, inner in given.items() if inner is not None})
    return str(value)  # TOML's own dates and times


def _string(text: str) -> str:
    """JSON's text is TOML's, but for one control character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
