"""The units for systemd: systemd understands them, and what they start tells it what it waits for."""

import configparser
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from .cluster import CONF, Cluster, Service, cluster
from .harness import Installation, temporary_dir

pytestmark = [pytest.mark.system, pytest.mark.deployment]

UNITS = CONF / "systemd"
PROGRAM = "/opt/backendai-mgr/bin/backendai-mgr"
#: As systemd does: the descriptor is number 3, and variables say for which process it is.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.argv[2], sys.argv[2:])
"""


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNITS / name)
    return parser


def command_line(name: str, config: Path) -> list[str]:
    """What the unit executes, with the program where it is here, and this configuration."""
    program, *words = shlex.split(unit(name)["Service"]["ExecStart"])
    assert program == PROGRAM
    at = words.index("--config") + 1
    assert re.fullmatch(r"/etc/backend\.ai/(manager|agent)\.toml", words[at])
    return [sys.executable, "-m", "backendai_mgr", *words[:at], str(config), *words[at + 1 :]]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_understands_them(tmp_path: Path) -> None:
    for path in UNITS.iterdir():
        # It looks for what is to be executed.
        (tmp_path / path.name).write_text(path.read_text().replace(PROGRAM, sys.executable))
    for path in sorted(tmp_path.iterdir()):
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), path.name


def test_kernels_outlive_their_agent_and_are_enclosed() -> None:
    service = unit("backendai-mgr-agent.service")["Service"]
    assert (service["KillMode"], service["OOMPolicy"], service["Delegate"]) == ("process", "continue", "yes")
    # bubblewrap needs namespaces, and a /proc of which nothing is covered.
    harmful = {"ProtectKernelTunables", "ProtectKernelLogs", "ProtectProc", "ProcSubset"}
    harmful |= {"ProtectControlGroups", "RestrictNamespaces", "PrivateUsers", "SystemCallFilter"}
    assert not harmful & service.keys()


def test_a_stop_may_take_as_long_as_it_does() -> None:
    from backendai_mgr.app.config import ManagerConfig

    seconds = int(unit("backendai-mgr.service")["Service"]["TimeoutStopSec"])
    assert seconds > ManagerConfig(id="x").shutdown_timeout + 2


def test_the_socket_is_the_one_of_the_sample() -> None:
    assert unit("backendai-mgr.socket")["Socket"]["ListenStream"].endswith(":8081")


def test_the_services_say_when_they_are_ready_and_when_they_stop(installation: Installation) -> None:
    """The commands of the units; the manager with a socket that was handed over, as the third unit does."""
    with cluster(installation) as site:
        assert unit("backendai-mgr.service")["Service"]["Type"] == "notify"
        assert unit("backendai-mgr-agent.service")["Service"]["Type"] == "notify"
        with site.agent(command=command_line("backendai-mgr-agent.service", site.agent_config)) as agent:
            with socket.create_server(("127.0.0.1", site.port)) as listening:
                handed_over = str(listening.fileno())
                command = [sys.executable, "-c", HAND_OVER, handed_over]
                command += command_line("backendai-mgr.service", site.config)
                with site.server(command=command, pass_fds=[listening.fileno()]) as server:
                    assert agent.hear("READY=1")["STATUS"].startswith("Serving at tcp://127.0.0.1:")
                    _reload_and_stop(site, server)
                # The socket is systemd's, and stays.
                with socket.create_connection(("127.0.0.1", site.port)):
                    pass
            assert agent.stop() == 0


def test_up_tells_as_well(installation: Installation) -> None:
    with temporary_dir() as folder:
        arguments = ("up", "--data-dir", str(folder / "data"), "--port", "0", "--agent-port", "0")
        with Service(installation, folder, "up", *arguments) as up:
            assert up.hear("READY=1")["STATUS"].startswith("Serving at http://127.0.0.1:")
            assert up.stop() == 0


def _reload_and_stop(site: Cluster, server: Service) -> None:
    assert unit("backendai-mgr.service")["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"
    subprocess.run(
        ["/bin/sh", "-c", "kill -HUP $MAINPID"], env={"MAINPID": str(server.process.pid)}, check=True
    )
    fields = server.hear("RELOADING=1")
    assert int(fields["MONOTONIC_USEC"]) > 0
    server.hear("READY=1")
    for pid in site.workers().values():
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert not re.search(rb"NOTIFY_SOCKET|LISTEN_FDS", environ)
    assert server.stop() == 0
