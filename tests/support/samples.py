"""The commented samples of conf/, held against the classes whose keys they show."""

import re
from collections.abc import Collection
from typing import Any

from backendai_mgr.runtime.config import KeyPath, fields_of, parse_toml, table_class, without_none
from backendai_mgr.runtime.configfile import Schema, lines_of, read
from backendai_mgr.runtime.resources import resource

_COMMENTED = re.compile(r"^#(?=\[[a-z.-]+\]$|[a-z-]+ = )", re.MULTILINE)


def check_sample(schema: Schema[Any], *, examples: Collection[KeyPath], absent: Collection[KeyPath]) -> None:
    """The sample shows every key of the file once, in its table, with its default, and no other key.

    *examples* are keys whose default depends on the machine, or that have none: what is shown for them is
    good. *absent* are keys that nobody writes by hand.
    """
    text = resource(f"conf/{schema.file_name}").read_text()
    written = read(schema, parse_toml(text, schema.file_name))
    assert written.checked() == schema.cls(), "the sample as it is changes something"

    whole = _COMMENTED.sub("", text)
    shown = [path for path in lines_of(whole) if path in schema.keys]
    assert shown == [path for path in schema.keys if path not in absent]

    reading = read(schema, parse_toml(whole, schema.file_name))
    assert reading.problems == ()
    for path in shown:
        if path not in examples:
            assert value_of(schema, reading.config, path) == default_of(schema, path), path


def value_of(schema: Schema[Any], config: Any, path: KeyPath) -> Any:
    """The value of a key in a configuration."""
    for name in _names(schema, path):
        config = getattr(config, name.replace("-", "_"))
    return config


def default_of(schema: Schema[Any], path: KeyPath) -> Any:
    """The default of a key in its class."""
    cls: Any = schema.cls
    *tables, key = _names(schema, path)
    for table in tables:
        cls = table_class(without_none(fields_of(cls)[table][1]))
    default = fields_of(cls)[key][0].default
    return default.factory() if hasattr(default, "factory") else default


def _names(schema: Schema[Any], path: KeyPath) -> KeyPath:
    return path[1:] if path[0] == schema.main else path
