"""The PostgreSQL of the local mode: our own child process, on a private Unix socket, without TCP.

We supervise the server ourselves: it is initialised once, started, awaited until it takes connections,
restarted if it dies, and stopped by SIGINT (a fast, clean stop) within a deadline. A server that an earlier,
killed `up` has left running is recognised by its ``postmaster.pid`` and /proc, and stopped first.
"""

import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from ..runtime.supervise import Backoff
from .pgfiles import PostgresError, PostgresFiles, prepare_files

log = logging.getLogger(__name__)

USER = "postgres"
DATABASE = "postgres"

#: Seconds that each step may take at most.
_INITDB = 120.0
_READY = 60.0
_FAST_STOP = 10.0
_IMMEDIATE_STOP = 3.0

_READY_LINE = b"database system is ready to accept connections"
_LONGEST_LINE = 8192

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "",
    "lc_messages": "C",
    "timezone": "UTC",
    "jit": "off",
}


@asynccontextmanager
async def local_postgres(data_dir: Path) -> AsyncIterator[PostgresFiles]:
    """Run PostgreSQL on *data_dir*'s cluster while the context is open; it takes connections on entry.

    Connect to `PostgresFiles.socket_dir` as `USER` to `DATABASE`; whoever reaches that folder is trusted.
    Raises `PostgresError` when the server cannot be had. On exit the server has stopped, cancelled or not.
    """
    files = await trio.to_thread.run_sync(prepare_files, data_dir)
    await _clear(files.cluster)
    if not files.cluster.exists():
        await _initdb(files)
    server = await _start(files)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_running, files, server)
        try:
            yield files
        finally:
            nursery.cancel_scope.cancel()


async def _initdb(files: PostgresFiles) -> None:
    """Make the cluster in one step that either happened or did not."""
    new = files.cluster.with_name("data.new")
    command = [f"{files.bin}/initdb", f"--pgdata={new}", f"--username={USER}", "--auth=trust"]
    command += ["--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions"]
    with trio.move_on_after(_INITDB):
        await trio.run_process(["rm", "-rf", str(new)])
        done = await trio.run_process(
            command, check=False, capture_stdout=True, capture_stderr=True, **_as_account(files)
        )
        if done.returncode == 0:
            new.rename(files.cluster)
            return
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"]
        raise PostgresError(f"PostgreSQL could not be initialised: {lines[0].removeprefix('initdb: ')}")
    raise PostgresError(f"PostgreSQL could not be initialised within {_INITDB:.0f} s.")


@attrs.define
class _Server:
    """A running server and what it has logged but we have not read yet."""

    process: trio.Process
    unread: bytes = b""

    async def line(self) -> bytes | None:
        """The next line of the server's log, None after the last."""
        stderr = self.process.stderr
        assert stderr is not None
        while b"\n" not in self.unread and len(self.unread) < _LONGEST_LINE:
            chunk = await stderr.receive_some()
            if not chunk:
                return None
            self.unread += chunk
        line, _, self.unread = self.unread.partition(b"\n")
        return line

    async def stop(self) -> None:
        """Fast stop, then harder ones; the server is gone afterwards. Not cancellable, at most ~15 s."""
        with trio.CancelScope(shield=True):
            for number, wait in ((signal.SIGINT, _FAST_STOP), (signal.SIGQUIT, _IMMEDIATE_STOP)):
                self.process.send_signal(number)
                with trio.move_on_after(wait):
                    await self.process.wait()
                    break
            else:
                log.warning("PostgreSQL did not stop when asked to; it is killed")
                self.process.kill()
                await self.process.wait()
            if self.process.stderr is not None:
                await self.process.stderr.aclose()


async def _start(files: PostgresFiles) -> _Server:
    """Start the server and wait until it takes connections."""
    command = [f"{files.bin}/postgres", "-D", str(files.cluster), "-k", str(files.socket_dir)]
    for name, value in _SETTINGS.items():
        command += ["-c", f"{name}={value}"]
    server = _Server(await trio.lowlevel.open_process(command, stderr=subprocess.PIPE, **_as_account(files)))
    last = b""
    try:
        with trio.move_on_after(_READY):
            while (line := await server.line()) is not None:
                if _READY_LINE in line:
                    return server
                last = line if line.strip() else last
            code = await server.process.wait()
            reason = last.decode(errors="replace").partition(":")[2].strip() or f"exit {code}"
            raise PostgresError(f"PostgreSQL did not start: {reason}")
        raise PostgresError(f"PostgreSQL took no connections within {_READY:.0f} s.")
    except BaseException:
        await server.stop()
        raise


async def _keep_running(files: PostgresFiles, server: _Server) -> None:
    """Follow the server, and start another whenever it ends, until cancelled."""
    backoff = Backoff(first=0.2, longest=10.0)
    while True:
        began = trio.current_time()
        try:
            while (line := await server.line()) is not None:
                serious = line.startswith((b"PANIC", b"FATAL:  could not"))
                log.log(
                    logging.WARNING if serious else logging.DEBUG,
                    "PostgreSQL: %s",
                    line.decode(errors="replace"),
                )
            code = await server.process.wait()
        finally:
            await server.stop()
        log.error("PostgreSQL ended (exit %d)", code)
        while True:
            await trio.sleep(backoff.after(trio.current_time() - began))
            began = trio.current_time()
            try:
                await _clear(files.cluster)
                server = await _start(files)
                break
            except PostgresError as error:
                log.error("%s", error)
        log.info("PostgreSQL runs again")


def _as_account(files: PostgresFiles) -> dict[str, Any]:
    """How PostgreSQL's programs are run: by their account, in their own session, with little environment.

    The own session keeps a terminal's Ctrl-C away from them: we decide in which order things stop.
    """
    options: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "cwd": files.cluster.parent,
        "env": {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
        "start_new_session": True,
    }
    if os.geteuid() == 0:
        options |= {"user": files.account.uid, "group": files.account.gid, "extra_groups": []}
    return options


# ---------------------------------------------------------------- servers that nobody stopped


async def _clear(cluster: Path) -> None:
    """Stop whatever still runs on *cluster* and remove its pid file, so that a new server can start.

    A crashed server's children end by themselves as they notice; they are waited for. `PostgresError` when
    something does not go away.
    """
    pid_file = cluster / "postmaster.pid"
    if (postmaster := _postmaster(cluster)) is not None:
        log.info("PostgreSQL %d was left running; it is stopped", postmaster)
        for number, wait in ((signal.SIGINT, _FAST_STOP), (signal.SIGQUIT, _IMMEDIATE_STOP)):
            if await _gone(postmaster, wait, before=partial(os.kill, postmaster, number)):
                break
    for pid in _working_in(cluster):
        if not await _gone(pid, _FAST_STOP):
            raise PostgresError(f"Process {pid} still uses {cluster}: it must end before PostgreSQL starts.")
    pid_file.unlink(missing_ok=True)


async def _gone(pid: int, wait: float, before: Callable[[], None] = lambda: None) -> bool:
    """Do *before* to the process, then wait for its end; False when it did not come in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        before()
        with trio.move_on_after(wait):
            await trio.lowlevel.wait_readable(fd)
            return True
        return False
    except ProcessLookupError:
        return True
    finally:
        os.close(fd)


def _postmaster(cluster: Path) -> int | None:
    """The process in *cluster*'s pid file, if it truly is a server on that cluster."""
    try:
        pid = int((cluster / "postmaster.pid").read_text().partition("\n")[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    served = os.fsencode(cluster) in command and os.path.basename(command[0]) == b"postgres"
    return pid if served else None


def _working_in(cluster: Path) -> Sequence[int]:
    """Processes whose working directory is *cluster*: a server and all its children."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if os.readlink(entry / "cwd") == str(cluster):
                    found.append(int(entry.name))
            except OSError:  # ended meanwhile, or somebody else's
                continue
    return found
