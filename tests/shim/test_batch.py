"""Batch runs through a real shim: steps, their ends, interrupts, limits, input."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.shim.client import Client, Refused, Shim, processes_marked, start, start_batch, until


def steps(shim: Shim, run_id: str) -> list[tuple[str, int]]:
    lines = shim.output(run_id, "step").splitlines()
    return [(item["step"], item["exit_code"]) for item in map(json.loads, lines)]


def test_three_steps_in_order(shim: Shim, client: Client) -> None:
    start_batch(client, "r", clean="echo c; exit 5", build="echo b", exec="echo e; exit 3")
    status = client.ended("r")
    assert (status["state"], status["exit_code"], status["mode"]) == ("finished", 3, "batch")
    assert shim.output("r", "stdout") == "c\nb\ne\n"
    assert steps(shim, "r") == [("clean", 5), ("build", 0)]


def test_skipped_steps_end_with_0(shim: Shim, client: Client) -> None:
    start_batch(client, "r", exec="echo e")
    assert client.ended("r")["exit_code"] == 0
    assert steps(shim, "r") == [("clean", 0), ("build", 0)]


def test_after_a_failed_build_nothing_is_executed(shim: Shim, client: Client) -> None:
    start_batch(client, "r", build="exit 7", exec="echo never")
    status = client.ended("r")
    assert (status["state"], status["exit_code"], status["reason"]) == ("finished", 127, "build-failed")
    assert shim.output("r", "stdout") == ""
    assert steps(shim, "r") == [("clean", 0), ("build", 7)]


def test_an_interrupt_ends_the_step_and_the_session_lives(shim: Shim, client: Client) -> None:
    start_batch(client, "r", build="echo on; exec sleep 100", exec="echo never")
    until(lambda: "on" in shim.output("r", "stdout"))
    client.ask("interrupt", run_id="r")
    status = client.ended("r")
    assert (status["state"], status["exit_code"]) == ("cancelled", 130)
    assert shim.run("print(1)")["exit_code"] == 0


def test_a_limit_ends_the_step_and_the_session_lives(shim: Shim, client: Client) -> None:
    start_batch(client, "r", timeout=0.2, exec="exec sleep 100")
    status = client.ended("r")
    assert (status["state"], status["reason"]) == ("timeout", "exec-timeout")
    assert shim.run("print(1)")["exit_code"] == 0


def test_a_step_that_ignores_the_interrupt_costs_the_kernel(make_shim: Callable[..., Shim]) -> None:
    shim = make_shim(limits={"exec_grace": 0.2})
    client = shim.running()
    start_batch(client, "r", timeout=0.2, exec="trap '' INT; while :; do sleep 100; done")
    assert client.ended("r")["state"] == "timeout"
    assert client.note("kernel", state="ended")["exit"]["reason"] == "exec-timeout"
    until(lambda: not processes_marked(shim.spec["kernel_id"]))


def test_children_in_the_background_do_not_hold_the_run(shim: Shim, client: Client) -> None:
    start_batch(client, "r", exec="sleep 100 & echo done")
    assert client.ended("r")["state"] == "finished"
    assert shim.output("r", "stdout") == "done\n"


def test_a_program_that_reads_is_seen_and_fed(shim: Shim, client: Client) -> None:
    start_batch(client, "r", exec="read line; echo got $line")
    prompt = client.note("run", run_id="r", state="waiting-input")["run"]["prompt"]
    client.ask("input", run_id="r", offset=prompt["offset"], text="this")
    assert client.ended("r")["state"] == "finished"
    assert shim.output("r", "stdout") == "got this\n"


def test_input_can_end(shim: Shim, client: Client) -> None:
    start_batch(client, "r", exec="cat")
    client.note("run", run_id="r", state="waiting-input")
    client.ask("input", run_id="r", text="a line")
    client.ask("input", run_id="r", text=None)
    assert client.ended("r")["exit_code"] == 0
    assert shim.output("r", "stdout") == "a line\n"


def test_input_that_came_with_the_order_is_the_last_step_s(shim: Shim, client: Client) -> None:
    text = "one\ntwo\n" * 10_000
    start_batch(client, "r", build="cat", exec="cat", stdin=text)
    assert client.ended("r")["exit_code"] == 0
    assert shim.output("r", "stdout") == text
    assert shim.output("r", "prompt") == ""


def test_too_much_input_is_refused(client: Client) -> None:
    with pytest.raises(Refused, match="stdin"):
        start_batch(client, "r", exec="cat", stdin="x" * ((1 << 20) + 1))


def test_a_query_asks_and_one_answer_counts(shim: Shim, client: Client) -> None:
    start(client, "r", "print(input('? '))\nprint(input())")
    offset = client.note("run", run_id="r", state="waiting-input")["run"]["prompt"]["offset"]
    client.ask("input", run_id="r", offset=offset, text="first")
    with pytest.raises(Refused) as refused:
        client.ask("input", run_id="r", offset=offset, text="second")
    assert refused.value.code == "no-prompt"
    client.note("run", run_id="r", state="waiting-input")
    again = client.ask("input", run_id="r", offset=offset, text="first")["run"]
    assert again["state"] == "waiting-input", "an answer that comes again is not one to the next prompt"
    client.ask("input", run_id="r", text="third")
    assert client.ended("r")["exit_code"] == 0
    assert shim.output("r", "stdout") == "? first\nthird\n"


def test_the_order_s_input_answers_a_query_line_by_line(shim: Shim, client: Client) -> None:
    code = "print([input(), input()])\ntry: input()\nexcept EOFError: print('end')"
    spec = {"mode": "query", "code": code, "timeout": None, "stdin": "a\nb"}
    client.ask("start", run_id="r", incarnation=1, digest="d", spec=spec)
    assert client.ended("r")["exit_code"] == 0
    assert shim.output("r", "stdout") == "['a', 'b']\nend\n"
    assert shim.output("r", "prompt") == ""


def test_code_is_completed_between_runs(shim: Shim, client: Client) -> None:
    shim.run("some_name = 1")
    assert client.ask("complete", code="some_n", cursor=6)["matches"] == ["some_name"]
    start(client, "r", "input()")
    client.note("run", run_id="r", state="waiting-input")
    assert client.ask("complete", code="some_n", cursor=6)["matches"] == []


def test_completion_leaves_alone_what_runs_in_the_background(make_shim: Callable[..., Shim]) -> None:
    shim = make_shim(limits={"complete": 0.2})
    client = shim.running()
    shim.run("import subprocess; child = subprocess.Popen(['sh', '-c', 'sleep 1; touch lived'])")
    client.ask("complete", code="chil", cursor=4)
    until(lambda: (shim.work / "lived").exists())


def test_completion_that_takes_too_long_ends_alone_and_a_run_waits_for_that(
    make_shim: Callable[..., Shim],
) -> None:
    shim = make_shim(limits={"complete": 0.2})
    shim.running()
    shim.run(
        "import subprocess, time\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "class Slow:\n"
        "    def __dir__(self):\n"
        "        open('busy', 'w').close()\n"
        "        while True: time.sleep(9)\n"
        "slow = Slow()"
    )
    asker = shim.connect()
    assert asker is not None
    numbers = [asker.post("complete", code="slow.", cursor=5) for _ in range(2)]
    until(lambda: (shim.work / "busy").exists())
    assert shim.run("print(child.poll())", "r")["exit_code"] == 0
    assert shim.output("r") == "None\n"
    for number in numbers:
        assert asker.reply(number) == {"matches": []}
