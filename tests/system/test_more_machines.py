"""A manager and an agent on two machines: the agent joins over HTTPS with a token, the link between them is
encrypted, and nobody else comes in at either end."""

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from backendai_mgr.runtime.curve import new_key_pair
from tests.support.postgres import TemporaryPostgres

from .harness import START, STOP, Installation, temporary_dir, wait_until
from .namespaces import Machine, two_machines, until_logged

pytestmark = [
    pytest.mark.deployment,
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces"),
]

FIXTURE = Path(__file__).parents[2] / "conf" / "fixtures" / "example-keypairs.json"
AGENT = "i-second"
LINK, BEHIND = 6001, 6002
#: Says whether a peer with these keys comes in: public key, secret key, the agent's public key (or nothing).
INTRUDER = """
import sys, trio
from backendai_mgr.runtime.curve import CurveClient
from backendai_mgr.runtime.zmqsocket import HandshakeFailed, open_context
endpoint, *keys = sys.argv[1:]
async def main():
    curve = CurveClient(public_key=keys[0], secret_key=keys[1], server_key=keys[2]) if keys else None
    async with open_context() as context, context.dealer(endpoint, curve=curve) as dealer:
        with trio.fail_after(20):
            try:
                await dealer.broken()
            except HandshakeFailed as error:
                print("refused:", error)
trio.run(main)
"""


class Process:
    """A part of the system in the background, with its log."""

    def __init__(self, installation: Installation, log: Path, *arguments: str, **environ: str) -> None:
        self.log = log
        with log.open("a") as file:
            self.process = installation.popen(
                *arguments, environ=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(STOP)


class TwoMachines:
    """The manager on the first, the agent on the second, where a tap listens on its link."""

    def __init__(self, folder: Path, postgres: TemporaryPostgres, manager: Machine, agent: Machine) -> None:
        self.folder = folder
        self.postgres = postgres
        self.manager = manager
        self.agent = agent
        self.url = f"https://{manager.address}:8081"
        self.database = postgres.database("template0")
        self.authority = trustme.CA()
        self.authority.cert_pem.write_to_path(folder / "ca.pem")
        certificate = self.authority.issue_cert(manager.address)
        certificate.private_key_pem.write_to_path(folder / "key.pem")
        for number, pem in enumerate(certificate.cert_chain_pems):
            pem.write_to_path(folder / "cert.pem", append=number > 0)
        self.keys = {"access_key": "AKIA" + secrets.token_hex(8).upper(), "secret_key": secrets.token_hex(20)}

    @property
    def tapped(self) -> bytes:
        path = self.folder / "tapped"
        return path.read_bytes() if path.exists() else b""

    def admin(self, *arguments: str) -> str:
        done = Installation().command(*arguments, "--config", str(self.folder / "manager.toml"))
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def prepare(self) -> None:
        """Configuration, tables, and an administrator whose keys are not published."""
        tables = {
            "manager": {
                "id": "m",
                "cluster-id": "two-machines",
                "service-addr": f"{self.manager.address}:8081",
                "heartbeat-timeout": 1.5,
                "ssl-enabled": True,
                "ssl-cert": str(self.folder / "cert.pem"),
                "ssl-privkey": str(self.folder / "key.pem"),
            },
            "db": {
                "socket-dir": self.database["host"],
                "name": self.database["database"],
                "user": self.database["user"],
            },
        }
        (self.folder / "manager.toml").write_text(_toml(tables))
        fixture = json.loads(FIXTURE.read_text())
        fixture["keypairs"] = [fixture["keypairs"][0] | self.keys]
        (self.folder / "keypairs.json").write_text(json.dumps(fixture))
        self.admin("schema", "oneshot")
        self.admin("fixture", "populate", str(self.folder / "keypairs.json"))

    def start_manager(self) -> Process:
        config = str(self.folder / "manager.toml")
        made = Process(self.manager.installation(), self.folder / "manager.log", "worker", "--config", config)
        until_logged(made.log, "serving at", START)
        return made

    def start_agent(self, name: str, *arguments: str, port: int = BEHIND, **environ: str) -> Process:
        """An agent behind the tap, unless *port* is another one, with a data directory of this name."""
        config = self.folder / f"{name}.toml"
        settings = {
            "id": AGENT,
            "data-dir": str(self.folder / name),
            "bind": f"{self.agent.address}:{port}",
            "advertised-addr": f"{self.agent.address}:{LINK}",
            "manager-ca": str(self.folder / "ca.pem"),
            "report-interval": 0.2,
            "pool-size": 1,
        }
        config.write_text(_toml({"agent": settings}))
        log = self.folder / f"{name}.log"
        log.unlink(missing_ok=True)
        return Process(
            self.agent.installation(), log, "agent", "--config", str(config), *arguments, **environ
        )

    def client(self, *arguments: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        """A client's command, on the manager's machine."""
        environ = {
            "BACKEND_ENDPOINT_TYPE": "api",
            "BACKEND_ENDPOINT": self.url,
            "BACKEND_ACCESS_KEY": self.keys["access_key"],
            "BACKEND_SECRET_KEY": self.keys["secret_key"],
            "SSL_CERT_FILE": str(self.folder / "ca.pem"),
            "NO_PROXY": "*",
        }
        return self.manager.installation().command(*arguments, environ=environ, timeout=timeout)

    def agent_is(self, status: str, trouble: str | None = None) -> None:
        """Wait until the manager knows this of the agent, with these words of its trouble; of one that is
        alive it knows none."""
        query = f"SELECT status::text || ':' || coalesce(trouble, '') FROM agents WHERE id = '{AGENT}'"

        def known() -> bool:
            found, _, text = self.postgres.sql(query, database=self.database["database"]).partition(":")
            return found == status and ((trouble or "") in text if found == "LOST" else not text)

        wait_until(known, 60, f"the agent is {status} {trouble}")

    def intrude(self, *keys: str) -> str:
        """What becomes of a peer that dials the agent from the manager's machine."""
        with self.manager.python("-c", INTRUDER, f"tcp://{self.agent.address}:{LINK}", *keys) as process:
            return process.communicate(timeout=60)[0]


def _toml(tables: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, values in tables.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join([*lines, ""])


@pytest.fixture
def site() -> Iterator[TwoMachines]:
    with temporary_dir() as folder, TemporaryPostgres() as postgres, two_machines() as machines:
        made = TwoMachines(folder, postgres, *machines)
        made.prepare()
        processes: list[Process] = []
        start = made.start_agent
        made.start_agent = lambda *a, **k: processes.append(start(*a, **k)) or processes[-1]  # type: ignore
        with made.agent.tap(LINK, BEHIND, folder / "tapped"):
            processes.append(made.start_manager())
            try:
                yield made
            finally:
                for process in processes:
                    with contextlib.suppress(Exception):
                        process.stop()
                    process.process.kill()
                    process.process.wait()


def test_an_agent_joins_from_another_machine_and_nobody_else_comes_in(site: TwoMachines) -> None:
    # It joins with a token, which is needed once.
    token = site.admin("join-token")
    wish = {"BACKENDAI_MGR_JOIN_TOKEN": token, "NO_PROXY": "*"}
    agent = site.start_agent("agent", "--join", site.url, **wish)
    site.agent_is("ALIVE")

    # A session is created there, runs code and ends; who listens reads nothing of it.
    secret = secrets.token_hex(16)
    done = site.client("run", f"print('{secret}'[::-1], open('/etc/passwd').name)")
    assert (done.returncode, done.stdout) == (0, f"{secret[::-1]} /etc/passwd\n"), done.stderr
    assert "admit" not in agent.log.read_text() + (site.folder / "manager.log").read_text()
    tapped = site.tapped
    assert b"CURVE" in tapped
    assert len(tapped) > 4096
    for text in (secret, secret[::-1], "/etc/passwd", "python", AGENT):
        assert text.encode() not in tapped

    # Neither a peer with keys of its own nor one without comes in, and the agent serves on.
    public = site.postgres.sql("SELECT public_key FROM agents", database=site.database["database"])
    managers = site.postgres.sql("SELECT public_key FROM link_keys", database=site.database["database"])
    stranger = new_key_pair()
    assert "refused:" in site.intrude(*stranger, public)
    assert "refused:" in site.intrude()
    assert "is not admitted" in agent.log.read_text()
    assert managers not in agent.log.read_text() + (site.folder / "manager.log").read_text()
    assert site.client("run", "print(1)").stdout == "1\n"

    # A used token lets nobody else in.
    other = site.start_agent("other", "--join", site.url, port=BEHIND + 1, **wish)
    assert other.process.wait(START) == 1
    assert "The join token is not valid" in other.log.read_text()

    # After a restart the agent needs no token.
    agent.stop()
    site.agent_is("LOST")
    agent = site.start_agent("agent")
    site.agent_is("ALIVE")
    assert site.client("run", "print(2)").stdout == "2\n"

    # Another agent at its address, which knows everything but the key, is not taken for it.
    agent.stop()
    shutil.copytree(site.folder / "agent" / "link", site.folder / "impostor" / "link")
    own, other_keys = site.folder / "impostor" / "link" / "keys.json", new_key_pair()
    own.write_text(json.dumps(dict(zip(("public", "secret"), other_keys, strict=True))))
    impostor = site.start_agent("impostor")
    site.agent_is("LOST", "no connection comes about")
    with contextlib.suppress(AssertionError):
        site.client("run", "--session", "waiting", "--keep", "print(3)", timeout=5)
    told = site.client("why", "waiting").stdout
    assert f"Agent {AGENT} is not connected: no connection comes about" in told
    impostor.stop()

    # The right one is back: what waited goes on.
    site.start_agent("agent")
    site.agent_is("ALIVE")
    wait_until(
        lambda: "is RUNNING" in site.client("why", "waiting").stdout, 60, "the session that waited runs"
    )
    assert site.client("run", "--session", "waiting", "print(4)").stdout == "4\n"
    assert site.client("rm", "waiting").returncode == 0


def test_an_agent_on_the_network_without_a_key_is_not_dialled(site: TwoMachines) -> None:
    """As a row of an older database may say."""
    site.postgres.sql(
        "INSERT INTO agents (id, addr, architecture, status)"
        f" VALUES ('{AGENT}', 'tcp://{site.agent.address}:{LINK}', 'x86_64', 'LOST')",
        database=site.database["database"],
    )
    site.agent_is("LOST", "has to join with a token")
    assert "has to join with a token" in (site.folder / "manager.log").read_text()
    assert site.tapped == b""
