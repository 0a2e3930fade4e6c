"""Resource slots: exact amounts by slot name, compared component by component (data-model §5.1)."""

from collections.abc import Iterator, Mapping
from decimal import Decimal, InvalidOperation

#: Decimal places before and behind the point: exabytes and billionths, and no text that is all zeros.
DIGITS = 30

_SCALE = {letter: 1024**power for power, letter in enumerate("kmgtpezy", 1)}


def parse_amount(text: str | int | float | Decimal) -> Decimal:
    """An amount as a decimal: a number, or a binary size such as ``512m``, ``1.5g`` or ``2gib`` in bytes.

    ValueError when *text* is neither, negative, or not a number.
    """
    if isinstance(text, bool):
        raise ValueError("not an amount")
    if isinstance(text, str) and len(text) > 2 * DIGITS:
        raise ValueError("an amount is not that long")
    word = str(text).strip().lower().replace("_", "")
    if word in ("inf", "infinite", "infinity"):
        return Decimal("Infinity")
    factor = 1
    for ending in ("ibytes", "ibyte", "bytes", "byte", "ib", "b"):
        if word.endswith(ending) and not word.endswith("inf"):
            word = word[: -len(ending)].rstrip()
            break
    if word and word[-1] in _SCALE:
        factor = _SCALE[word[-1]]
        word = word[:-1]
    try:
        amount = Decimal(word)
    except InvalidOperation:
        raise ValueError(f"not an amount: {str(text)[:40]!r}") from None
    if amount.is_nan() or amount < 0:
        raise ValueError("an amount is zero or more")
    if amount.is_finite() and amount and not -DIGITS < amount.adjusted() < DIGITS:
        raise ValueError("an amount of that size is not one of anything")
    return amount * factor


def format_amount(amount: Decimal) -> str:
    """Plain decimal text, never scientific notation; ``Infinity`` for no bound."""
    if amount.is_infinite():
        return "Infinity"
    return format(amount.normalize(), "f")


class Slots(Mapping[str, Decimal]):
    """An immutable vector of slot amounts; a slot that is absent counts as 0. ``<=`` is a partial order."""

    __slots__ = ("_amounts",)

    def __init__(self, amounts: Mapping[str, Decimal] | None = None) -> None:
        self._amounts = dict(amounts or {})

    @classmethod
    def parse(cls, amounts: Mapping[str, str | int | float | Decimal]) -> "Slots":
        """From amounts as text or numbers; ValueError as `parse_amount`."""
        return cls({name: parse_amount(amount) for name, amount in amounts.items()})

    def __getitem__(self, name: str) -> Decimal:
        return self._amounts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._amounts)

    def __len__(self) -> int:
        return len(self._amounts)

    def __hash__(self) -> int:
        return hash(frozenset((k, v) for k, v in self._amounts.items() if v))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Slots):
            return NotImplemented
        return all(self.amount(name) == other.amount(name) for name in {*self, *other})

    def __repr__(self) -> str:
        return f"Slots({self.to_text()})"

    def amount(self, name: str) -> Decimal:
        """The amount of one slot, 0 when absent."""
        return self._amounts.get(name, Decimal(0))

    def __add__(self, other: "Slots") -> "Slots":
        return Slots({name: self.amount(name) + other.amount(name) for name in {*self, *other}})

    def __sub__(self, other: "Slots") -> "Slots":
        return Slots({name: self.amount(name) - other.amount(name) for name in {*self, *other}})

    def __le__(self, other: "Slots") -> bool:
        return all(self.amount(name) <= other.amount(name) for name in {*self, *other})

    def lacking(self, available: "Slots") -> dict[str, tuple[Decimal, Decimal]]:
        """The slots of which *available* has too little, each with (wanted, available)."""
        return {
            name: (wanted, available.amount(name))
            for name, wanted in self._amounts.items()
            if wanted > available.amount(name)
        }

    def to_text(self) -> dict[str, str]:
        """The stored form: amounts as plain decimal text."""
        return {name: format_amount(amount) for name, amount in self._amounts.items()}
