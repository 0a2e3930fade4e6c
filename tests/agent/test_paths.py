import os
from pathlib import Path

import pytest

from backendai_mgr.runtime.paths import (
    MAX_SOCKET_NAME,
    MAX_SOCKET_PATH,
    PathRefused,
    check_traversable,
    default_data_dir,
    make_private_dir,
    socket_dir,
)


def test_sockets_are_beside_the_data_when_that_is_short(site):
    assert socket_dir(site.data_dir) == site.data_dir / "run"
    assert (site.data_dir / "run").stat().st_mode & 0o7777 == 0o700
    assert socket_dir(site.data_dir) == site.data_dir / "run"


def test_a_long_data_directory_gets_one_short_folder_of_its_own(tmp_path):
    first, second = (tmp_path / (letter * 120) for letter in "ab")
    folders = [socket_dir(first), socket_dir(first), socket_dir(second)]
    try:
        assert folders[0] == folders[1] != folders[2]
        for folder in folders:
            assert len(str(folder)) + 1 + MAX_SOCKET_NAME < MAX_SOCKET_PATH
            assert folder.stat().st_mode & 0o7777 == 0o700
    finally:
        for folder in set(folders):
            folder.rmdir()


def test_a_folder_that_others_can_enter_is_refused(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir(0o755)
    with pytest.raises(PathRefused, match="0755"):
        make_private_dir(folder)


def test_a_link_or_a_file_in_the_place_is_refused(tmp_path):
    (tmp_path / "target").mkdir(0o700)
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "file").touch(0o700)
    for name in ("link", "file"):
        with pytest.raises(PathRefused, match="not a folder"):
            make_private_dir(tmp_path / name)


def test_a_folder_of_another_account_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir(0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(PathRefused, match=f"belongs to account {owner}"):
        make_private_dir(folder)


def test_the_default_is_the_systems_for_root_and_the_users_otherwise(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_dir() == Path("/var/lib/backendai-mgr")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_data_dir() == Path("/data/backendai-mgr")
    monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_data_dir() == Path("/home/me/.local/share/backendai-mgr")


@pytest.mark.parametrize(
    ("mode", "uid_offset", "passes"),
    [
        (0o700, 0, True),
        (0o600, 0, False),
        (0o711, 1, True),
        (0o710, 1, False),
        (0o706, 1, False),
        (0o071, 0, False),
    ],
)
def test_the_first_folder_in_the_way_of_an_account_is_found(site, mode, uid_offset, passes):
    folder = site.data_dir / "folder"
    (folder / "below").mkdir(parents=True)
    site.data_dir.chmod(0o711)
    (folder / "below").chmod(0o777)
    account = os.getuid() or 20000
    if os.getuid() == 0:
        os.chown(folder, account, 0)
    folder.chmod(mode)
    try:
        found = check_traversable(folder / "below" / "absent", account + uid_offset)
        assert found == (None if passes else folder)
        assert check_traversable(folder / "below", 0) is None
    finally:
        folder.chmod(0o700)


def test_the_accounts_own_group_counts(site):
    folder = site.data_dir / "folder"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, 0, 20000)
    folder.chmod(0o770)
    site.data_dir.chmod(0o711)
    account = 20000 if os.getuid() == 0 else os.getgid()
    assert check_traversable(folder, account) is None
