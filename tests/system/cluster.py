"""A cluster as an operator sets it up: a PostgreSQL that is given, an agent and a server, each by itself."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.postgres import DEBIAN, TemporaryPostgres

from .harness import START, STOP, Installation, processes_of, temporary_dir, wait_until
from .http import Http

CONF = Path(__file__).parents[2] / "conf"
FIXTURE = CONF / "fixtures" / "example-keypairs.json"
KEYS = {"access_key": "AKIAIOSFODNN7EXAMPLE", "secret_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}


class Service:
    """A process as a service manager runs it: told by signals, heard through its notifications."""

    def __init__(
        self,
        installation: Installation,
        folder: Path,
        name: str,
        *arguments: str,
        pass_fds: Sequence[int] = (),
        environ: Mapping[str, str] = {},
        command: Sequence[str] | None = None,
    ) -> None:
        self.log = folder / f"{name}.log"
        address = folder / f"{name}.notify"
        address.unlink(missing_ok=True)
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notified.bind(str(address))
        self._notified.settimeout(START)
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            # What a killed server leaves in its temporary folder goes with ours.
            "environ": {"NOTIFY_SOCKET": str(address), "TMPDIR": str(folder), **environ},
            "pass_fds": pass_fds,
        }
        with self.log.open("a") as log:
            if command is None:
                self.process = installation.popen(*arguments, stdout=log, stderr=log, **options)
            else:
                self.process = subprocess.Popen(
                    command,
                    stdout=log,
                    stderr=log,
                    env=installation.environ | options.pop("environ"),
                    text=True,
                    process_group=0,
                    **options,
                )

    def hear(self, state: str) -> dict[str, str]:
        """The next notification, which must be of this state."""
        try:
            message = self._notified.recv(4096).decode()
        except TimeoutError:
            raise AssertionError(self.log.read_text()) from None
        fields = dict(line.split("=", 1) for line in message.splitlines())
        assert state in message.splitlines(), (message, self.log.read_text())
        return fields

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        self.hear("STOPPING=1")
        return self.process.wait(STOP)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._notified.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP)
        self.kill()


class Cluster:
    """PostgreSQL with the tables and example accounts, one agent, and what a server needs to be started."""

    def __init__(self, installation: Installation, folder: Path, postgres: TemporaryPostgres) -> None:
        self.installation = installation
        self.folder = folder
        self.postgres = postgres
        self._server = 0
        self._password = secrets.token_urlsafe(12)
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        postgres.sql(f"CREATE ROLE manager LOGIN PASSWORD '{self._password}'")
        postgres.sql("CREATE DATABASE cluster OWNER manager")
        self.config = folder / "manager.toml"
        self.configure()

    def configure(self, **settings: Any) -> None:
        """Write manager.toml, with these keys of its first table beside the usual."""
        values = {"id": "m", "service-addr": f"127.0.0.1:{self.port}", "num-proc": 2}
        values |= {"heartbeat-timeout": 1.5, **{k.replace("_", "-"): v for k, v in settings.items()}}
        port = self.postgres.parameters("cluster")["port"]
        db = {"addr": f"127.0.0.1:{port}", "name": "cluster", "user": "manager", "password": self._password}
        self.config.write_text(f"[manager]\n{_toml(values)}\n[db]\n{_toml(db)}\n")

    def prepare(self) -> None:
        """Make the tables and the example accounts, as an operator does."""
        made = self.command("schema", "oneshot")
        assert (made.returncode, made.stdout) == (0, "The tables are made.\n"), made.stderr
        filled = self.command("fixture", "populate", str(FIXTURE))
        assert filled.returncode == 0, filled.stderr

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A command with this configuration."""
        (group, name), rest = arguments[:2], arguments[2:]
        return self.installation.command(group, name, "--config", str(self.config), *rest)

    @property
    def agent_config(self) -> Path:
        return self.folder / "agent.toml"

    @contextlib.contextmanager
    def agent(self, command: Sequence[str] | None = None) -> Iterator[Service]:
        """An agent of this machine, which joins as soon as a server is there."""
        data_dir = self.folder / "agent"
        values = {"id": "i-one", "bind": f"127.0.0.1:{free_port()}", "data-dir": str(data_dir)}
        values |= {
            "manager-url": self.endpoint,
            "report-interval": 0.2,
            "cpu-overcommit": 4.0,
            "pool-size": 0,
        }
        self.agent_config.write_text(f"[agent]\n{_toml(values)}")
        token = self.installation.command("join-token", "--config", str(self.config))
        assert token.returncode == 0, token.stderr
        arguments = ("agent", "--config", str(self.agent_config))
        environ = {"BACKENDAI_MGR_JOIN_TOKEN": token.stdout.strip()}
        with Service(
            self.installation, self.folder, "agent", *arguments, command=command, environ=environ
        ) as agent:
            yield agent
        for pid in processes_of(data_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def server(self, **options: Any) -> Iterator[Service]:
        """``start-server``, ready."""
        arguments = ("start-server", "--config", str(self.config))
        with Service(self.installation, self.folder, "server", *arguments, **options) as server:
            assert server.hear("READY=1")["STATUS"].startswith(f"127.0.0.1:{self.port} ")
            self._server = server.process.pid
            with self.http() as http:
                wait_until(lambda: "i-one" in self.alive(), 30, "the agent is known to live")
                assert http.client.get("/readyz").status_code == 200
            yield server

    def alive(self) -> list[str]:
        return self.sql("SELECT id FROM agents WHERE status = 'ALIVE'").splitlines()

    def sql(self, statement: str) -> str:
        return self.postgres.sql(statement, database="cluster")

    def holder(self) -> str:
        """The name of the worker that has the agent's lease."""
        return self.sql("SELECT owner FROM agent_leases WHERE owner IS NOT NULL AND expires_at > now()")

    def epoch(self) -> int:
        return int(self.sql("SELECT epoch FROM agent_leases"))

    def workers(self) -> dict[str, int]:
        """Living workers' process ids by name."""
        children = [path.read_text() for path in Path(f"/proc/{self._server}/task").glob("*/children")]
        found = {}
        for pid in map(int, " ".join(children).split()):
            for argument in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                if argument.startswith("--id="):
                    found[argument.removeprefix("--id=")] = pid
        return found

    @contextlib.contextmanager
    def http(self, worker: str | None = None) -> Iterator[Http]:
        """A client with one connection, to this worker or any."""
        with contextlib.closing(Http({"endpoint": self.endpoint, **KEYS})) as http:
            if worker is not None:
                others = [pid for name, pid in self.workers().items() if name != worker]
                # Those that stand still take no connection.
                for pid in others:
                    os.kill(pid, signal.SIGSTOP)
                try:
                    assert who(http) == worker
                finally:
                    for pid in others:
                        os.kill(pid, signal.SIGCONT)
            yield http


def who(http: Http) -> str:
    """The worker that this client's connection leads to."""
    return str(http.client.get("/readyz?verbose").json()["details"]["worker"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def cluster(installation: Installation) -> Iterator[Cluster]:
    """Debian's PostgreSQL if this machine has it, else the one of the package."""
    binaries = DEBIAN if DEBIAN.exists() else None
    with temporary_dir() as folder, TemporaryPostgres(binaries, tcp_port=free_port()) as postgres:
        made = Cluster(installation, folder, postgres)
        made.prepare()
        yield made


def _toml(values: Mapping[str, Any]) -> str:
    import json

    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())
