"""Expected failures of commands: one line for the person, no traceback."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: Bad gateway, unavailable, gateway timeout.
_PASSING = frozenset({502, 503, 504})


class CliError(Exception):
    """The command failed in an expected way. The message is one line; ``exit_code`` is the process's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ApiError(CliError):
    """The manager refused; ``status`` is HTTP's and ``problem`` the parsed problem+json, perhaps empty."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        super().__init__(_told(status, problem))
        self.status = status
        self.problem = problem
        #: The request had been sent before, and may have been carried out then.
        self.repeated = False

    @classmethod
    def of(cls, status: int, body: bytes) -> "ApiError":
        """The refusal that a reply tells of, whatever its body is."""
        try:
            problem = json.loads(body)
        except ValueError:
            problem = None
        return cls(status, problem if isinstance(problem, dict) else {})

    @property
    def is_passing(self) -> bool:
        """Whether the manager, or what stands before it, is away for the moment only."""
        return self.status in _PASSING


class Away(CliError):
    """No manager answers at the endpoint; ``sent``: it may have had the request all the same."""

    def __init__(self, endpoint: str, *, sent: bool = False) -> None:
        super().__init__(f"No manager answers at {endpoint}; start it with `backendai-mgr up`.")
        self.sent = sent


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


def _told(status: int, problem: Mapping[str, Any]) -> str:
    """A problem in one line: title, message, and the fields that are wrong."""
    text = str(problem.get("title") or f"The manager answered with status {status}").rstrip(".")
    if message := problem.get("msg"):
        text += f": {message}"
    details = problem.get("agent-details")
    if isinstance(details, dict) and details.get("exception"):
        text += f": {details['exception']}"
    data = problem.get("data")
    if isinstance(data, dict) and all(isinstance(value, str) for value in data.values()):
        fields = "; ".join(f"{field}: {value}" for field, value in data.items())
        text += f" ({fields})" if fields else ""
    return " ".join(text.split())
