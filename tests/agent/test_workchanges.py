"""Changes of a hostile user's files: into them, of their paths, their end, and under conditions."""

import errno
import os
import stat
import threading

import pytest

from backendai_mgr.agent import beneath, workchanges
from backendai_mgr.agent.workchanges import WorkChanges
from backendai_mgr.wire.files import Condition
from backendai_mgr.wire.rpc import AgentRefusal

from .test_workfolder import MOST, OWNER, ROOT, put, refused, secret, theirs, work  # noqa: F401

NEW = Condition(unlike=["*"])
THERE = Condition(match=["*"])


@pytest.fixture
def folder(work):  # noqa: F811
    before = os.listdir("/proc/self/fd")
    yield WorkChanges(work)
    assert len(os.listdir("/proc/self/fd")) == len(before), "a descriptor was left open"


def tag(folder, path):
    return folder.read(path, 0, 0).tag


def patch(folder, path, offset, data, **options):
    return folder.patch(path, offset, data, **{"most": MOST, **options})


# ---------------------------------------------------------------- conditions


def test_what_is_written_is_told(folder, work):  # noqa: F811
    made = folder.write("f", "u", 0, b"one", final=True, most=MOST)
    assert (made.size, made.created, made.tag) == (3, True, tag(folder, "f"))
    again = folder.write("f", "v", 0, b"two", final=True, most=MOST)
    assert (again.created, again.tag == made.tag) == (False, False)
    assert folder.write("g", "u", 0, b"one", final=False, most=MOST) is None


@pytest.mark.parametrize(
    ("condition", "on_missing", "on_there"),
    [
        (Condition(), True, True),
        (NEW, True, False),
        (THERE, False, True),
        (Condition(match=["1-2-3"]), False, False),
        (Condition(unlike=["1-2-3"]), True, True),
        (Condition(match=[]), False, False),
    ],
)
def test_a_condition_is_kept(folder, work, condition, on_missing, on_there):  # noqa: F811
    for path, holds in (("missing", on_missing), ("there", on_there)):
        put(folder, "there", b"old")
        call = (folder.write, path, "u", 0, b"new")
        if holds:
            call[0](*call[1:], final=True, most=MOST, condition=condition)
            assert (work / path).read_bytes() == b"new"
        else:
            refused("precondition", *call, final=True, most=MOST, condition=condition)
            refused("precondition", *call, final=False, most=MOST, condition=condition)
            assert not (work / path).exists() or (work / path).read_bytes() == b"old"
    assert not [name for name in os.listdir(work) if name.startswith(".upload")]


def test_the_tag_of_a_link_is_that_of_its_file(folder, work):  # noqa: F811
    put(folder, "real", b"x")
    (work / "alias").symlink_to("real")
    seen = Condition(match=[tag(folder, "alias")])
    folder.write("alias", "u", 0, b"mine", final=True, most=MOST, condition=seen)
    assert (work / "real").read_bytes() == b"x"
    assert not (work / "alias").is_symlink()


@pytest.mark.parametrize("change", ["put", "patch", "move", "remove"])
def test_of_changes_with_the_same_condition_one_wins(folder, change):
    for number in range(20):
        put(folder, "f", b"begin", upload=f"b{number}")
        seen = Condition(match=[tag(folder, "f")])
        outcomes = []
        gate = threading.Barrier(4)

        def attempt(name, seen=seen, gate=gate, outcomes=outcomes):
            gate.wait()
            try:
                if change == "put":
                    folder.write("f", name, 0, name.encode(), final=True, most=MOST, condition=seen)
                elif change == "patch":
                    patch(folder, "f", None, name.encode(), condition=seen)
                elif change == "move":
                    folder.move("f", name, replace=True, condition=seen)
                else:
                    folder.remove("f", recursive=False, condition=seen)
                outcomes.append("done")
            except AgentRefusal as refusal:
                outcomes.append(refusal.code)

        threads = [threading.Thread(target=attempt, args=(f"t{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert outcomes.count("done") == 1, outcomes
        assert set(outcomes) <= {"done", "precondition", "no-such-file"}


def test_a_name_that_its_user_takes_in_time_is_not_replaced(folder, work, monkeypatch):  # noqa: F811
    """Between the look and the rename."""

    def quick(*arguments):
        theirs(work / "f", b"theirs")
        return beneath.rename_new(*arguments)

    monkeypatch.setattr("backendai_mgr.agent.workfolder.rename_new", quick)
    refused("precondition", folder.write, "f", "u", 0, b"x", final=True, most=MOST, condition=NEW)
    assert (work / "f").read_bytes() == b"theirs"
    assert os.listdir(work) == ["f"]


def test_an_upload_is_dropped(folder, work):  # noqa: F811
    put(folder, "d/f", final=False)
    folder.drop("d/f", "u")
    folder.drop("d/f", "u")
    folder.drop("no/such/folder", "u")
    assert os.listdir(work / "d") == []


# ---------------------------------------------------------------- into a file


@pytest.mark.parametrize(
    ("offset", "data", "expected"),
    [
        (None, b"!", b"0123456789!"),
        (10, b"!", b"0123456789!"),
        (0, b"ab", b"ab23456789"),
        (8, b"abc", b"01234567abc"),
        (3, b"", b"0123456789"),
    ],
)
def test_a_file_is_written_into(folder, work, offset, data, expected):  # noqa: F811
    theirs(work / "f", b"0123456789")
    inode = (work / "f").stat().st_ino
    done = patch(folder, "f", offset, data)
    assert (work / "f").read_bytes() == expected
    assert (done.size, done.inode, done.tag) == (len(expected), inode, tag(folder, "f"))


def test_what_cannot_be_written_into(folder, work, secret):  # noqa: F811
    put(folder, "d/f", b"123")
    os.mkfifo(work / "pipe")
    (work / "out").symlink_to(secret)
    refused("no-such-file", patch, folder, "missing", None, b"x")
    refused("is-folder", patch, folder, "d", None, b"x")
    refused("is-folder", patch, folder, "", None, b"x")
    refused("no-such-file", patch, folder, "pipe", None, b"x")
    refused("outside", patch, folder, "out", None, b"x")
    refused("outside", patch, folder, "../secret", None, b"x")
    assert "3 bytes" in refused("upload-gap", patch, folder, "d/f", 4, b"x").message
    refused("too-large", patch, folder, "d/f", None, b"12", most=4)
    refused("precondition", patch, folder, "d/f", None, b"x", condition=Condition(match=["1-2-3"]))
    assert (work / "d/f").read_bytes() == b"123"
    assert secret.read_text() == "nobody's business"


@pytest.mark.skipif(not ROOT, reason="without root the system sees to it")
def test_a_hard_link_to_a_file_of_others_is_not_written_into(folder, work, secret):  # noqa: F811
    os.link(secret, work / "f")
    refused("denied", patch, folder, "f", 0, b"x")
    assert secret.read_text() == "nobody's business"


@pytest.mark.parametrize(("offset", "kept"), [(None, b"0123456789"), (8, b"01234567ab")])
def test_a_full_disk_leaves_a_file_as_long_as_it_was(folder, work, monkeypatch, offset, kept):  # noqa: F811
    theirs(work / "f", b"0123456789")
    write = os.write

    def fills(file, data):
        if os.fstat(file).st_size > 10:
            raise OSError(errno.ENOSPC, "full")
        return write(file, data[:3])

    monkeypatch.setattr(os, "write", fills)
    refused("disk-full", patch, folder, "f", offset, b"abcdef")
    assert (work / "f").read_bytes() == kept


# ---------------------------------------------------------------- another path


def test_files_and_folders_are_moved(folder, work):  # noqa: F811
    put(folder, "a/f", b"F")
    put(folder, "a/g", b"G")
    moved = folder.move("a/f", "b/c/f", replace=False)
    assert (moved.size, moved.tag) == (1, tag(folder, "b/c/f"))
    refused("exists", folder.move, "a/g", "b/c/f", replace=False)
    folder.move("a/g", "b/c/f", replace=True)
    assert (work / "b/c/f").read_bytes() == b"G"
    folder.move("b/c", "c", replace=False)
    assert sorted(os.listdir(work)) == ["a", "b", "c"]
    assert (work / "c").stat().st_uid == OWNER


def test_a_link_is_moved_itself(folder, work, secret):  # noqa: F811
    (work / "out").symlink_to(secret)
    folder.move("out", "moved", replace=False)
    assert (work / "moved").is_symlink()


@pytest.mark.parametrize(
    ("path", "to", "code"),
    [
        ("missing", "x", "no-such-file"),
        ("f", "../x", "target"),
        ("f", "/etc/x", "target"),
        ("f", "up/x", "target"),
        ("f", "x" * 256, "target"),
        ("f", "", "target"),
        ("f", "f/x", "target"),
        ("d", "d/inner", "target"),
        ("f", "d", "target"),
        ("", "x", "is-folder"),
        ("../secret", "x", "outside"),
        ("up/secret", "x", "outside"),
    ],
)
def test_moves_that_cannot_be(folder, work, secret, path, to, code):  # noqa: F811
    put(folder, "f")
    put(folder, "d/g")
    (work / "up").symlink_to("..")
    refused(code, folder.move, path, to, replace=True)
    assert sorted(os.listdir(work)) == ["d", "f", "up"]
    assert secret.read_text() == "nobody's business"


# ---------------------------------------------------------------- its end


def test_files_links_and_folders_are_removed(folder, work, secret):  # noqa: F811
    put(folder, "d/e/f")
    put(folder, "g")
    (work / "d/out").symlink_to("../..")
    (work / "out").symlink_to(secret.parent)
    os.mkfifo(work / "d/pipe")
    assert folder.remove("g", recursive=False)
    refused("is-folder", folder.remove, "d", recursive=False)
    assert folder.remove("d", recursive=True)
    assert folder.remove("out", recursive=True)
    assert os.listdir(work) == []
    assert secret.read_text() == "nobody's business"
    refused("no-such-file", folder.remove, "g", recursive=True)
    refused("is-folder", folder.remove, "", recursive=True)
    refused("outside", folder.remove, "../secret", recursive=True)


def test_much_is_removed_in_several_calls(folder, work, monkeypatch):  # noqa: F811
    monkeypatch.setattr(workchanges, "MOST_REMOVED", 10)
    for number in range(25):
        put(folder, f"d/{number % 3}/{number}")
    calls = 1
    while not folder.remove("d", recursive=True):
        calls += 1
        assert calls < 10
    assert calls > 2
    assert os.listdir(work) == []


def test_folders_nested_without_end_are_removed(folder, work):  # noqa: F811
    os.chdir(work)
    try:
        for _ in range(2500):  # beyond any path that could be named
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir("/")
    calls = 0
    while not folder.remove("d", recursive=True):
        calls += 1
        assert calls < 100
    assert os.listdir(work) == []


def test_removal_keeps_to_the_folder_while_its_user_swaps_it(folder, work, secret):  # noqa: F811
    """Folders within become links to the outside, and back, for as long as they are removed."""
    (secret.parent / "outside").mkdir()
    (secret.parent / "outside" / "kept").touch()
    (work / "away").symlink_to("../outside")
    over = threading.Event()

    def swap():
        libc = beneath._libc
        while not over.is_set():  # RENAME_EXCHANGE
            libc.renameat2(-100, bytes(work / "d/e"), -100, bytes(work / "away"), 2)

    attacker = threading.Thread(target=swap)
    attacker.start()
    refusals = set()
    try:
        for number in range(1000):
            try:
                put(folder, f"d/e/{number % 5}", b"x", upload=str(number))
                folder.remove("d", recursive=True)
            except AgentRefusal as refusal:
                refusals.add(refusal.code)
    finally:
        over.set()
        attacker.join()
    assert refusals <= {"outside", "no-such-file", "upload-gap", "denied"}
    assert (secret.parent / "outside" / "kept").exists()
    assert secret.read_text() == "nobody's business"
    assert stat.S_ISDIR(work.stat().st_mode)
