"""Terminals through a real shim: shells, what is typed, sizes, ends, floods."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest

from tests.shim.client import Client, Refused, Shim, start_batch, until


def open_terminal(client: Client, run_id: str, line: str | None = None, incarnation: int = 1) -> Any:
    spec = {"mode": "terminal", "code": "", "timeout": None, "exec": line}
    return client.ask("start", run_id=run_id, incarnation=incarnation, digest="t", spec=spec)


def type_into(client: Client, run_id: str, text: str, offset: int | None = None, writer: str = "w") -> int:
    data = b64encode(text.encode()).decode()
    return int(client.ask("type", run_id=run_id, writer=writer, offset=offset, data=data)["taken"])


def shows(shim: Shim, run_id: str, text: str) -> None:
    until(lambda: text in shim.output(run_id, "stdout"))


def test_a_shell_on_a_terminal_of_its_own(shim: Shim, client: Client) -> None:
    assert open_terminal(client, "t")["created"]
    type_into(client, "t", "tty; test -t 0 -a -t 1 -a -t 2 && echo it is $((40 + 2))\r")
    shows(shim, "t", "it is 42")
    assert "/dev/pts/" in shim.output("t")
    type_into(client, "t", "exit 7\r")
    status = client.ended("t")
    assert (status["state"], status["exit_code"], status["mode"]) == ("finished", 7, "terminal")
    assert status["end_offset"] == len(shim.output("t").encode())


def test_it_lives_beside_the_interpreter(shim: Shim, client: Client) -> None:
    spec = {"mode": "query", "code": "input('name? ')", "timeout": None}
    client.ask("start", run_id="q", incarnation=1, digest="q", spec=spec)
    open_terminal(client, "t")
    type_into(client, "t", "echo un''ited\r")
    shows(shim, "t", "united")
    assert "united" not in shim.output("q")
    client.ask("input", run_id="q", text="Ada", offset=None)
    assert client.ended("q")["state"] == "finished"
    assert client.ask("status", run_id="t")["run"]["state"] == "running"


def test_what_is_sent_again_is_typed_once(shim: Shim, client: Client) -> None:
    open_terminal(client, "t", "stty -echo; echo on; cat")
    shows(shim, "t", "on")
    assert type_into(client, "t", "one\r", 0) == 4
    assert type_into(client, "t", "one\rtwo\r", 0) == 8
    assert type_into(client, "t", "four\r", 14) == 8  # something is missing before it
    assert type_into(client, "t", "", writer="other") == 0
    type_into(client, "t", "\4")
    assert client.ended("t")["exit_code"] == 0
    assert shim.output("t").replace("\r", "").splitlines() == ["on", "one", "two"]


def test_sizes_are_told_to_the_program(shim: Shim, client: Client) -> None:
    open_terminal(client, "t", "stty size; trap 'stty size' WINCH; echo on; while :; do sleep 0.05; done")
    shows(shim, "t", "on")
    client.ask("resize", run_id="t", rows=50, columns=133)
    shows(shim, "t", "50 133")
    assert shim.output("t").startswith("24 80\r\n")


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (1, 0), (10_000, 1), ("1", 1), (1, None)])
def test_wrong_sizes_are_refused(client: Client, rows: Any, columns: Any) -> None:
    open_terminal(client, "t")
    with pytest.raises(Refused) as refused:
        client.ask("resize", run_id="t", rows=rows, columns=columns)
    assert refused.value.code == "bad-request"


@pytest.mark.parametrize(
    "wrong", [{"data": "?"}, {"data": 1}, {"writer": ""}, {"writer": None}, {"offset": -1}, {"offset": "0"}]
)
def test_wrong_input_is_refused(client: Client, wrong: dict[str, Any]) -> None:
    open_terminal(client, "t")
    with pytest.raises(Refused) as refused:
        client.ask("type", **{"run_id": "t", "writer": "w", "offset": 0, "data": "", **wrong})
    assert refused.value.code == "bad-request"


def test_nothing_else_can_be_typed_into(shim: Shim, client: Client) -> None:
    shim.run("1", "q")
    open_terminal(client, "t", "exit 0")
    client.ended("t")
    for run_id, code in (("q", "no-terminal"), ("t", "no-terminal"), ("other", "not-found")):
        with pytest.raises(Refused) as refused:
            type_into(client, run_id, "x")
        assert refused.value.code == code
        with pytest.raises(Refused) as refused:
            client.ask("resize", run_id=run_id, rows=1, columns=1)
        assert refused.value.code == code


def test_a_hangup_ends_the_shell_and_what_it_runs(shim: Shim, client: Client) -> None:
    open_terminal(client, "t")
    type_into(client, "t", "sleep 1000 & echo child $!.\rsleep 1001\r")
    shows(shim, "t", "child ")
    until(lambda: any(word.isdigit() for word in _children(shim)))
    client.ask("interrupt", run_id="t")
    status = client.ended("t")
    assert (status["state"], status["exit_code"]) == ("cancelled", 130)
    until(lambda: not _children(shim))
    assert shim.run("print(1)")["exit_code"] == 0


def _children(shim: Shim) -> list[str]:
    text = shim.output("t").split("child ")[-1]
    pid = text.split(".")[0]
    return [pid] if pid.isdigit() and os.path.exists(f"/proc/{pid}") else []


def test_one_that_does_not_heed_the_hangup_is_killed(make_shim: Callable[..., Shim]) -> None:
    shim = make_shim(limits={"exec_grace": 0.2})
    client = shim.running()
    open_terminal(client, "t", "trap '' HUP; echo on; while :; do sleep 100; done")
    shows(shim, "t", "on")
    client.ask("interrupt", run_id="t")
    assert client.ended("t")["state"] == "cancelled"
    assert shim.run("print(1)")["exit_code"] == 0


def test_a_program_that_lets_go_of_its_terminal_is_hung_up(shim: Shim, client: Client) -> None:
    open_terminal(client, "t", "exec sleep 1000 </dev/null >/dev/null 2>&1")
    assert client.ended("t")["exit_code"] == 128 + 1


def test_a_flood_reaches_the_log_whole(shim: Shim, client: Client) -> None:
    open_terminal(client, "t", "stty raw; seq 300000")
    client.socket.settimeout(60)
    status = client.ended("t")
    while status["state"] == "running":
        status = client.ended("t")
    assert shim.output("t").split() == [str(number) for number in range(1, 300001)]


def test_input_that_nobody_reads_waits_and_others_do_not(shim: Shim, client: Client) -> None:
    open_terminal(client, "deaf", "stty raw -echo; echo on; sleep 1000")
    shows(shim, "deaf", "on")
    piece, taken = "x" * (60 << 10), 0
    waits = b64encode(piece.encode()).decode()
    for _ in range(2):  # the second fills what is kept
        taken = type_into(client, "deaf", piece, taken)
    assert taken == 2 * len(piece)
    number = client.post("type", run_id="deaf", writer="w", offset=taken, data=waits)
    with shim.connect() as other:
        open_terminal(other, "t")
        type_into(other, "t", "echo al''ive\r")
        shows(shim, "t", "alive")
        other.ask("interrupt", run_id="deaf")
    assert client.reply(number)["taken"] == taken  # in vain, and said so


def test_terminals_end_with_the_kernel_and_are_not_started_again(shim: Shim, client: Client) -> None:
    open_terminal(client, "t")
    type_into(client, "t", "echo be''fore\r")
    shows(shim, "t", "before")
    shim.kill()
    client = shim.start(incarnation=2)
    assert client is not None
    status = open_terminal(client, "t", incarnation=2)
    assert (status["created"], status["run"]["state"]) == (False, "lost")
    assert "before" in shim.output("t")


def test_a_service_prints_into_a_log_of_its_own(shim: Shim, client: Client) -> None:
    line = "echo out; echo err >&2; read x || echo no input; exec sleep 1000"
    spec = {"mode": "service", "code": "", "timeout": None, "exec": line}
    client.ask("start", run_id="s", incarnation=1, digest="s", spec=spec)
    shows(shim, "s", "no input")
    assert sorted(shim.output("s").split("\n")) == ["", "err", "no input", "out"]
    client.ask("interrupt", run_id="s")
    assert client.ended("s")["state"] == "cancelled"


@pytest.mark.parametrize("descriptors", range(6, 12))
def test_a_kernel_that_has_hardly_a_descriptor_left_lives(
    make_shim: Callable[..., Shim], descriptors: int
) -> None:
    shim = make_shim()
    shim.spec["setup"]["limits"] = {"RLIMIT_NOFILE": descriptors}
    client = shim.running()
    open_terminal(client, "t", "exit 3")
    assert client.ended("t")["exit_code"] in (3, 126, 137)
    start_batch(client, "b", exec="exit 4")
    assert client.ended("b")["exit_code"] in (4, 126)
    with pytest.raises(Refused):
        client.ask("socket", port=1)
    assert client.ask("hello")["state"] == "running"
