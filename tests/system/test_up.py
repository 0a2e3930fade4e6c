"""The life of `up`: first and later starts, refusals, graceful and brutal stops."""

import json
import os
import signal
import stat
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from .harness import START, Installation, Up, processes_of

pytestmark = pytest.mark.system


def get(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return int(answer.status)


def test_from_the_first_start_to_the_last_process(installation: Installation, folder: Path) -> None:
    data_dir = folder / "data"
    with Up(installation, data_dir) as up:
        assert get(up.said["endpoint"] + "/readyz") == 200
        assert up.said["pid"] == up.process.pid
        assert stat.S_IMODE((data_dir / "up.json").stat().st_mode) == 0o600
        assert up.said["endpoint"] in up.announced
        assert up.said["access_key"] in up.announced
        assert up.command("run", "--session", "kept", "--keep", "print(6 * 7)").stdout == "42\n"
        assert up.stop() == 0
        assert not (data_dir / "up.json").exists()
        assert processes_of(data_dir) == {}
    with Up(installation, data_dir) as up:
        assert up.command("run", "print('again')").stdout == "again\n"
        # The data is there, and the session has ended with the system, for a reason.
        why = up.command("why", "--json", "kept")
        assert json.loads(why.stdout)["status"] == "TERMINATED"
        assert json.loads(why.stdout)["info"] == "manager-shutdown"
        assert up.stop() == 0
    assert processes_of(data_dir) == {}


def test_ctrl_c_ends_it_with_sessions_running(installation: Installation, folder: Path) -> None:
    data_dir = folder / "data"
    with Up(installation, data_dir) as up:
        code = "import time; print('begun', flush=True); time.sleep(600)"
        with up.popen("run", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "begun\n"
            os.killpg(up.process.pid, signal.SIGINT)  # as a terminal does
            assert up.wait() == 0
            assert processes_of(data_dir).keys() <= {client.pid}
            client.send_signal(signal.SIGINT)
            client.send_signal(signal.SIGTERM)
            client.wait(60)


def test_a_second_up_is_refused_with_the_pid_of_the_first(installation: Installation, folder: Path) -> None:
    data_dir = folder / "data"
    with Up(installation, data_dir) as up:
        done = installation.command("up", "--data-dir", str(data_dir), "--port", "0")
        assert done.returncode == 1
        assert done.stderr == f"Error: {data_dir} is already in use by process {up.process.pid}.\n"
        assert up.command("run", "print(1)").stdout == "1\n"


def test_a_port_that_is_taken_is_told(installation: Installation, folder: Path) -> None:
    with Up(installation, folder / "first") as up:
        port = up.said["endpoint"].rpartition(":")[2]
        second = folder / "second"
        done = installation.command("up", "--data-dir", str(second), "--port", port, timeout=START)
        assert done.returncode == 1
        assert f"127.0.0.1:{port} is already in use by another program" in done.stderr
        assert "Traceback" not in done.stderr
        assert processes_of(second) == {}


def test_other_machines_are_not_served_without_isolation(installation: Installation, folder: Path) -> None:
    options = ("--host", "0.0.0.0", "--port", "0", "--agent-port", "0", "--isolation", "none")
    done = installation.command("up", "--data-dir", str(folder / "data"), *options)
    assert done.returncode == 1
    assert "--allow-unisolated" in done.stderr
    assert "isolation is switched off" in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_of(folder / "data") == {}


@pytest.mark.parametrize("options", [(), ("--isolation", "none", "--allow-unisolated")])
def test_others_are_served_with_keys_of_its_own(
    installation: Installation, folder: Path, options: tuple[str, ...]
) -> None:
    data_dir = folder / "data"
    with Up(installation, data_dir, "--host", "0.0.0.0", *options) as up:
        said = up.said
        assert said["isolated"] == (not options)
        assert ("NOT isolated" in up.announced) == bool(options)
        assert said["access_key"] != "AKIAIOSFODNN7EXAMPLE"
        assert up.command("run", "print(1)").stdout == "1\n"
        example = {
            "BACKEND_ENDPOINT": said["endpoint"],
            "BACKEND_ACCESS_KEY": "AKIAIOSFODNN7EXAMPLE",
            "BACKEND_SECRET_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        }
        done = installation.command("ps", environ=example)
        assert done.returncode == 1
        assert "mismatch" in done.stderr


def test_an_ordinary_account_can_run_all_of_it(ordinary: tuple[Installation, Path]) -> None:
    installation, folder = ordinary
    with Up(installation, folder / "data") as up:
        assert up.command("run", "print(6 * 7)").stdout == "42\n"
        began = time.monotonic()
        assert up.stop() == 0
        assert time.monotonic() - began < 30
    assert processes_of(folder) == {}
