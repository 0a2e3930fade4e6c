"""Reading configuration: TOML text in, frozen attrs values out, one clear sentence when something is wrong.

A configuration class is a frozen attrs class; its field ``heartbeat_timeout`` is the key
``heartbeat-timeout`` of its table, and a field whose type is another attrs class is a table within it.
Nothing is guessed: unknown keys, missing keys and values of the wrong kind are refused by dotted name. A
validator of such a class begins its message with the key's name: "bind must be …".
"""

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NewType, Self, TypeVar

import attrs

#: A length of time in seconds; written as a number, or a number with one of the suffixes m h d w mo yr.
Seconds = NewType("Seconds", float)
#: A size in bytes; written as an integer, or a number with one of the suffixes k m g t p e (powers of 1024).
ByteSize = NewType("ByteSize", int)

#: Where a key is: the tables that it is in, and its own name.
KeyPath = tuple[str, ...]

T = TypeVar("T")

_WRONG = object()

_MINUTE = 60.0
_UNITS = {
    "": 1.0,
    "m": _MINUTE,
    "h": 60 * _MINUTE,
    "d": 1440 * _MINUTE,
    "w": 7 * 1440 * _MINUTE,
    "mo": 30 * 1440 * _MINUTE,
    "yr": 365 * 1440 * _MINUTE,
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(mo|yr|m|h|d|w)?", re.ASCII)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmgtpe])?", re.ASCII)
_TRUE = frozenset({"yes", "true", "1", "on", "y", "t"})
_FALSE = frozenset({"no", "false", "0", "off", "n", "f"})


class ConfigError(Exception):
    """The configuration cannot be used; ``args`` are sentences for the person who wrote it."""

    def __str__(self) -> str:
        return " ".join(map(str, self.args))


@attrs.frozen
class Problem:
    """What is wrong with a key: ``says`` goes on after its name, and needs a full stop."""

    path: KeyPath
    says: str

    def sentence(self, name: str | None = None) -> str:
        """The sentence, about the key or about *name*, where its value comes from."""
        name = name or dotted(self.path)
        return f"`{name}`{self.says}." if name else f"{self.says.removeprefix(': ')}."


@attrs.frozen
class HostPort:
    """An address; the host is a name or an IP. Written "host:port", [host, port] or {host = …, port = …}."""

    host: str
    port: int

    #: 0 asks the system for any free port; only `ListenAddress` may do that.
    LOWEST_PORT: typing.ClassVar[int] = 1

    def __attrs_post_init__(self) -> None:
        if not self.host:
            raise ValueError("the host is empty")
        if not self.LOWEST_PORT <= self.port <= 65535:
            raise ValueError(f"the port must be {self.LOWEST_PORT} to 65535, not {self.port}")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, value: object) -> Self:
        """The address that *value* spells in one of the three forms; ValueError otherwise."""
        match value:
            case str():
                host, colon, port = value.rpartition(":")
                if not colon or not (port.isascii() and port.isdecimal()):
                    raise ValueError(f"expected host:port, not {value!r}")
                return cls(host.removeprefix("[").removesuffix("]"), int(port))
            case [str(host), int(port)] if type(port) is int:
                return cls(host, port)
            case {"host": str(host), "port": int(port), **rest} if type(port) is int and not rest:
                return cls(host, port)
        raise ValueError("expected an address such as 127.0.0.1:8081")


@attrs.frozen
class ListenAddress(HostPort):
    """An address to listen on, where port 0 means any free one."""

    LOWEST_PORT: typing.ClassVar[int] = 0


def parse_duration(value: object) -> Seconds:
    """Seconds that *value* spells; a month counts 30 days and a year 365. ValueError when it spells none."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < float("inf"):
            raise ValueError("a duration is zero or more seconds")
        return Seconds(float(value))
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None or (found[2] in ("mo", "yr") and "." in found[1]):
        raise ValueError(f"expected a duration such as 30, 10m, 1.5h or 90d, not {value!r}")
    return Seconds(float(found[1]) * _UNITS[found[2] or ""])


def parse_size(value: object) -> ByteSize:
    """Bytes that *value* spells; ValueError when it spells none."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise ValueError("a size is zero or more bytes")
        return ByteSize(value)
    found = _SIZE.fullmatch(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"expected a size such as 65536, 64k or 1.5g, not {value!r}")
    power = "kmgtpe".index(found[2]) + 1 if found[2] else 0
    return ByteSize(int(float(found[1]) * 1024**power))


def parse_bool(value: object) -> bool:
    """Truth of a boolean or of one of the words yes/no, true/false, on/off, y/n, t/f, 1/0."""
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if isinstance(value, str | int) and word in _TRUE | _FALSE:
        return word in _TRUE
    raise ValueError(f"expected yes or no, not {value!r}")


def read_text(path: Path) -> str:
    """The file's text; `ConfigError` names the file when it has none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).") from error


def load_toml(path: Path) -> dict[str, Any]:
    """The document in the file; `ConfigError` names the file, and the line where its text goes wrong."""
    return parse_toml(read_text(path), path)


def parse_toml(text: str, path: Path | str) -> dict[str, Any]:
    """The document in a file's text."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def find_config(name: str, *, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where the configuration file *name* (``manager.toml``) is, None when there is none.

    ``BACKEND_CONFIG_FILE`` alone when it is set, else the first that exists of the working directory,
    ``~/.config/backend.ai`` and ``/etc/backend.ai``.
    """
    if given := environ.get("BACKEND_CONFIG_FILE"):
        return Path(given)
    home = Path(environ.get("HOME") or os.path.expanduser("~"))
    for folder in (Path.cwd(), home / ".config" / "backend.ai", Path("/etc/backend.ai")):
        if (path := folder / name).is_file():
            return path
    return None


def structure(cls: type[T], mapping: Mapping[str, Any], where: str = "") -> T:
    """A value of the attrs class *cls* from a table; `ConfigError` tells of all that is wrong with it.

    *where* goes before each key in messages: a dotted prefix such as ``"manager"``, or empty at the top.
    """
    value, problems = read_table(cls, mapping, (where,) if where else ())
    if problems or value is None:
        raise ConfigError(*(problem.sentence() for problem in problems))
    return value


def read_table(
    cls: type[T], mapping: Mapping[str, Any], path: KeyPath = (), *, main: str | None = None
) -> tuple[T | None, list[Problem]]:
    """A value of *cls* as far as *mapping* gives one, and all that is wrong.

    A key with a problem has its default in the value; without a default for it there is no value. With *main*
    the mapping is a whole file, where that table has the keys of *cls*, and its tables lie beside it.
    """
    reader = _Reader()
    value = reader.table(cls, mapping, path) if main is None else reader.file(cls, mapping, main)
    return value, reader.problems


def fields_of(cls: type[Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> (attrs field, type) of a configuration class, in the order of its fields."""
    hints = typing.get_type_hints(cls)
    return {_key(field.name): (field, hints[field.name]) for field in attrs.fields(cls)}


def table_class(hint: Any) -> type[Any] | None:
    """The class whose keys a table of this type has; None when the type is that of a plain value."""
    hint = without_none(hint)
    return hint if attrs.has(hint) and not issubclass(hint, HostPort) else None


def without_none(hint: Any) -> Any:
    """``X`` for ``X | None``, other types as they are."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (argument for argument in typing.get_args(hint) if argument is not types.NoneType)
    return hint


class _Reader:
    """Values from tables. What is wrong is noted, and reading goes on."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def file(self, cls: type[T], document: Mapping[str, Any], main: str) -> T | None:
        fields = fields_of(cls)
        tables = {key for key, (_, hint) in fields.items() if table_class(hint)}
        for name in document:
            if name not in tables | {main}:
                self._unknown(name, (name,), tables | {main}, "table")
        keys = document.get(main, {})
        if not isinstance(keys, Mapping):
            self._wrong((main,), " must be a table")
            keys = {}
        for name in keys:
            if name in tables:
                self._wrong((main, name), f" is not a known key; `[{name}]` is a table of its own")
        mapping = {key: value for key, value in keys.items() if key not in tables}
        mapping |= {key: document[key] for key in tables & document.keys()}
        places = {key: (key,) if key in tables else (main, key) for key in fields}
        return self._build(cls, mapping, (main,), places)

    def table(self, cls: type[T], mapping: Any, path: KeyPath) -> T | None:
        if not isinstance(mapping, Mapping):
            self._wrong(path, " must be a table")
            return None
        return self._build(cls, mapping, path, {key: (*path, key) for key in fields_of(cls)})

    def _build(
        self, cls: type[T], mapping: Mapping[str, Any], path: KeyPath, places: Mapping[str, KeyPath]
    ) -> T | None:
        fields = fields_of(cls)
        for name in mapping:
            if name not in fields:
                self._unknown(name, (*path, name), fields, "key")
        values: dict[str, Any] = {}
        complete = True
        for key, (field, hint) in fields.items():
            if key in mapping:
                value = self.value(hint, mapping[key], places[key], secret=not field.repr)
                if value is not _WRONG:
                    values[field.name] = value
                    continue
            elif field.default is attrs.NOTHING:
                self._wrong(places[key], " is missing")
            complete = complete and field.default is not attrs.NOTHING
        return self._instance(cls, values, path, places) if complete else None

    def _instance(
        self, cls: type[T], values: dict[str, Any], path: KeyPath, places: Mapping[str, KeyPath]
    ) -> T | None:
        """The class's own validators tell of one key at a time, whose name begins the message."""
        while True:
            try:
                return cls(**values)
            except ValueError as error:
                key, _, rest = str(error).partition(" ")
                if key not in places:
                    self._wrong(path, f": {error}")
                    return None
                self._wrong(places[key], f" {rest}")
                name = key.replace("-", "_")
                if values.pop(name, _WRONG) is _WRONG or fields_of(cls)[key][0].default is attrs.NOTHING:
                    return None

    def value(self, hint: Any, value: Any, path: KeyPath, *, secret: bool = False) -> Any:
        """The value, or `_WRONG`. What a *secret* is instead is not told."""
        if hint is not without_none(hint):
            return None if value is None else self.value(without_none(hint), value, path, secret=secret)
        if inner := table_class(hint):
            found = self.table(inner, value, path)
            return _WRONG if found is None else found
        try:
            if parse := _PARSERS.get(hint):
                return parse(value)
            return self._compound(hint, value, path)
        except ValueError as error:
            told = str(error).partition(", not ")[0] if secret else error
            self._wrong(path, f": {told}")
            return _WRONG

    def _compound(self, hint: Any, value: Any, path: KeyPath) -> Any:
        items: dict[Any, Any]
        match typing.get_origin(hint), typing.get_args(hint):
            case origin, words if origin is Literal:
                if value not in words:
                    raise ValueError(f"expected one of {', '.join(map(str, words))}, not {value!r}")
                return value
            case origin, (inner, _) if origin is tuple and isinstance(value, list):
                items = {i: self.value(inner, item, (*path, f"[{i}]")) for i, item in enumerate(value)}
                return _WRONG if _WRONG in items.values() else tuple(items.values())
            case origin, (_, inner) if origin in (dict, Mapping) and isinstance(value, dict):
                items = {key: self.value(inner, item, (*path, key)) for key, item in value.items()}
                return _WRONG if _WRONG in items.values() else items
        raise ValueError(f"expected {_name(hint)}, not {value!r}")

    def _unknown(self, name: str, path: KeyPath, known: Collection[str], kind: str) -> None:
        self._wrong(path, f" is not a known {kind}{nearest_of(name, known)}")

    def _wrong(self, path: KeyPath, says: str) -> None:
        self.problems.append(Problem(path, says))


def _key(name: str) -> str:
    return name.replace("_", "-")


def nearest_of(name: str, known: Collection[str], *, prefix: str = "") -> str:
    """What may be meant by an unknown *name*, to go on in a sentence; empty when nothing is like it. *prefix*
    is what all of them begin with, and has been taken off."""
    nearest = difflib.get_close_matches(name, sorted(known), 1)
    return f"; the nearest is `{prefix}{nearest[0]}`" if nearest else ""


def dotted(path: KeyPath) -> str:
    """``manager.id``, ``words[1]``."""
    return ".".join(path).replace(".[", "[")


def _name(hint: Any) -> str:
    words = {tuple: "a list", dict: "a table", Mapping: "a table"}
    return words.get(typing.get_origin(hint), str(hint))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text in quotes, not {value!r}")
    return value


def _path(value: object) -> Path:
    try:
        return Path(_text(value)).expanduser()
    except RuntimeError as error:
        raise ValueError(f"nobody's home is known for {value!r}") from error


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected a whole number, not {value!r}")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"expected a number, not {value!r}")
    return float(value)


_PARSERS: Mapping[Any, Callable[[Any], Any]] = {
    str: _text,
    int: _integer,
    float: _number,
    bool: parse_bool,
    Path: _path,
    HostPort: HostPort.parse,
    ListenAddress: ListenAddress.parse,
    Seconds: parse_duration,
    ByteSize: parse_size,
}
