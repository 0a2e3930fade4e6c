"""`ls`, `mv` and `rm` of files against a manager that loses answers."""

import json

import pytest

from backendai_mgr.cli import places
from backendai_mgr.cli.errors import ApiError, CliError
from backendai_mgr.cli.files import Remote
from backendai_mgr.cli.places import parse_remote, remove

from .test_files import MISSING, Answer, Session, manager

ENTRY = {"filename": "a", "mode": "-rw-r--r--", "size": 2048, "mtime": 1.0}


@pytest.mark.parametrize(
    ("text", "place", "relative", "parent"),
    [
        ("name", Remote("name", ""), "", ""),
        ("name:", Remote("name", ""), "", ""),
        ("name:/home/work", Remote("name", "/home/work"), "", ""),
        ("name:/home/work/a/b/", Remote("name", "/home/work/a/b/"), "a/b", "a"),
        ("name:f", Remote("name", "f"), "f", ""),
    ],
)
def test_a_place_in_a_session(text: str, place: Remote, relative: str, parent: str) -> None:
    found = parse_remote(text)
    assert (found, found.relative, found.parent) == (place, relative, Remote("name", parent))


@pytest.mark.parametrize("text", ["/a:b", "a/b", ":x", "name:/etc"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(CliError):
        parse_remote(text)


async def test_a_folder_is_listed_and_a_file_by_itself() -> None:
    session = Session()
    session.folders["d"] = [ENTRY, ENTRY | {"filename": "b"}]  # type: ignore[list-item]
    session.files["d/a"] = b"x"
    async with manager(session) as client:
        for path, names in (("d", ["a", "b"]), ("d/a", ["a"])):
            entries, cut = await places._entries(client, Remote("n", path))
            assert ([entry["filename"] for entry in entries], cut) == (names, False)


def test_names_do_nothing_to_a_terminal() -> None:
    assert places._row(ENTRY | {"filename": "a\x1b[2J\udcff"})[3] == "a?[2J\\udcff"
    assert places._row(ENTRY)[:2] == ("-rw-r--r--", "2.0 KiB")


@pytest.mark.parametrize("lost", [True, False])
async def test_a_removal_whose_answer_is_lost_is_no_error(lost: bool) -> None:
    asked: list[dict[str, str]] = []

    def answer(method: str, path: str, query: dict[str, str], body: bytes) -> Answer | None:
        asked.append(query)
        return None if lost and len(asked) == 1 else MISSING

    async with manager(answer) as client:
        if lost:
            await remove(client, Remote("n", "d"), recursive=True)
            assert asked == [{"recursive": "true"}] * 2
        else:
            with pytest.raises(ApiError, match="No such file"):
                await remove(client, Remote("n", "d"), recursive=False)
            assert asked == [{}]


async def test_a_file_goes_into_a_folder_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def answer(method: str, path: str, query: dict[str, str], body: bytes) -> Answer | None:
        if method == "GET":
            kind = "application/json" if path == "d" else "application/octet-stream"
            return (200, {"Content-Type": kind}, b"{}") if path in ("d", "f") else MISSING
        asked.append((path, json.dumps(query)))
        return 200, {}, b"{}"

    async with manager(answer) as client:
        monkeypatch.setattr(places, "find_target", lambda data_dir: client.target)
        for there, force in (("d", False), ("new", False), ("f", True), ("", False)):
            await places._mv(None, Remote("n", "x/f"), Remote("n", there), force)
    assert [(path, json.loads(query)) for path, query in asked] == [
        ("x/f", {"rename": "d/f"}),
        ("x/f", {"rename": "new"}),
        ("x/f", {"rename": "f", "replace": "true"}),
        ("x/f", {"rename": "f"}),
    ]
