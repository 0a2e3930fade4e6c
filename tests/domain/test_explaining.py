import re
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

import backendai_mgr
from backendai_mgr.domain.explaining import ENDINGS, explain
from backendai_mgr.domain.ids import AccessKey, AgentId, SessionId
from backendai_mgr.domain.lifecycle import RULES
from backendai_mgr.domain.sessions import Session
from backendai_mgr.domain.status import Status

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def session(status="TERMINATED", exit_code=None, **reasons):
    return Session(
        id=SessionId(UUID(int=1)), name="s", type="interactive", status=Status(status),
        access_key=AccessKey("A"), user_id=UUID(int=2), domain="default", group_id=UUID(int=3),
        scaling_group="default", image="local/python:3.11", architecture="x86_64", registry="local", tag=None,
        requested_slots={}, occupied_slots={}, environ={}, service_ports=(), created_at=NOW,
        terminated_at=None, status_changed=NOW, deadline=None, reasons=reasons, result="undefined",
        num_queries=0, last_stat=None, incarnation=1, agent_id=AgentId("i-1"), agent_addr="tcp://x:1",
        container_id=None, exit_code=exit_code,
    )  # fmt: skip


@pytest.mark.parametrize("status", sorted(Status))
def test_every_status_is_told_in_whole_sentences(status):
    for reasons in ({}, {"info": "user-requested"}, {"info": "odd", "sentence": "Why not."}):
        told = explain(session(status, **reasons))
        assert told.endswith(".")
        assert told[0].isupper()
        assert "{" not in told


@pytest.mark.parametrize(
    ("reasons", "exit_code", "sentence"),
    [
        ({"info": "self-terminated"}, 3, "It ended by itself, with exit code 3."),
        ({"info": "self-terminated"}, -9, "It ended by itself, killed by SIGKILL (signal 9)."),
        ({"info": "self-terminated"}, -200, "It ended by itself, killed by signal 200."),
        ({"info": "self-terminated"}, None, "It ended by itself."),
        (
            {"info": "failed-to-start", "sentence": "this agent has no image x"},
            None,
            "It could not be started: this agent has no image x.",
        ),
        ({"info": "lifetime-exceeded"}, -9, ENDINGS["lifetime-exceeded"]),
        ({"info": "idle-something"}, None, "The reason was: idle-something."),
        ({}, None, "Nobody knows why."),
    ],
)
def test_ends_are_named(reasons, exit_code, sentence):
    assert explain(session(exit_code=exit_code, **reasons)) == sentence


def test_every_reason_that_the_program_writes_has_a_sentence():
    written = {rule.rescue.reason for rule in RULES.values() if rule.rescue}
    package = Path(backendai_mgr.__file__).parent
    for source in (*package.glob("services/*.py"), package / "agent/kernel.py", package / "shim/kernel.py"):
        text = source.read_text()
        for found in re.findall(r'(?:reason|info)="([a-z-]+)"', text) + re.findall(
            r'(?:self|kernel)\.(?:end|ask_end)\("([a-z-]+)"\)', text
        ):
            written.add(found)
    assert len(written) > 8
    assert written <= ENDINGS.keys()
