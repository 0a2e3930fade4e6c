"""What a session request asks for: which slots it gets, and what of it can be granted at all. Pure."""

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import Any

from .errors import InvalidParameters
from .slots import Slots, format_amount, parse_amount

DEFAULT_SHMEM = "64m"
SHMEM_LABEL = "ai.backend.resource.preferred.shmem"
#: Slots that no session goes without: nothing given means the image's minimum.
ALWAYS = ("cpu", "mem")


def invalid(field: str, message: str) -> InvalidParameters:
    """The refusal that names one wrong parameter."""
    return InvalidParameters("Input validation error", {field: message})


def granted_slots(
    resources: Mapping[str, Any],
    resource_opts: Mapping[str, Any],
    *,
    image_resources: Mapping[str, Mapping[str, str | None]],
    labels: Mapping[str, str],
    known: Collection[str],
) -> Slots:
    """The slots that a kernel is given (scheduling §2.6): what is asked, else the image's minimum.

    Shared memory counts as part of mem: it raises the image's minimum and must be smaller than mem.
    `InvalidParameters` names the slot that is unknown, malformed, too small or too large.
    """
    asked: dict[str, Decimal] = {}
    for name, value in resources.items():
        if name not in known:
            raise invalid(f"config.resources.{name}", f"Unknown requested resource slot: {name}")
        if value is not None:
            asked[name] = _amount(value, f"config.resources.{name}")
    shmem = _amount(
        resource_opts.get("shmem") or labels.get(SHMEM_LABEL) or DEFAULT_SHMEM, "config.resource_opts.shmem"
    )
    least = {name: _bound(bounds.get("min"), Decimal(0)) for name, bounds in image_resources.items()}
    most = {name: _bound(bounds.get("max"), Decimal("Infinity")) for name, bounds in image_resources.items()}
    least["mem"] = least.get("mem", Decimal(0)) + shmem
    for name in ALWAYS:
        if not asked.get(name):
            asked[name] = least.get(name) or Decimal(1)
    for name, amount in asked.items():
        if amount < least.get(name, 0):
            text = f"The image needs at least {format_amount(least[name])}."
            raise invalid(f"config.resources.{name}", text)
        if amount > most.get(name, amount):
            text = f"The image takes at most {format_amount(most[name])}."
            raise invalid(f"config.resources.{name}", text)
    if shmem >= asked["mem"]:
        raise invalid("config.resource_opts.shmem", "Shared memory must be less than mem.")
    return Slots(asked)


def _amount(value: Any, field: str) -> Decimal:
    if not isinstance(value, str | int | float | Decimal):
        raise invalid(field, "expected an amount: a number or a size such as 512m")
    try:
        amount = parse_amount(value)
    except ValueError as error:
        raise invalid(field, str(error)) from None
    if amount.is_infinite():
        raise invalid(field, "an amount is finite")
    return amount


def _bound(text: str | None, otherwise: Decimal) -> Decimal:
    return otherwise if text is None or text == "" else parse_amount(text)
