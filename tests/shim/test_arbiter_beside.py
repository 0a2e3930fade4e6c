"""Decisions about terminals and services, which take no turn."""

from __future__ import annotations

from typing import Any

import pytest

from backendai_mgr.shim.arbiter import MAX_BESIDE, Arbiter
from backendai_mgr.shim.effects import Ended, HangUp, Open, Queued, Send
from backendai_mgr.shim.run import Instant, Order, Refused, Run, RunState, parse_order

INCARNATION = 3
GRACE = 5.0


def at(seconds: float) -> Instant:
    return Instant(1_700_000_000.0 + seconds, seconds)


def order(run_id: str, mode: str = "terminal", line: str | None = None) -> Order:
    steps = () if mode == "query" else (line,)
    return Order(run_id, INCARNATION, "d", mode, "", None, steps)


def admit(arbiter: Arbiter, run_id: str, mode: str = "terminal") -> Run:
    assert arbiter.consider(order(run_id, mode)) is None
    return arbiter.admit(order(run_id, mode), at(0))[0]


@pytest.fixture
def arbiter() -> Arbiter:
    ready = Arbiter(INCARNATION, grace=GRACE)
    ready.ready(at(0))
    return ready


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize(("mode", "line"), [("terminal", None), ("terminal", "top"), ("service", "serve")])
def test_it_starts_at_once_and_takes_no_turn(ready: bool, mode: str, line: str | None) -> None:
    arbiter = Arbiter(INCARNATION)
    if ready:
        arbiter.ready(at(0))
    run, effects = arbiter.admit(order("t", mode, line), at(1))
    assert effects == [Open(run, line)]
    assert (run.state, run.started_at, arbiter.current) == (RunState.RUNNING, at(1).wall, None)
    query, effects = arbiter.admit(order("q", "query"), at(2))
    assert [type(effect) for effect in effects] == [Send if ready else Queued]
    assert (arbiter.current is query) is ready


def test_it_starts_while_the_interpreter_is_busy_and_is_found(arbiter: Arbiter) -> None:
    query = admit(arbiter, "q", "query")
    terminal = admit(arbiter, "t")
    assert arbiter.consider(order("t")) is terminal
    assert arbiter.runs() == [terminal, query]
    assert arbiter.interrupt(None, at(1))[0] is query


@pytest.mark.parametrize(("code", "state"), [(0, RunState.FINISHED), (3, RunState.FINISHED)])
def test_it_ends_with_its_program(arbiter: Arbiter, code: int, state: RunState) -> None:
    run = admit(arbiter, "t")
    assert arbiter.program_ended(run, code, "", at(1)) == [Ended(run)]
    assert (run.state, run.exit_code) == (state, code)
    assert arbiter.program_ended(run, 9, "", at(2)) == []
    assert arbiter.consider(order("t")) is run  # and never starts again


def test_asked_to_end_it_has_the_grace_and_is_killed_then(arbiter: Arbiter) -> None:
    run = admit(arbiter, "t")
    assert arbiter.interrupt("t", at(1)) == (run, [HangUp(run, force=False)])
    assert arbiter.interrupt("t", at(2)) == (run, [])
    assert arbiter.next_deadline() == 1 + GRACE
    assert arbiter.tick(at(0.9 + GRACE)) == []
    assert arbiter.tick(at(1 + GRACE)) == [HangUp(run, force=True)]
    assert arbiter.next_deadline() is None
    arbiter.program_ended(run, 137, "", at(7))
    assert (run.state, run.exit_code, run.reason) == (RunState.CANCELLED, 130, "interrupted")


def test_its_deadline_stands_beside_that_of_the_current_run(arbiter: Arbiter) -> None:
    arbiter.admit(Order("q", INCARNATION, "d", "query", "", 3.0), at(0))
    admit(arbiter, "t")
    arbiter.interrupt("t", at(1))
    assert arbiter.next_deadline() == 3.0
    arbiter.tick(at(3))
    assert arbiter.next_deadline() == 1 + GRACE


@pytest.mark.parametrize("mode", ["terminal", "service"])
def test_each_mode_has_a_bound_of_its_own(arbiter: Arbiter, mode: str) -> None:
    runs = [admit(arbiter, str(number), mode) for number in range(MAX_BESIDE)]
    with pytest.raises(Refused) as refused:
        arbiter.consider(order("more", mode))
    assert refused.value.code == "too-many"
    admit(arbiter, "other", "service" if mode == "terminal" else "terminal")
    arbiter.program_ended(runs[0], 0, "", at(1))
    assert arbiter.consider(order("more", mode)) is None


def test_what_is_typed_is_no_answer(arbiter: Arbiter) -> None:
    admit(arbiter, "t")
    with pytest.raises(Refused) as refused:
        arbiter.answer("t", None, "x")
    assert refused.value.code == "no-prompt"


def test_it_is_lost_with_its_kernel(arbiter: Arbiter) -> None:
    runs = [admit(arbiter, "t"), admit(arbiter, "s", "service")]
    arbiter.interrupt("t", at(1))
    arbiter.close("stopped")
    assert (arbiter.next_deadline(), arbiter.tick(at(99))) == (None, [])
    assert sorted(effect.run.run_id for effect in arbiter.kernel_ended(at(2))) == ["s", "t"]
    assert {run.state for run in runs} == {RunState.LOST}
    assert {run.reason for run in runs} == {"stopped"}


@pytest.mark.parametrize(
    "spec",
    [
        {"mode": "terminal", "timeout": 5.0},
        {"mode": "terminal", "exec": 5},
        {"mode": "terminal", "exec": "a\0b"},
        {"mode": "service"},
        {"mode": "service", "exec": ""},
        {"mode": "service", "exec": "x", "timeout": 1},
    ],
)
def test_wrong_orders_are_refused(spec: dict[str, Any]) -> None:
    request = {"run_id": "t", "incarnation": 1, "digest": "d", "spec": {"code": "", "timeout": None, **spec}}
    with pytest.raises(Refused) as refused:
        parse_order(request)
    assert refused.value.code == "bad-request"
