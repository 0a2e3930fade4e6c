"""The converter between attrs values and what msgpack and JSON carry. Strict: nothing is coerced.

cattrs would turn ``5`` into ``"5"`` and ``"300"`` into ``300``; on a wire both are mistakes of the peer and
become `cattrs.BaseValidationError`. Integers are accepted for floats, as JSON has no difference.
"""

from enum import Enum
from typing import Any, TypeVar, get_origin
from uuid import UUID

import attrs
from cattrs import Converter
from cattrs.cols import list_structure_factory

T = TypeVar("T")


def _exactly(kind: type[T]) -> Any:
    def structure(value: Any, wanted: type[Any]) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, got {type(value).__name__}")
        # The hook for str is found for enumerations of texts as well.
        return wanted(value) if isinstance(wanted, type) and issubclass(wanted, Enum) else value

    return structure


def _float(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, got {type(value).__name__}")
    return float(value)


def _uuid(value: Any, _: Any) -> UUID:
    if type(value) is not str:
        raise TypeError(f"expected a UUID as text, got {type(value).__name__}")
    return UUID(value)


def _from_a_map(kind: Any, converter: Converter) -> Any:
    """cattrs looks members up by ``in``, so any list or text would do for a class that has all defaults."""
    structure = converter.gen_structure_attrs_fromdict(kind)

    def checked(value: Any, wanted: Any) -> Any:
        if not isinstance(value, dict):
            raise TypeError(f"expected a map, got {type(value).__name__}")
        return structure(value, wanted)

    return checked


def _is_list(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is list


def _from_a_list(kind: Any, converter: Converter) -> Any:
    """cattrs takes whatever can be iterated: bytes would be a list of integers."""
    structure = list_structure_factory(kind, converter)

    def checked(value: Any, wanted: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise TypeError(f"expected a list, got {type(value).__name__}")
        return structure(value, wanted)

    return checked


def make_converter(*, forbid_extra_keys: bool = False) -> Converter:
    """A converter with our strict primitives; ``forbid_extra_keys`` refuses unknown members."""
    converter = Converter(forbid_extra_keys=forbid_extra_keys)
    for kind in (str, int, bool, bytes):
        converter.register_structure_hook(kind, _exactly(kind))
    converter.register_structure_hook(float, _float)
    converter.register_structure_hook(UUID, _uuid)
    converter.register_unstructure_hook(UUID, str)
    converter.register_structure_hook_factory(_is_list, lambda kind: _from_a_list(kind, converter))
    converter.register_structure_hook_factory(attrs.has, lambda kind: _from_a_map(kind, converter))
    return converter


#: Peers may be newer than we are, so unknown members are let through on the agent link.
wire = make_converter()
