"""Kinds of parameters: what is wrong for each, by name, as JSON and as the text of a query."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

NUL, SURROGATE = "a\0b", "a\ud800b"
#: JSON that no dialect reads as anything else than itself.
_OTHERS = {"a list": [], "an object": {}, "a boolean": True, "an integer": 5, "a fraction": 1.5}

Wrong = tuple[str, Any]


@attrs.frozen(kw_only=True)
class Kind:
    """``null``: whether JSON null may stand for it."""

    null: bool = False

    def wrong(self) -> Iterator[Wrong]:
        """(what is wrong, the JSON value)."""
        if not self.null:
            yield "null", None
        yield from self.wrong_values()

    def wrong_values(self) -> Iterator[Wrong]:
        raise NotImplementedError

    def wrong_texts(self) -> Iterator[tuple[str, str]]:
        """(what is wrong, the value as a query has it, percent-encoded)."""
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class Text(Kind):
    """``blank``: whether it may be empty; ``longest`` in bytes."""

    blank: bool = True
    longest: int | None = None
    unlike: Sequence[str] = ()

    def wrong_values(self) -> Iterator[Wrong]:
        yield from _OTHERS.items()
        yield "NUL", NUL
        yield "a lone surrogate", SURROGATE
        if not self.blank:
            yield "blank", ""
        if self.longest is not None:
            yield "too long", "a" * (self.longest + 1)
            if self.longest > 1:
                yield "too long in bytes", "\xe4" * (self.longest // 2 + 1)
        for value in self.unlike:
            yield f"like {value[:12]!r}", value

    def wrong_texts(self) -> Iterator[tuple[str, str]]:
        yield "NUL", "a%00b"
        if not self.blank:
            yield "blank", ""
        if self.longest is not None:
            yield "too long", "a" * (self.longest + 1)
        for value in self.unlike:
            yield f"like {value[:12]!r}", "".join(f"%{byte:02x}" for byte in value.encode())


@attrs.frozen(kw_only=True)
class Choice(Kind):
    """One of several words."""

    def wrong_values(self) -> Iterator[Wrong]:
        yield from _OTHERS.items()
        yield from {"another word": "fly", "blank": "", "NUL": NUL, "a surrogate": SURROGATE}.items()


@attrs.frozen(kw_only=True)
class Integer(Kind):
    """``text``: whether the text of a number is one in JSON, too."""

    least: int
    most: int
    text: bool = False

    def wrong_values(self) -> Iterator[Wrong]:
        yield from {k: v for k, v in _OTHERS.items() if k != "an integer"}.items()
        yield from {"a word": "many", "blank": "", "NUL": NUL}.items()
        if not self.text:
            yield "a number's text", str(self.least)
        yield "too small", self.least - 1
        yield "too large", self.most + 1
        yield "beyond 64 bits", 1 << 64
        yield "endless", 10**400

    def wrong_texts(self) -> Iterator[tuple[str, str]]:
        yield from {"a word": "many", "blank": "", "NUL": "%00", "a fraction": "1.5", "hex": "0x10"}.items()
        yield from {"spaced": "%201", "other digits": "%D9%A1", "grouped": "1_0"}.items()
        yield "too small", str(self.least - 1)
        yield "too large", str(self.most + 1)
        yield "endless", "9" * 400


@attrs.frozen(kw_only=True)
class Number(Kind):
    """More than nothing (or as much as that in a query), at most ``most``."""

    most: float

    def wrong_values(self) -> Iterator[Wrong]:
        yield from {k: v for k, v in _OTHERS.items() if k not in ("an integer", "a fraction")}.items()
        yield from {"a word": "soon", "a number's text": "5", "zero": 0, "negative": -1.5}.items()
        yield "too large", self.most * 2
        yield "endless", 10**400

    def wrong_texts(self) -> Iterator[tuple[str, str]]:
        yield from {"a word": "soon", "blank": "", "not a number": "nan", "infinite": "inf"}.items()
        yield from {"negative": "-1", "an exponent": "1e1", "NUL": "%00"}.items()
        yield "too large", str(self.most * 2)


@attrs.frozen(kw_only=True)
class Boolean(Kind):
    """``words``: read as liberally as the original does, null and numbers included."""

    words: bool = False

    def wrong_values(self) -> Iterator[Wrong]:
        wrong = dict(_OTHERS) | {"a word": "maybe", "blank": "", "NUL": NUL, "a surrogate": SURROGATE}
        del wrong["a boolean"]
        yield from wrong.items()
        if not self.words:
            yield from {"a text": "true", "a bit": 1}.items()

    def wrong_texts(self) -> Iterator[tuple[str, str]]:
        yield from {"a word": "maybe", "blank": "", "NUL": "%00", "a number": "2"}.items()


@attrs.frozen(kw_only=True)
class Json(Kind):
    """Anything that can be stored."""

    def wrong_values(self) -> Iterator[Wrong]:
        yield from {"NUL": NUL, "a surrogate": SURROGATE, "NUL within": [{"a": NUL}]}.items()
        yield from {"NUL in a name": {NUL: 1}, "nested too deeply": json.loads("[" * 90 + "]" * 90)}.items()


@attrs.frozen(kw_only=True)
class Items(Kind):
    """A list."""

    item: Kind

    def wrong_values(self) -> Iterator[Wrong]:
        yield from {k: v for k, v in _OTHERS.items() if k != "a list"}.items()
        yield "text", "abcd"
        for name, value in self.item.wrong():
            yield f"with {name}", [value]


@attrs.frozen(kw_only=True)
class Mapped(Kind):
    """An object with any names."""

    value: Kind

    def wrong_values(self) -> Iterator[Wrong]:
        yield from {k: v for k, v in _OTHERS.items() if k != "an object"}.items()
        yield from {
            "text": "a=b",
            "NUL in a name": {NUL: "a"},
            "a surrogate in a name": {SURROGATE: "a"},
        }.items()
        for name, value in self.value.wrong():
            yield f"with {name}", {"name": value}


@attrs.frozen(kw_only=True)
class Record(Kind):
    """An object with these members."""

    members: Mapping[str, Kind]

    def wrong_values(self) -> Iterator[Wrong]:
        yield from {k: v for k, v in _OTHERS.items() if k != "an object"}.items()
        yield from {"text": "a=b", "an unknown member": {"colour": 1}}.items()
        for member, kind in self.members.items():
            for name, value in kind.wrong():
                yield f"{member} {name}", {member: value}
