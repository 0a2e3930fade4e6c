"""The local mode's data directory: who may have it, what is kept in it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from backendai_mgr.app.local import (
    EXAMPLE_PAIR,
    LocalError,
    LocalOptions,
    _agent_port,
    check_exposure,
    cluster_id,
    load_credentials,
    lock,
    prepare_data_dir,
)

HOLDER = """
import sys, pathlib
from backendai_mgr.app.local import lock
with lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

MISSING = {"isolation": "Kernels are plain processes."}


def test_a_second_holder_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LocalError, match=rf"already in use by process {holder.pid}\."), lock(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with lock(tmp_path):  # a killed holder has let go
            pass


def test_the_lock_is_not_inherited(tmp_path: Path) -> None:
    with lock(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with lock(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


def test_the_data_directory_is_made_with_its_parents_and_not_listed_by_others(tmp_path: Path) -> None:
    made = prepare_data_dir(tmp_path / "a" / "b")
    assert made == tmp_path / "a" / "b"
    assert made.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)
    assert (made / "etc").stat().st_mode & 0o777 == 0o700


def test_a_file_in_its_place_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LocalError, match=r"^The data directory .*file cannot be used: .*\.$"):
        prepare_data_dir(tmp_path / "file")


def test_the_cluster_id_is_made_once(tmp_path: Path) -> None:
    assert cluster_id(tmp_path) == cluster_id(tmp_path)
    assert cluster_id(tmp_path) != ""


def test_the_example_keys_are_for_this_machine_only(tmp_path: Path) -> None:
    example = load_credentials(tmp_path, "127.0.0.1")
    assert (example.access_key, example.secret_key) == EXAMPLE_PAIR
    own = load_credentials(tmp_path, "0.0.0.0")
    assert own.access_key != example.access_key
    assert len(own.secret_key) == 40
    assert load_credentials(tmp_path, "0.0.0.0") == own
    kept = tmp_path / "credentials.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text())["access_key"] == own.access_key


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.1.2.3"])
def test_loopback_may_be_served_without_isolation(host: str, tmp_path: Path) -> None:
    check_exposure(LocalOptions(data_dir=tmp_path, host=host), MISSING)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_others_are_not_served_without_isolation_unless_that_is_accepted(host: str, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="--allow-unisolated"):
        check_exposure(LocalOptions(data_dir=tmp_path, host=host), MISSING)
    check_exposure(LocalOptions(data_dir=tmp_path, host=host, allow_unisolated=True), MISSING)
    check_exposure(LocalOptions(data_dir=tmp_path, host=host), {"limits": "No."})


def test_the_agents_port_is_the_one_asked_for() -> None:
    assert _agent_port(7001) == 7001


def test_a_taken_port_is_no_hindrance_when_none_was_asked_for() -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", 6001))
            other.listen()
        except OSError:
            pass  # somebody else has it, which is as good
        assert _agent_port(None) == 0
