"""What every call to an agent has, and how values travel."""

from typing import Any, ClassVar, TypeVar

import attrs
from attrs.validators import and_, ge, le, matches_re
from cattrs import BaseValidationError, transform_error

from ..domain.ids import RUN_ID
from .callosum import FrameError
from .codec import wire

T = TypeVar("T")

#: Most payload bytes of one answer: with the framing of small records it stays below callosum's limit.
MAX_OUTPUT = 4 * 1024 * 1024
#: What a call may take beside its waiting, seconds.
MARGIN = 15.0

is_run_id = matches_re(RUN_ID)
is_size = and_(ge(1), le(MAX_OUTPUT))


@attrs.frozen(kw_only=True)
class Call:
    """A call; ``timeout`` is how many seconds the manager waits for its answer."""

    method: ClassVar[str]

    @property
    def timeout(self) -> float:
        return MARGIN


def to_wire(value: Any) -> Any:
    """*value* (attrs values, lists, text, numbers) as maps and lists for `callosum.pack`."""
    return wire.unstructure(value)


def from_wire(data: Any, kind: type[T]) -> T:
    """The *kind* that *data* tells of; `FrameError`, naming the wrong members, when it is something else."""
    try:
        return wire.structure(data, kind)
    except BaseValidationError as error:
        raise FrameError("; ".join(transform_error(error))) from error
    except (TypeError, ValueError, AttributeError) as error:  # not even a map
        raise FrameError(f"expected {kind.__name__}: {error}") from error
