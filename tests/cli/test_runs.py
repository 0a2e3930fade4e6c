"""`runs` and `output` against a manager that loses answers and hands out pages."""

import json
from functools import partial

import pytest
from click.testing import CliRunner

from backendai_mgr.cli import runs as command
from backendai_mgr.cli.group import cli
from backendai_mgr.cli.showing import OWN, Screen

from .test_files import Answer, manager

RUN = {
    "run_id": "r",
    "state": "finished",
    "exit_code": 3,
    "mode": "query",
    "queued_at": 1.0,
    "started_at": 2.0,
    "ended_at": 125.0,
    "end_offset": 1536,
}


@pytest.mark.parametrize("with_pages", [True, False])
async def test_all_pages_are_asked_for_if_there_are_pages(with_pages: bool) -> None:
    asked = []

    def answer(method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        asked.append(query)
        after = int(query.get("after", "0"))
        page = {"runs": [RUN | {"run_id": f"r{after + n}"} for n in range(2)]}
        if with_pages:
            page["next"] = str(after + 2) if after < 4 else None
        return 200, {}, json.dumps(page).encode()

    async with manager(answer) as client:
        found = [run["run_id"] async for page in command._pages(client, "näme") for run in page]
    assert found == [f"r{n}" for n in range(6 if with_pages else 2)]
    assert (
        asked
        == [{"limit": "100"}, {"limit": "100", "after": "2"}, {"limit": "100", "after": "4"}][
            : 3 if with_pages else 1
        ]
    )


def test_a_row_tells_what_came_of_a_run() -> None:
    run_id, state, exit_code, mode, _, took, output = command._row(RUN)
    assert (run_id, state, exit_code, mode, took, output) == (
        "r", "finished", "3", "query", "2m", "1.5 KiB",
    )  # fmt: skip
    unfinished = command._row(RUN | {"exit_code": None, "ended_at": None, "started_at": None})
    assert (unfinished[2], unfinished[5]) == ("-", "-")


async def test_runs_are_removed_one_by_one_and_a_lost_answer_is_no_error(monkeypatch, capsys) -> None:
    gone: list[str] = []

    def answer(method: str, path: str, query: dict[str, str], body: bytes) -> Answer | None:
        assert method == "DELETE"
        if "lost" not in gone:
            gone.append("lost")
            return None
        if path_of["run"] == "busy":
            return 409, {}, json.dumps({"title": "Conflict.", "msg": "It has not ended."}).encode()
        return 404, {}, json.dumps({"title": "No such run."}).encode()

    path_of = {"run": ""}
    async with manager(answer) as client:
        monkeypatch.setattr(command, "find_target", lambda data_dir: client.target)
        assert await command._remove(None, "n", ["lost"]) == 0
        path_of["run"] = "busy"
        assert await command._remove(None, "n", ["busy"]) == 1
        path_of["run"] = "unknown"
        assert await command._remove(None, "n", ["unknown"]) == 1
    told = capsys.readouterr()
    assert told.out == "lost\n"
    assert told.err == "Error: busy: Conflict: It has not ended.\nError: unknown: No such run\n"


async def test_what_there_is_is_copied_and_then_it_ends(capfdbinary) -> None:
    """A character of which only a part has come is not waited for."""
    pieces = {
        "0": {
            "records": [{"offset": 0, "time": 1.0, "stream": "stdout", "base64": "/wA="}],
            "next_offset": 2,
        },
        "2": {"records": [{"offset": 2, "time": 1.0, "stream": "stderr", "data": "x"}], "next_offset": 3},
        "3": {"records": [], "next_offset": 3},
    }

    def answer(method: str, path: str, query: dict[str, str], body: bytes) -> Answer:
        return 200, {}, json.dumps(pieces[query["offset"]] | {"finished": False}).encode()

    async with manager(answer) as client:
        await command._copy(client, "/session/n/runs/r", 0, Screen(OWN))
    assert capfdbinary.readouterr() == (b"\xff\x00", b"x")


@pytest.mark.parametrize(
    "words", [["rm"], ["rm", "name"], ["name", "other"], ["--json", "rm", "name", "r"], []]
)
def test_other_words_are_wrong_usage(words: list[str]) -> None:
    assert CliRunner().invoke(cli, ["runs", *words]).exit_code == 2


def test_words_are_a_list_or_a_removal() -> None:
    for words, called in ((["name"], command._list), (["rm", "name", "r", "r"], command._remove)):
        task = CliRunner().invoke(cli, ["runs", *words], standalone_mode=False).return_value
        assert isinstance(task, partial)
        assert task.func is called
    assert task.args[2] == ("r",)
