"""Files of a work folder whose user is hostile: what is done, what is refused, and that nothing blocks."""

import errno
import io
import os
import socket
import stat
import tarfile
import threading

import pytest

from backendai_mgr.agent import archive, beneath, workfolder
from backendai_mgr.agent.workfolder import WorkFolder
from backendai_mgr.wire.files import MAX_ENTRIES
from backendai_mgr.wire.rpc import AgentRefusal

MOST = 1 << 20
ROOT = os.geteuid() == 0
OWNER = 20999 if ROOT else os.geteuid()


@pytest.fixture
def work(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    os.chown(folder, OWNER, OWNER if ROOT else -1)
    return folder


@pytest.fixture
def folder(work):
    before = os.listdir("/proc/self/fd")
    yield WorkFolder(work)
    assert len(os.listdir("/proc/self/fd")) == len(before), "a descriptor was left open"


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text("nobody's business")
    path.chmod(0o600)
    return path


def put(folder, path, data=b"data", *, upload="u", offset=0, final=True, most=MOST):
    folder.write(path, upload, offset, data, final=final, most=most)


def theirs(path, content=b"x"):
    """A file as the user makes it."""
    path.write_bytes(content)
    os.chown(path, OWNER, -1)
    return path


def untar(archive):
    """The names in a tar file in their order, with what is in the files."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {info.name: tar.extractfile(info).read() if info.isfile() else None for info in tar}


def refused(code, call, *arguments, **named):
    with pytest.raises(AgentRefusal) as caught:
        call(*arguments, **named)
    assert caught.value.code == code, caught.value
    return caught.value


# ---------------------------------------------------------------- what is done


def test_a_file_is_written_read_and_listed(folder, work):
    put(folder, "a/b/ü.txt", b"hello")
    piece = folder.read("a/b/ü.txt", 1, 3)
    assert (piece.data, piece.size, piece.inode) == (b"ell", 5, (work / "a/b/ü.txt").stat().st_ino)
    assert folder.read("a/b/ü.txt", 99, 3).data == b""
    assert [(e.filename, e.mode, e.size) for e in folder.list("a/b").entries] == [("ü.txt", "-rw-r--r--", 5)]
    assert [(e.filename, e.mode) for e in folder.list("").entries] == [("a", "drwxr-xr-x")]
    assert [e.filename for e in folder.list("a/b/ü.txt").entries] == ["ü.txt"]


def test_what_is_made_belongs_to_the_folders_owner(folder, work):
    put(folder, "a/b/c")
    assert {path.stat().st_uid for path in (work / "a", work / "a/b", work / "a/b/c")} == {OWNER}
    assert stat.S_IMODE((work / "a/b/c").stat().st_mode) == 0o644


@pytest.mark.parametrize("path", ["/home/work/x/y", "x//y", "./x/./y", "x/y/"])
def test_one_file_has_several_spellings(folder, path):
    put(folder, path)
    assert folder.read("x/y", 0, 9).data == b"data"


@pytest.mark.parametrize("path", ["/home/work", "/home/work/", ".", "", "./."])
def test_the_folder_itself_can_be_listed(folder, path):
    put(folder, "x")
    assert [entry.filename for entry in folder.list(path).entries] == ["x"]
    refused("is-folder", put, folder, path)
    refused("is-folder", folder.read, path, 0, 1)


def test_pieces_become_a_file_at_the_end_only(folder, work):
    theirs(work / "f", b"old")
    put(folder, "f", b"abc", final=False)
    put(folder, "f", b"abc", final=False)
    put(folder, "f", b"def", offset=3, final=False)
    assert (work / "f").read_bytes() == b"old"
    put(folder, "f", b"gh", offset=6)
    assert (work / "f").read_bytes() == b"abcdefgh"
    assert os.listdir(work) == ["f"]


def test_the_last_piece_may_come_again(folder, work):
    put(folder, "f", b"abc", final=False)
    put(folder, "f", b"def", offset=3)
    put(folder, "f", b"def", offset=3)
    put(folder, "f", b"", offset=6)
    assert (work / "f").read_bytes() == b"abcdef"
    refused("upload-gap", put, folder, "f", b"xyz", offset=3)


def test_a_gap_in_an_upload_is_refused(folder):
    refused("upload-gap", put, folder, "f", b"abc", offset=3, final=False)
    put(folder, "f", b"abc", final=False)
    refusal = refused("upload-gap", put, folder, "f", b"abc", offset=4)
    assert "3 bytes" in refusal.message
    put(folder, "f", b"!", offset=3)
    assert folder.read("f", 0, 9).data == b"abc!"


def test_two_uploads_of_one_file_do_not_mix(folder):
    put(folder, "f", b"one", upload="1", final=False)
    put(folder, "f", b"two", upload="2", final=False)
    put(folder, "f", b"1", upload="1", offset=3)
    assert folder.read("f", 0, 9).data == b"one1"
    put(folder, "f", b"2", upload="2", offset=3)
    assert folder.read("f", 0, 9).data == b"two2"


def test_names_of_255_bytes_and_not_more(folder):
    put(folder, "ü" * 127 + "x")
    refused("bad-path", put, folder, "x" * 256)
    refused("bad-path", folder.read, "x" * 256, 0, 1)
    refused("bad-path", folder.read, "/".join("x" * 200 for _ in range(30)), 0, 1)
    refused("bad-path", put, folder, "/".join("x" * 200))


def test_names_that_are_not_utf_8(folder, work):
    theirs(work / os.fsdecode(b"\xff\xfe"), b"raw")
    (entry,) = folder.list("").entries
    assert os.fsencode(entry.filename) == b"\xff\xfe"
    assert folder.read(entry.filename, 0, 9).data == b"raw"
    content = untar(folder.archive("", MOST))
    assert list(content) == ["work", f"work/{entry.filename}"]
    refused("bad-path", folder.read, "\ud800", 0, 1)


def test_an_archive_has_the_regular_files(folder, work):
    put(folder, "d/sub/a", b"A" * 700)
    put(folder, "d/b", b"")
    os.mkfifo(work / "d/pipe")
    (work / "d/link").symlink_to("b")
    content = untar(folder.archive("d", MOST))
    assert content == {"d": None, "d/b": b"", "d/sub": None, "d/sub/a": b"A" * 700}
    assert list(content) == ["d", "d/b", "d/sub", "d/sub/a"]
    assert list(untar(folder.archive("d/sub/a", MOST))) == ["a"]


def test_a_long_listing_is_cut(folder, work, monkeypatch):
    monkeypatch.setattr(workfolder, "MAX_ENTRIES", 10)
    for number in range(11):
        (work / str(number)).touch()
    listing = folder.list("")
    assert (len(listing.entries), listing.cut) == (10, True)
    (work / "0").unlink()
    assert not folder.list("").cut
    assert MAX_ENTRIES * 300 < 4 << 20


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("..", "outside"),
        ("../secret", "outside"),
        ("a/../../secret", "outside"),
        ("/etc/passwd", "outside"),
        ("/home/workshop", "outside"),
        ("/home/work/../../etc/passwd", "outside"),
        ("x\0y", "bad-path"),
        ("missing", "no-such-file"),
    ],
)
def test_paths_that_are_none(folder, secret, path, code):
    refused(code, folder.read, path, 0, 1)
    refused(code, folder.list, path)
    refused(code, folder.archive, path, MOST)
    if code != "no-such-file":
        refused(code, put, folder, path)


def test_links_that_lead_out_are_not_followed(folder, work, secret):
    (work / "absolute").symlink_to(secret)
    (work / "up").symlink_to("..")
    (work / "proc").symlink_to("/proc/self/root")
    (work / "loop").symlink_to("loop")
    for path in ("absolute", "up", "up/secret", "proc/etc/passwd", "loop"):
        refused("outside", folder.read, path, 0, 1)
        refused("outside", folder.list, path)
        refused("outside", folder.archive, path, MOST)
    for path in ("up/new", "proc/tmp/new", "loop/new"):
        refused("outside", put, folder, path)
    put(folder, "absolute", b"mine")  # takes the link's place
    assert secret.read_text() == "nobody's business"
    assert not (work / "absolute").is_symlink()


def test_links_within_the_folder_are_followed(folder, work):
    put(folder, "real/f", b"here")
    (work / "alias").symlink_to("real")
    (work / "real/back").symlink_to("../real/f")
    assert folder.read("alias/f", 0, 9).data == b"here"
    assert folder.read("alias/back", 0, 9).data == b"here"
    put(folder, "alias/g")
    assert (work / "real/g").exists()


@pytest.mark.skipif(not ROOT, reason="without root the system sees to it")
def test_hard_links_to_files_of_others_are_refused(folder, work, secret):
    os.link(secret, work / "f")
    refused("denied", folder.read, "f", 0, 1)
    refused("denied", folder.archive, "f", MOST)
    refused("denied", folder.archive, "", MOST)
    put(folder, "f", b"mine")
    assert secret.read_text() == "nobody's business"
    assert folder.read("f", 0, 9).data == b"mine"


def test_a_hard_link_in_place_of_an_uploads_draft_is_not_written_to(folder, work, secret):
    for offset in (3, 0):
        put(folder, "f", b"abc", final=False)
        (draft,) = os.listdir(work)
        (work / draft).unlink()
        os.link(secret, work / draft)
        refused("denied" if ROOT else "no-such-file", put, folder, "f", b"def", offset=offset)
        (work / draft).unlink(missing_ok=True)
    assert secret.read_text() == "nobody's business"
    assert secret.stat().st_uid == os.geteuid()


@pytest.mark.parametrize("make", ["fifo", "socket", "device", "link"])
def test_what_is_no_file_is_refused_at_once(folder, work, secret, make):
    path = work / "special"
    if make == "fifo":
        os.mkfifo(path)
    elif make == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.getcwd()
            os.chdir(work)
            listener.bind("special")
            os.chdir(here)
    elif make == "device":
        if not ROOT:
            pytest.skip("only root makes devices")
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    else:
        path.symlink_to("nowhere")
    os.chown(path, OWNER, -1, follow_symlinks=False)
    refused("no-such-file", folder.read, "special", 0, 1)
    refused("no-such-file", folder.archive, "special", MOST)
    put(folder, "draft", final=False)
    (draft,) = set(os.listdir(work)) - {"special"}
    os.rename(path, work / draft)
    refused("no-such-file", put, folder, "draft", b"x", offset=4)


def test_a_folder_is_not_overwritten(folder, work):
    put(folder, "d/f")
    refused("is-folder", put, folder, "d")
    refused("no-such-file", put, folder, "d/f/g")
    assert os.listdir(work) == ["d"]


def test_what_is_too_large_is_refused_and_leaves_nothing(folder, work):
    put(folder, "f", b"x" * 100, most=100)
    put(folder, "g", b"x" * 100, most=150, final=False)
    refusal = refused("too-large", put, folder, "g", b"x" * 100, offset=100, most=150)
    assert "150" in refusal.message
    assert os.listdir(work) == ["f"]
    (work / "sparse").touch()
    os.truncate(work / "sparse", 1 << 40)
    os.chown(work / "sparse", OWNER, -1)
    refused("too-large", folder.archive, "", MOST)
    refused("too-large", folder.archive, "f", 1024)
    assert folder.read("sparse", 1 << 39, 3).data == b"\0\0\0"


def test_folders_nested_without_end_are_not_archived(folder, work):
    inner = work
    for _ in range(110):
        inner = inner / "d"
        inner.mkdir()
    refused("too-large", folder.archive, "", MOST)


def test_very_many_names_are_not_archived(folder, work, monkeypatch):
    monkeypatch.setattr(archive, "_MOST_LOOKED_AT", 5)
    for number in range(6):
        (work / str(number)).symlink_to("x")
    refused("too-large", folder.archive, "", MOST)


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "disk-full"), (errno.EDQUOT, "quota-used-up")])
def test_a_full_disk_is_told_and_gets_its_place_back(folder, work, monkeypatch, number, code):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", full)
    refused(code, put, folder, "f")
    assert os.listdir(work) == []


@pytest.mark.skipif(not ROOT, reason="only root mounts")
def test_a_disk_that_is_really_full(folder, work):
    import subprocess

    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", work]).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        os.chown(work, OWNER, OWNER)
        put(folder, "small", b"x" * 1000)
        refused("disk-full", put, folder, "f", b"x" * (1 << 20))
        assert os.listdir(work) == ["small"]
    finally:
        subprocess.run(["umount", work], check=True)


def test_without_openat2_nothing_is_opened(folder, work, monkeypatch):
    monkeypatch.setattr(beneath, "_OPENAT2", 100_000)
    refusal = refused("denied", folder.read, "f", 0, 1)
    assert "openat2" in refusal.message


# ---------------------------------------------------------------- races


def test_a_folder_that_becomes_a_link_never_lets_anything_out(folder, work, secret):
    """The user swaps a folder and a link to the outside for as long as we read and write through it."""
    put(folder, "d/secret", b"inside")
    (work / "away").symlink_to("..")
    over = threading.Event()

    def swap():
        libc = beneath._libc
        while not over.is_set():  # RENAME_EXCHANGE
            libc.renameat2(-100, bytes(work / "d"), -100, bytes(work / "away"), 2)

    attacker = threading.Thread(target=swap)
    attacker.start()
    outcomes = set()
    try:
        for number in range(3000):
            try:
                outcomes.add(folder.read("d/secret", 0, 100).data)
                put(folder, f"d/new{number % 7}", b"new")
                folder.archive("d", MOST)
            except AgentRefusal as refusal:
                outcomes.add(refusal.code)
    finally:
        over.set()
        attacker.join()
    assert outcomes <= {b"inside", "outside", "no-such-file", "upload-gap"}, outcomes
    assert b"inside" in outcomes
    assert sorted(os.listdir(work.parent)) == ["secret", "work"]
    assert secret.read_text() == "nobody's business"
