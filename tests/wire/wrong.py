"""What a peer can get wrong in an attrs value on the wire, made from the class itself."""

from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Any, get_args, get_origin
from uuid import UUID

import attrs

#: A value of each type that msgpack knows.
SAMPLES: Mapping[str, Any] = {
    "nothing": None,
    "a boolean": True,
    "an integer": 1,
    "a fraction": 1.5,
    "text": "?",
    "bytes": b"?",
    "a list": [],
    "a list of lists": [[[]]],
    "a map": {},
    "a map of odd names": {1: None, b"?": None},
}
_TAKEN: Mapping[Any, set[str]] = {
    int: {"an integer"},
    float: {"an integer", "a fraction"},
    str: {"text"},
    bool: {"a boolean"},
    bytes: {"bytes"},
    UUID: set(),
    type(None): {"nothing"},
    dict: {"a map"},
    list: {"a list"},
}


def wrong_members(kind: type, good: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what is wrong, the wrong map), where *good* is the map of a good value of *kind*."""
    for field in attrs.fields(attrs.resolve_types(kind)):
        rest = {name: value for name, value in good.items() if name != field.name}
        if field.default is attrs.NOTHING:
            yield f"{field.name} missing", rest
        taken = _taken(field.type)
        for name in (name for name in SAMPLES if name not in taken):
            yield f"{field.name} is {name}", rest | {field.name: SAMPLES[name]}
        if attrs.has(field.type):
            for name, inner in wrong_members(field.type, good[field.name]):
                yield f"{field.name}.{name}", rest | {field.name: inner}


def _taken(kind: Any) -> set[str]:
    """The samples that are right for a type."""
    if isinstance(kind, UnionType) or (get_origin(kind) is not None and type(None) in get_args(kind)):
        return set().union(*map(_taken, get_args(kind)))
    kind = get_origin(kind) or kind
    if attrs.has(kind):
        complete = all(field.default is not attrs.NOTHING for field in attrs.fields(kind))
        # Unknown members are let through, since a peer may be newer.
        return {"a map", "a map of odd names"} if complete else set()
    return _TAKEN.get(kind, set())
