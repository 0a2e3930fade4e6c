from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from backendai_mgr.shim import arbiter as subject
from backendai_mgr.shim.arbiter import Arbiter
from backendai_mgr.shim.effects import (
    Asked,
    Ended,
    Interrupt,
    Kill,
    Queued,
    Send,
)
from backendai_mgr.shim.run import TRANSITIONS, Instant, Order, Refused, Run, RunState, parse_order

INCARNATION = 3
GRACE = 5.0


def at(seconds: float) -> Instant:
    return Instant(1_700_000_000.0 + seconds, seconds)


def order(run_id: str, digest: str = "d", timeout: float | None = None, code: str = "1") -> Order:
    return Order(run_id, INCARNATION, digest, "query", code, timeout)


def admit(arbiter: Arbiter, run_id: str, now: float = 0.0, timeout: float | None = None) -> Run:
    assert arbiter.consider(order(run_id)) is None
    return arbiter.admit(order(run_id, timeout=timeout), at(now))[0]


@pytest.fixture
def arbiter() -> Arbiter:
    ready = Arbiter(INCARNATION, grace=GRACE)
    ready.ready(at(0))
    return ready


def test_a_run_waits_for_the_interpreter_to_be_ready() -> None:
    arbiter = Arbiter(INCARNATION)
    run, effects = arbiter.admit(order("a"), at(0))
    assert effects == [Queued(run)]
    assert arbiter.ready(at(1)) == [Send(run)]
    assert (run.state, run.started_at) == (RunState.RUNNING, at(1).wall)


def test_effects_of_two_kinds_differ() -> None:
    run = Run(order("a"), 1, 0.0)
    assert [Send(run)] != [Queued(run)]
    assert [Send(run)] == [Send(run)]


def test_runs_go_one_at_a_time_in_order(arbiter: Arbiter) -> None:
    first, second, third = (admit(arbiter, name) for name in "abc")
    assert [run.state.value for run in (first, second, third)] == ["running", "queued", "queued"]
    assert arbiter.done(first.number, 0, False, at(2)) == [Ended(first), Send(second)]
    assert arbiter.done(second.number, 7, False, at(3)) == [Ended(second), Send(third)]
    assert [run.exit_code for run in (first, second, third)] == [0, 7, None]


def test_a_run_may_ask_anew_before_it_was_answered(arbiter: Arbiter) -> None:
    run = admit(arbiter, "a")
    for asked in (1, 2):
        assert arbiter.asks(run.number, asked, False) == [Asked(run, False)]
    assert (run.state, run.asked) == (RunState.WAITING_INPUT, 2)


def test_a_deleted_run_is_gone_and_its_id_stays_used(arbiter: Arbiter) -> None:
    run, other = admit(arbiter, "a"), admit(arbiter, "b")
    for run_id, code in (("a", "not-ended"), ("b", "not-ended"), ("none", "not-found")):
        with pytest.raises(Refused) as refused:
            arbiter.delete(run_id)
        assert refused.value.code == code
    arbiter.done(run.number, 0, False, at(1))
    assert arbiter.delete("a") is run
    assert arbiter.runs() == [other]
    with pytest.raises(Refused) as refused:
        arbiter.delete("a")
    assert refused.value.code == "not-found"
    for digest in ("d", "other"):
        with pytest.raises(Refused) as refused:
            arbiter.consider(order("a", digest=digest))
        assert refused.value.code == "conflict"


@pytest.mark.parametrize("before", RunState)
@pytest.mark.parametrize("after", RunState)
def test_states_follow_each_other_as_the_table_says(before: RunState, after: RunState) -> None:
    run = Run(order("a"), 1, 0.0)
    run.state = before
    if after in TRANSITIONS[before]:
        run.move(after)
        assert run.state is after
        assert not before.ended
    else:
        with pytest.raises(AssertionError):
            run.move(after)


def test_same_digest_attaches_in_every_state_and_another_conflicts(arbiter: Arbiter) -> None:
    run, waiting = admit(arbiter, "a"), admit(arbiter, "b")
    for _ in range(2):
        assert arbiter.consider(order("a")) is run
        assert arbiter.consider(order("b")) is waiting
        with pytest.raises(Refused) as refused:
            arbiter.consider(order("a", digest="other"))
        assert refused.value.code == "conflict"
        arbiter.done(run.number, 0, False, at(1))


def test_attaching_comes_before_every_other_refusal(arbiter: Arbiter) -> None:
    run = admit(arbiter, "a")
    arbiter.close("stop")
    old = order("a")._replace(incarnation=INCARNATION - 1)
    assert arbiter.consider(old) is run


def test_refusals(arbiter: Arbiter) -> None:
    with pytest.raises(Refused) as refused:
        arbiter.consider(order("a")._replace(incarnation=2))
    assert refused.value.code == "bad-incarnation"
    admit(arbiter, "running")
    for number in range(subject.MAX_QUEUED):
        admit(arbiter, f"q{number}")
    with pytest.raises(Refused) as refused:
        arbiter.consider(order("one-more"))
    assert refused.value.code == "queue-full"
    arbiter.close("bye")
    with pytest.raises(Refused, match="bye") as refused:
        arbiter.consider(order("one-more"))
    assert refused.value.code == "kernel-ended"


def test_the_queue_is_bounded_in_bytes_too(arbiter: Arbiter) -> None:
    admit(arbiter, "running")
    big = order("big", code="x" * subject.MAX_QUEUED_BYTES)
    assert arbiter.consider(big) is None
    arbiter.admit(big, at(0))
    with pytest.raises(Refused) as refused:
        arbiter.consider(order("b"))
    assert refused.value.code == "queue-full"
    arbiter.interrupt("big", at(1))
    assert arbiter.consider(order("b")) is None


def test_interrupt_waits_until_it_can_reach_user_code(arbiter: Arbiter) -> None:
    run = admit(arbiter, "a")
    assert arbiter.interrupt(None, at(1)) == (run, [])
    assert arbiter.began(run.number) == [Interrupt(run)]
    assert arbiter.interrupt("a", at(2)) == (run, [Interrupt(run)])
    arbiter.done(run.number, 130, True, at(3))
    assert (run.state, run.exit_code) == (RunState.CANCELLED, 130)


def test_a_queued_run_is_cancelled_and_never_starts(arbiter: Arbiter) -> None:
    first, second = admit(arbiter, "a"), admit(arbiter, "b")
    assert arbiter.interrupt("b", at(1)) == (second, [Ended(second)])
    assert (second.state, second.exit_code, second.started_at) == (RunState.CANCELLED, 130, None)
    assert arbiter.done(first.number, 0, False, at(2)) == [Ended(first)]


def test_interrupting_nothing_or_an_ended_run_changes_nothing(arbiter: Arbiter) -> None:
    assert arbiter.interrupt(None, at(0)) == (None, [])
    run = admit(arbiter, "a")
    arbiter.done(run.number, 4, False, at(1))
    before = run.status()
    assert arbiter.interrupt("a", at(2)) == (run, [])
    assert run.status() == before
    with pytest.raises(Refused) as refused:
        arbiter.interrupt("nobody", at(2))
    assert refused.value.code == "not-found"


@pytest.mark.parametrize(
    ("asked", "over_limit", "exit_code", "interrupted", "expected"),
    [
        (False, False, 0, False, ("finished", 0)),
        (False, False, 1, False, ("finished", 1)),
        (False, False, 130, True, ("finished", 130)),  # the program raised KeyboardInterrupt itself
        (True, False, 130, True, ("cancelled", 130)),
        (True, False, 5, False, ("finished", 5)),  # swallowed
        (False, True, 130, True, ("timeout", 130)),
        (False, True, 5, False, ("timeout", 5)),  # swallowed
        (True, True, 130, True, ("timeout", 130)),
    ],
)
def test_how_a_run_ends(
    arbiter: Arbiter,
    asked: bool,
    over_limit: bool,
    exit_code: int,
    interrupted: bool,
    expected: tuple[str, int],
) -> None:
    run = admit(arbiter, "a", timeout=10.0)
    arbiter.began(run.number)
    if asked:
        arbiter.interrupt("a", at(1))
    if over_limit:
        arbiter.tick(at(10))
    arbiter.done(run.number, exit_code, interrupted, at(11))
    assert (run.state.value, run.exit_code) == expected


def test_the_limit_interrupts_then_ends_the_kernel(arbiter: Arbiter) -> None:
    first, run = admit(arbiter, "a"), admit(arbiter, "b", timeout=10.0)
    queued = admit(arbiter, "c")
    assert arbiter.next_deadline() is None
    arbiter.done(first.number, 0, False, at(100))
    assert arbiter.next_deadline() == 110.0  # counted from its own start
    arbiter.began(run.number)
    assert arbiter.tick(at(109.9)) == []
    assert arbiter.tick(at(110)) == [Interrupt(run)]
    assert arbiter.next_deadline() == 115.0
    assert arbiter.tick(at(114.9)) == []
    assert arbiter.tick(at(115)) == [Kill("exec-timeout")]
    assert arbiter.tick(at(200)) == []
    arbiter.close("exec-timeout")
    assert arbiter.kernel_ended(at(116)) == [Ended(run), Ended(queued)]
    assert (run.state, run.exit_code, run.reason) == (RunState.TIMEOUT, None, "exec-timeout")
    assert (queued.state, queued.reason) == (RunState.LOST, "exec-timeout")


def test_a_limit_before_user_code_is_reached_interrupts_it_there(arbiter: Arbiter) -> None:
    run = admit(arbiter, "a", timeout=1.0)
    assert arbiter.tick(at(1)) == []
    assert arbiter.began(run.number) == [Interrupt(run)]


def test_the_end_of_the_kernel_loses_what_has_not_ended(arbiter: Arbiter) -> None:
    done, run, queued = (admit(arbiter, name) for name in "abc")
    arbiter.done(done.number, 0, False, at(1))
    arbiter.close("user-requested")
    arbiter.close("later reasons do not count")
    assert arbiter.kernel_ended(at(2)) == [Ended(run), Ended(queued)]
    assert [(item.state.value, item.exit_code, item.reason) for item in (done, run, queued)] == [
        ("finished", 0, ""),
        ("lost", None, "user-requested"),
        ("lost", None, "user-requested"),
    ]


def test_messages_about_other_runs_are_ignored(arbiter: Arbiter) -> None:
    assert arbiter.done(1, 0, False, at(0)) == []
    run = admit(arbiter, "a")
    assert arbiter.began(run.number + 1) == []
    assert arbiter.done(run.number + 1, 0, False, at(0)) == []
    assert arbiter.done(run.number - 1, 0, False, at(0)) == []
    assert run.state is RunState.RUNNING


def test_the_cursor_moves_only_from_where_it_is_believed_to_be(arbiter: Arbiter) -> None:
    run = admit(arbiter, "a")
    assert arbiter.move_cursor(run, None, None) == 0
    assert arbiter.move_cursor(run, 0, 10) == 10
    for expected in (0, None, 11):
        with pytest.raises(Refused) as refused:
            arbiter.move_cursor(run, expected, 20)
        assert refused.value.code == "moved"
    assert arbiter.move_cursor(run, 99, None) == 10


def test_ended_runs_are_remembered_within_bounds_and_recalled(arbiter: Arbiter) -> None:
    for number in range(subject.MAX_REMEMBERED + 10):
        run = admit(arbiter, f"r{number}")
        arbiter.done(run.number, 0, False, at(number))
    assert len(arbiter.runs()) == subject.MAX_REMEMBERED
    assert arbiter.find("r0") is None
    again = arbiter.recall({**run.status(), "run_id": "r0"})
    assert arbiter.find("r0") is again
    assert again.status() == {**run.status(), "run_id": "r0"}


good: dict[str, Any] = {
    "run_id": "a.B-c_9",
    "incarnation": 1,
    "digest": "0f",
    "spec": {"mode": "query", "code": "1", "timeout": None},
}


def test_a_good_request_is_read() -> None:
    assert parse_order(good) == Order("a.B-c_9", 1, "0f", "query", "1", None)
    assert parse_order({**good, "spec": {"mode": "query", "code": "", "timeout": 3}}).timeout == 3.0


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": None},
        {"run_id": ""},
        {"run_id": "a" * 65},
        {"run_id": "a/b"},
        {"run_id": "a\n"},
        {"run_id": "é"},
        {"incarnation": "1"},
        {"incarnation": True},
        {"digest": ""},
        {"digest": "x" * 129},
        {"digest": 5},
        {"spec": None},
        {"spec": {"mode": "query"}},
        {"spec": {"mode": "batch", "code": "1", "build": 5}},
        {"spec": {"mode": "batch", "code": "1", "exec": "a\0b"}},
        {"spec": {"mode": "shell", "code": "1"}},
        {"spec": {"mode": [], "code": "1"}},
        {"spec": {"mode": "query", "code": b"1"}},
        {"spec": {"mode": "query", "code": "1", "timeout": 0}},
        {"spec": {"mode": "query", "code": "1", "timeout": -1.0}},
        {"spec": {"mode": "query", "code": "1", "timeout": "3"}},
        {"spec": {"mode": "query", "code": "1", "timeout": float("nan")}},
        {"spec": {"mode": "query", "code": "1", "timeout": float("inf")}},
        {"spec": {"mode": "query", "code": "1", "timeout": True}},
    ],
)
def test_a_bad_request_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        parse_order({**good, **change})
    assert refused.value.code == "bad-request"


class Lives(RuleBasedStateMachine):
    """Any history of one kernel; the invariants are the promises."""

    def __init__(self) -> None:
        super().__init__()
        self.arbiter = Arbiter(INCARNATION, grace=GRACE)
        self.now = 0.0
        self.sent: list[str] = []
        self.admitted: list[str] = []
        self.cancelled_in_queue: set[str] = set()
        self.ended: dict[str, dict[str, Any]] = {}
        self.interrupts = 0
        self.answers: dict[tuple[str, int], str | None] = {}
        self.killed = False
        self.over = False

    def carry_out(self, effects: list[Any]) -> None:
        for effect in effects:
            match effect:
                case Send(run):
                    assert run.run_id not in self.sent, "a run starts at most once"
                    assert not self.killed
                    self.sent.append(run.run_id)
                case Ended(run):
                    assert run.run_id not in self.ended, "a run ends at most once"
                    assert run.state.ended
                    self.ended[run.run_id] = dict(run.status())
                case Interrupt(run):
                    assert run is self.arbiter.current, "only the run in user code is interrupted"
                    assert run.began
                case Kill(reason):
                    self.killed = True
                    self.arbiter.close(reason)

    @rule(name=st.integers(0, 12), timeout=st.none() | st.floats(0.5, 20))
    def start(self, name: int, timeout: float | None) -> None:
        wanted = order(f"r{name}", timeout=timeout)
        if self.killed and wanted.run_id not in self.admitted:
            with pytest.raises(Refused):
                self.arbiter.consider(wanted)
            return
        known = self.arbiter.consider(wanted)
        assert (known is not None) == (wanted.run_id in self.admitted)
        if known is None:
            self.admitted.append(wanted.run_id)
            self.carry_out(self.arbiter.admit(wanted, at(self.now))[1])

    @rule()
    def ready(self) -> None:
        self.carry_out(self.arbiter.ready(at(self.now)))

    @precondition(lambda self: self.arbiter.current is not None)
    @rule()
    def began(self) -> None:
        self.carry_out(self.arbiter.began(self.arbiter.current.number))

    @rule(number=st.integers(0, 15), asked=st.none() | st.integers(1, 3))
    def asks(self, number: int, asked: int | None) -> None:
        for effect in self.arbiter.asks(number, asked, False):
            assert isinstance(effect, Asked)
            assert effect.run is self.arbiter.current
            effect.run.prompt = {"offset": effect.run.number, "is_password": False}

    @rule(
        name=st.integers(0, 12), offset=st.none() | st.integers(0, 15), text=st.sampled_from([None, "a", "b"])
    )
    def answer(self, name: int, offset: int | None, text: str | None) -> None:
        run = self.arbiter.find(f"r{name}")
        waits = None if run is None else run.prompt
        fits = waits is not None and offset in (None, waits["offset"])
        try:
            run, effects = self.arbiter.answer(f"r{name}", offset, text)
        except Refused:
            assert not fits
            assert self.answers.get((f"r{name}", offset), "none") != text
        else:
            if not fits:
                assert effects == [], "a prompt is answered once"
                assert self.answers[f"r{name}", offset] == text
                return
            (effect,) = effects
            assert effect.run is run is self.arbiter.current
            assert run.prompt is None, "a prompt is answered once"
            self.answers[f"r{name}", waits["offset"]] = text

    @rule(number=st.integers(0, 15), code=st.integers(0, 3), interrupted=st.booleans())
    def done(self, number: int, code: int, interrupted: bool) -> None:
        self.carry_out(self.arbiter.done(number, code, interrupted, at(self.now)))

    @rule(name=st.none() | st.integers(0, 12))
    def interrupt(self, name: int | None) -> None:
        run_id = None if name is None else f"r{name}"
        if run_id is not None and run_id not in self.admitted:
            with pytest.raises(Refused, match="no such run"):
                self.arbiter.interrupt(run_id, at(self.now))
            return
        self.carry_out(self.arbiter.interrupt(run_id, at(self.now))[1])

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        deadline = self.arbiter.next_deadline()
        effects = self.arbiter.tick(at(self.now))
        assert not effects or (deadline is not None and deadline <= self.now)
        self.carry_out(effects)

    @rule()
    def end(self) -> None:
        self.arbiter.close("end")
        self.carry_out(self.arbiter.kernel_ended(at(self.now)))
        self.killed = self.over = True

    @invariant()
    def sent_in_order_of_arrival(self) -> None:
        order_of_arrival = [name for name in self.admitted if name in self.sent]
        assert self.sent == order_of_arrival

    @invariant()
    def one_at_a_time(self) -> None:
        running = [
            run for run in self.arbiter.runs() if run.state in (RunState.RUNNING, RunState.WAITING_INPUT)
        ]
        assert running == ([] if self.arbiter.current is None else [self.arbiter.current])
        assert set(self.sent) - set(self.ended) == {run.run_id for run in running}

    @invariant()
    def the_ended_never_change(self) -> None:
        for run_id, status in self.ended.items():
            run = self.arbiter.find(run_id)
            assert run is not None
            assert run.status() == status

    @invariant()
    def every_run_is_accounted_for(self) -> None:
        assert {run.run_id for run in self.arbiter.runs()} == set(self.admitted)
        if self.over:
            assert set(self.ended) == set(self.admitted)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
