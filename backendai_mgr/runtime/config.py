"""Reading configuration: TOML text in, frozen attrs values out, one clear sentence when something is wrong.

A configuration class is a frozen attrs class; its field ``heartbeat_timeout`` is the key
``heartbeat-timeout`` of its table, and a field whose type is another attrs class is a table within it.
Nothing is guessed: unknown keys, missing keys and values of the wrong kind are refused by dotted name.
"""

import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NewType, Self, TypeVar

import attrs

#: A length of time in seconds; written as a number, or a number with one of the suffixes m h d w mo yr.
Seconds = NewType("Seconds", float)
#: A size in bytes; written as an integer, or a number with one of the suffixes k m g t p e (powers of 1024).
ByteSize = NewType("ByteSize", int)

T = TypeVar("T")

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
    """The configuration cannot be used. The message is one sentence for the person who wrote it."""


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


def load_toml(path: Path) -> dict[str, Any]:
    """The document in the file; `ConfigError` names the file, and the line where its text goes wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}).") from error
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
    """A value of the attrs class *cls* from a table.

    *where* goes before each key in messages: a dotted prefix such as ``"manager"``, or empty at the top.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"`{where}` must be a table.")
    hints = typing.get_type_hints(cls)
    fields = {_key(field.name): field for field in attrs.fields(cls)}  # type: ignore[arg-type]
    for unknown in mapping.keys() - fields.keys():
        raise ConfigError(f"`{_dotted(where, unknown)}` is not a known key.")
    values = {}
    for key, field in fields.items():
        if key in mapping:
            values[field.name] = _value(hints[field.name], mapping[key], _dotted(where, key))
        elif field.default is attrs.NOTHING:
            raise ConfigError(f"`{_dotted(where, key)}` is missing.")
    try:
        return cls(**values)
    except ValueError as error:
        raise ConfigError(f"`{where}`: {error}." if where else f"{error}.") from error


def _key(name: str) -> str:
    return name.replace("_", "-")


def _dotted(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _value(hint: Any, value: Any, where: str) -> Any:
    if attrs.has(hint) and not issubclass(hint, HostPort):
        return structure(hint, value, where)
    try:
        return _plain(hint, value, where)
    except ValueError as error:
        raise ConfigError(f"`{where}`: {error}.") from error


def _plain(hint: Any, value: Any, where: str) -> Any:
    if parse := _PARSERS.get(hint):
        return parse(value)
    match typing.get_origin(hint), typing.get_args(hint):
        case ((typing.Union | types.UnionType), arguments):
            (inner,) = (argument for argument in arguments if argument is not types.NoneType)
            return None if value is None else _value(inner, value, where)
        case origin, words if origin is Literal:
            if value not in words:
                raise ValueError(f"expected one of {', '.join(map(str, words))}, not {value!r}")
            return value
        case origin, (inner, _) if origin is tuple and isinstance(value, list):
            return tuple(_value(inner, item, f"{where}[{index}]") for index, item in enumerate(value))
        case origin, (_, inner) if origin in (dict, Mapping) and isinstance(value, dict):
            return {key: _value(inner, item, _dotted(where, key)) for key, item in value.items()}
    raise ValueError(f"expected {_name(hint)}, not {value!r}")


def _name(hint: Any) -> str:
    words = {tuple: "a list", dict: "a table", Mapping: "a table"}
    return words.get(typing.get_origin(hint), str(hint))


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text in quotes, not {value!r}")
    return value


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
    Path: lambda value: Path(_text(value)).expanduser(),
    HostPort: HostPort.parse,
    ListenAddress: ListenAddress.parse,
    Seconds: parse_duration,
    ByteSize: parse_size,
}
