"""Typed identifiers. Kernel and session ids are UUIDs; the main kernel's id is its session's id."""

import re
from typing import NewType
from uuid import UUID

SessionId = NewType("SessionId", UUID)
KernelId = NewType("KernelId", UUID)
AgentId = NewType("AgentId", str)
AccessKey = NewType("AccessKey", str)

SESSION_NAME = re.compile(r"(?=.{4,64}\Z)[A-Za-z0-9_][A-Za-z0-9_.-]*[A-Za-z0-9_]\Z", re.ASCII)
RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z", re.ASCII)

#: Names that are words of the HTTP surface and so cannot name a session.
RESERVED_SESSION_NAMES = frozenset({"from-template"})


def is_session_name(text: str) -> bool:
    """Whether *text* may name a session: 4 to 64 characters, the ends a letter, digit or underscore."""
    return SESSION_NAME.match(text) is not None and text not in RESERVED_SESSION_NAMES


def is_run_id(text: str) -> bool:
    """Whether *text* may identify a run: 1 to 64 of ``A-Z a-z 0-9 . _ -``."""
    return RUN_ID.match(text) is not None


def parse_uuid(text: str) -> UUID | None:
    """The UUID that *text* spells in full (with or without dashes), else None."""
    if len(text) not in (32, 36):
        return None
    try:
        return UUID(text)
    except ValueError:
        return None
