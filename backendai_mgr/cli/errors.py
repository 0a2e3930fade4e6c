"""Expected failures of commands: one line for the person, no traceback."""

from collections.abc import Iterator
from contextlib import contextmanager


class CliError(Exception):
    """The command failed in an expected way. The message is one line; ``exit_code`` is the process's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def told(*expected: type[Exception]) -> Iterator[None]:
    """Turn the *expected* exceptions into `CliError`, also when a nursery has put them into a group.

    A group that holds anything unexpected beside them stays as it is.
    """
    try:
        yield
    except expected as error:
        raise CliError(one_line(error)) from error
    except BaseExceptionGroup as group:
        kinds: tuple[type[Exception], ...] = (*expected, CliError)
        known, others = group.split(kinds)
        if known is None or (others is not None and others.subgroup(Exception) is not None):
            raise
        first = _leaf(known)
        if isinstance(first, CliError):
            raise first from group
        raise CliError(one_line(first)) from group


def one_line(error: BaseException) -> str:
    """The error's message without line breaks, or its type when it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _leaf(first) if isinstance(first, BaseExceptionGroup) else first
