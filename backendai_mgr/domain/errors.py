"""Refusals: what a use case may answer instead of its result. No HTTP here; `api.problems` maps them.

Each is a distinct type because callers and clients act differently on it. Bugs and lost connections are
not refusals and stay ordinary exceptions.
"""

from collections.abc import Mapping
from typing import Any


class Refusal(Exception):
    """The request was understood and is refused. ``message`` is for people, ``data`` for programs."""

    def __init__(self, message: str = "", data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.data = data


class InvalidParameters(Refusal):
    """Parameters are missing or wrong; ``data`` maps each field to what is wrong with it."""


class BadRequest(Refusal):
    """The request makes no sense in itself (framing, version, size)."""


class NotAuthenticated(Refusal):
    """No caller, an unknown key, a wrong signature, or a role that is too low for the route."""


class MalformedAuth(Refusal):
    """Authorization parameters or the date are missing or malformed."""


class Forbidden(Refusal):
    """The caller may not do this."""


class InsufficientPrivilege(Refusal):
    """The caller's role is too low for this action."""


class NotFound(Refusal):
    """``kind`` names the sort of object in the client's words: "session", "environment image", "run"."""

    def __init__(self, kind: str, message: str = "", data: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, data)
        self.kind = kind


class TooManyMatches(Refusal):
    """A session reference is ambiguous; ``data["matches"]`` lists {id, name, status, created_at}."""


class SessionExists(Refusal):
    """A live session has this name already; ``data["existingSessionId"]`` is its id."""


class RunConflict(Refusal):
    """The run id was used before with another request body."""


class Conflict(Refusal):
    """The object's present state does not allow this (queue full, session not running, …)."""


class PreconditionFailed(Refusal):
    """What the request asked to hold of the object's present state does not hold."""


class NotSatisfiable(Refusal):
    """No part of the object lies in the range that is asked for; ``size`` is the object's, in bytes."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


class QuotaExceeded(Refusal):
    """A policy's limit would be passed."""


class PayloadTooLarge(Refusal):
    """The body is larger than the configured limit."""


class Unavailable(Refusal):
    """What the request needs is away for the moment; try again after ``retry_after`` seconds."""

    def __init__(
        self, message: str = "", *, retry_after: int = 2, data: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message, data)
        self.retry_after = retry_after


class AgentFailed(Refusal):
    """An agent could not do what was asked. ``operation`` is one of create, destroy, restart, execute."""

    def __init__(self, operation: str, message: str = "", *, timeout: bool = False) -> None:
        super().__init__(message)
        self.operation = operation
        self.timeout = timeout


class ServiceFailed(Refusal):
    """A service did not come to listen; ``message`` has its last words."""


class NoRoom(Refusal):
    """The session's machine has no room left for what was asked."""
