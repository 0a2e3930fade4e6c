"""Parameters of requests: raw JSON or query strings into attrs models, every fault named by its field.

A model's field may be ``Annotated`` with a `Param`. Dialects: `LEGACY` coerces as the original does
(api-sessions §5.1), `STRICT` takes JSON types as they are, `QUERY` reads a query strictly, where all is text.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import attrs
from cattrs import Converter

from ..domain.errors import InvalidParameters

T = TypeVar("T")

INVALID = "Input validation error"
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}\Z")
_NUMBER = re.compile(r"[0-9]{1,15}(\.[0-9]{1,15})?\Z")
_TRUE = frozenset({"true", "t", "y", "yes", "on", "1"})
_FALSE = frozenset({"false", "n", "no", "off", "0", "none"})
_SURROGATE = re.compile("[\ud800-\udfff]")
MAX_EXPONENT = 30
MAX_DEPTH = 32


class Param:
    """What a model's field says in ``Annotated``: the names that clients may use (the first that is there
    wins; without any, the field's own) and a check that raises ValueError with a message for people."""

    def __init__(self, *names: str, check: Callable[[Any], None] | None = None) -> None:
        self.names = names
        self.check = check


@attrs.frozen
class _Field:
    name: str
    kind: Any
    names: tuple[str, ...]
    check: Callable[[Any], None] | None
    required: bool


def decode(model: type[T], given: Mapping[str, Any], dialect: Converter) -> T:
    """An instance of *model*; `InvalidParameters` whose data maps each faulty parameter to what is wrong."""
    rest = dict(given)
    values: dict[str, Any] = {}
    faults: dict[str, Any] = {}
    for field in _fields(cast(Any, model)):
        name = next((name for name in field.names if name in rest), None)
        if name is None:
            if field.required:
                faults[field.names[0]] = "is required"
            continue
        try:
            value = dialect.structure(rest.pop(name), field.kind)
            if field.check is not None and value is not None:
                field.check(value)
            values[field.name] = value
        except InvalidParameters as error:
            faults[name] = error.data
        except (ValueError, TypeError) as error:
            faults[name] = str(error)
    for name in rest:
        faults[printable(name)] = f"{printable(name)} is not allowed key"
    if faults:
        raise InvalidParameters(INVALID, faults)
    return model(**values)


@functools.cache
def _fields(model: Any) -> tuple[_Field, ...]:
    return tuple(map(_field, attrs.fields(model)))


def _field(attribute: "attrs.Attribute[Any]") -> _Field:
    kind: Any = attribute.type
    found = Param()
    if get_origin(kind) is Annotated:
        kind, *notes = get_args(kind)
        found = next((note for note in notes if isinstance(note, Param)), found)
    return _Field(
        name=attribute.name,
        kind=kind,
        names=found.names or (attribute.name,),
        check=found.check,
        required=attribute.default is attrs.NOTHING,
    )


# ---------------------------------------------------------------- JSON


def load_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that *raw* holds, fractions as exact decimals; `InvalidParameters` otherwise."""
    try:
        value = json.loads(
            raw.decode(), object_pairs_hook=_members, parse_float=_decimal, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else f"is not JSON: {error}"
        raise InvalidParameters("Malformed body", {"body": printable(reason, 200)}) from None
    if not isinstance(value, dict):
        raise InvalidParameters("Malformed body", {"body": "is not a JSON object"})
    return value


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{printable(twice)!r} occurs twice")
    return members


def _decimal(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError("a number is out of range") from None
    if len(text) > 2 * MAX_EXPONENT or abs(number.adjusted()) > MAX_EXPONENT:
        raise ValueError("a number is out of range")
    return number


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


# ---------------------------------------------------------------- values


def clean_text(value: str) -> str:
    """*value*, unless PostgreSQL or UTF-8 could not hold it (ValueError)."""
    if "\0" in value:
        raise ValueError("contains a NUL character")
    if _SURROGATE.search(value):
        raise ValueError("contains a lone surrogate")
    return value


def printable(text: str, longest: int = 64) -> str:
    """*text*, short and safe to put into a reply."""
    return _SURROGATE.sub("\ufffd", text[:longest])


def _text(value: Any, _: Any = None) -> str:
    if not isinstance(value, str):
        raise TypeError("value is not a string")
    return clean_text(value)


def _legacy_text(value: Any, _: Any = None) -> str:
    if not _text(value):
        raise ValueError("blank value is not allowed")
    return str(value)


def _storable(value: Any, _: Any = None, *, depth: int = 0) -> Any:
    """Any JSON value, its texts checked and its exact decimals as text."""
    if depth > MAX_DEPTH:
        raise ValueError("is nested too deeply")
    match value:
        case str():
            return clean_text(value)
        case Decimal():
            return format(value, "f")
        case dict():
            return {clean_text(name): _storable(member, depth=depth + 1) for name, member in value.items()}
        case list():
            return [_storable(item, depth=depth + 1) for item in value]
    return value


def _integer(value: Any, _: Any = None) -> int:
    if type(value) is not int:
        raise TypeError("value is not an integer")
    if abs(value) >= 1 << 63:
        raise ValueError("value is out of range")
    return value


def _integer_text(value: Any, _: Any = None) -> int:
    if not isinstance(value, str) or not _INTEGER.match(value):
        raise ValueError("value is not an integer")
    return int(value)


def _legacy_integer(value: Any, _: Any = None) -> int:
    return _integer_text(value) if isinstance(value, str) else _integer(value)


def _number(value: Any, _: Any = None) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError("value is not a number")
    if abs(value) > 10**MAX_EXPONENT:
        raise ValueError("value is out of range")
    return float(value)


def _number_text(value: Any, _: Any = None) -> float:
    if not isinstance(value, str) or not _NUMBER.match(value):
        raise ValueError("value is not a number of zero or more")
    return float(value)


def _boolean(value: Any, _: Any = None) -> bool:
    if not isinstance(value, bool):
        raise TypeError("value is not a boolean")
    return value


def _boolean_text(value: Any, _: Any = None) -> bool:
    word = str(value).lower()
    if value is not None and word not in _TRUE | _FALSE:
        raise ValueError("value can't be converted to a boolean")
    return value is not None and word in _TRUE


def _one_of(value: Any, kind: Any) -> Any:
    choices = get_args(kind)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"value is not one of {', '.join(choices)}")
    return value


def _dialect(text: Any, integer: Any, number: Any, boolean: Any) -> Converter:
    converter = Converter(detailed_validation=False)
    for kind, hook in ((str, text), (int, integer), (float, number), (bool, boolean)):
        converter.register_structure_hook(kind, hook)

    def items(value: Any, kind: Any) -> list[Any]:
        if not isinstance(value, list):
            raise TypeError("value is not a list")
        (item,) = get_args(kind)
        return list(_each(enumerate(value), lambda member: converter.structure(member, item)).values())

    def members(value: Any, kind: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise TypeError("value is not an object")
        _, member = get_args(kind)
        checked = {text(name): item for name, item in value.items()}
        return _each(checked.items(), lambda item: converter.structure(item, member))

    converter.register_structure_hook_func(lambda kind: kind is Any, _storable)
    for origin, hook in ((Literal, _one_of), (list, items), (dict, members)):
        converter.register_structure_hook_func(functools.partial(_is_a, origin), hook)
    converter.register_structure_hook_func(attrs.has, lambda value, kind: _nested(kind, value, converter))
    return converter


def _is_a(origin: Any, kind: Any) -> bool:
    return get_origin(kind) is origin


def _each(pairs: Any, structure: Callable[[Any], Any]) -> dict[Any, Any]:
    values, faults = {}, {}
    for name, value in pairs:
        try:
            values[name] = structure(value)
        except (ValueError, TypeError) as error:
            faults[str(name)] = str(error)
    if faults:
        raise InvalidParameters(INVALID, faults)
    return values


def _nested(model: type[T], value: Any, converter: Converter) -> T:
    if not isinstance(value, dict):
        raise TypeError("value is not an object")
    return decode(model, value, converter)


LEGACY = _dialect(_legacy_text, _legacy_integer, _number, _boolean_text)
STRICT = _dialect(_text, _integer, _number, _boolean)
QUERY = _dialect(_text, _integer_text, _number_text, _boolean_text)
