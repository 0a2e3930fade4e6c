"""The parent of workers. They are played by a small program that keeps the same contract: it tells whoever
connects its id, its process and its `cluster-id`, and behaves as that says."""

import json
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from backendai_mgr.app.children import ChildError
from backendai_mgr.app.config import ManagerConfig, parse_manager_config
from backendai_mgr.app.listening import Listener, ListenError
from backendai_mgr.app.server import run_server
from backendai_mgr.runtime.config import ConfigError
from backendai_mgr.runtime.notify import Notifier

from .eventually import gone

PROGRAM = """
import os, select, signal, socket, sys, tomllib
from backendai_mgr.runtime.lifeline import report_ready
options = dict(option.removeprefix("--").split("=", 1) for option in sys.argv[2:])
with open(options["config"], "rb") as file:
    kind = tomllib.load(file)["manager"].get("cluster-id", "")
if kind == "broken":
    sys.exit(3)
left, told = os.pipe()
signal.signal(signal.SIGTERM, lambda *_: os.write(told, b"x") if kind != "stubborn" else None)
lifeline, listener = int(options["lifeline"]), socket.socket(fileno=int(options["listen"]))
listener.setblocking(False)
report_ready(int(options["ready"]), {"endpoint": "http://x"})
environ = ",".join(n for n in ("NOTIFY_SOCKET", "PROMETHEUS_MULTIPROC_DIR") if n in os.environ)
while True:
    ready, _, _ = select.select([left, lifeline, listener], [], [])
    if left in ready or lifeline in ready:
        sys.exit()
    try:
        connection, _ = listener.accept()
    except BlockingIOError:
        continue
    answer = [options["id"], str(os.getpid()), kind, options.get("metrics-number", "-"), environ]
    connection.sendall(" ".join(answer).encode())
    connection.close()
"""


@attrs.frozen
class Answer:
    id: str
    pid: int
    kind: str
    metrics_number: str
    environ: str = ""

    @property
    def number(self) -> int:
        return int(self.id.rpartition("-")[2].partition(".")[0])


@attrs.frozen
class Site:
    """A running server, what it is told, and what it tells."""

    folder: Path
    address: str
    stop: trio.Event
    reload: trio.MemorySendChannel[None]
    notified: trio.socket.SocketType

    def write(self, kind: str, **settings: object) -> None:
        write(self.folder, kind, **settings)

    async def ask(self) -> Answer:
        """Of whichever worker takes the connection."""
        host, _, port = self.address.rpartition(":")
        with trio.fail_after(10):
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                text = b"".join([chunk async for chunk in stream]).decode()
        name, pid, kind, number, *environ = text.split(" ")
        return Answer(name, int(pid), kind, number, *environ)

    async def all(self, count: int) -> dict[int, Answer]:
        """Ask until so many processes have answered."""
        found: dict[int, Answer] = {}
        while len(found) < count:
            answer = await self.ask()
            found[answer.pid] = answer
        return found

    async def reloaded(self) -> None:
        """Tell it to reload, and see it done."""
        self.reload.send_nowait(None)
        assert (await self.notified.recv(4096)).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert (await self.notified.recv(4096)).startswith(b"READY=1")


def write(folder: Path, kind: str, **settings: object) -> Path:
    path = folder / "manager.toml"
    values = {"id": "m", "service_addr": "127.0.0.1:0", "num_proc": 2, "cluster_id": kind}
    values |= {"drain_timeout": 0.1, "shutdown_timeout": 0.2, **settings}
    lines = [f"{key.replace('_', '-')} = {json.dumps(value)}" for key, value in values.items()]
    path.write_text("[manager]\n" + "\n".join(lines) + "\n")
    return path


@asynccontextmanager
async def running(folder: Path, kind: str = "v1", **settings: object) -> AsyncIterator[Site]:
    path = write(folder, kind, **settings)
    stop = trio.Event()
    send, receive = trio.open_memory_channel[None](1)
    with trio.fail_after(60), trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        await notified.bind(str(folder / "notify"))
        async with trio.open_nursery() as nursery:
            serve = partial(
                run_server,
                path,
                stop=stop,
                reloads=receive,
                configure_logging=lambda _: None,
                notifier=Notifier(str(folder / "notify")),
                program=(sys.executable, "-c", PROGRAM),
            )
            address = await nursery.start(serve)
            assert (await notified.recv(4096)).startswith(b"READY=1\nSTATUS=127.0.0.1:")
            yield Site(folder, address, stop, send, notified)
            stop.set()


async def test_workers_share_one_socket_and_have_names_of_their_own(tmp_path: Path) -> None:
    async with running(tmp_path) as site:
        workers = await site.all(2)
        assert {worker.number for worker in workers.values()} == {1, 2}
        assert {worker.metrics_number for worker in workers.values()} == {"1", "2"}
        assert {worker.environ for worker in workers.values()} == {"PROMETHEUS_MULTIPROC_DIR"}
        assert len({worker.id.rpartition(".")[2] for worker in workers.values()}) == 1
    assert all(gone(pid) for pid in workers)


async def test_a_single_worker_shares_no_figures(tmp_path: Path) -> None:
    async with running(tmp_path, num_proc=1) as site:
        (worker,) = (await site.all(1)).values()
        assert (worker.number, worker.metrics_number, worker.environ) == (1, "-", "")


async def test_a_worker_that_dies_is_started_again_under_its_name(tmp_path: Path) -> None:
    async with running(tmp_path) as site:
        before = await site.all(2)
        victim, other = before.values()
        os.kill(victim.pid, signal.SIGKILL)
        # Connections are taken all the while.
        assert (await site.ask()).pid == other.pid
        os.kill(other.pid, signal.SIGSTOP)
        after = await site.ask()
        os.kill(other.pid, signal.SIGCONT)
        assert (after.id, after.kind) == (victim.id, "v1")
        assert after.pid != victim.pid


async def test_a_reload_replaces_all_workers_and_refuses_nobody(tmp_path: Path) -> None:
    async with running(tmp_path) as site:
        before = await site.all(2)
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:

            async def keep_asking() -> None:
                while True:
                    answers.append(await site.ask())

            nursery.start_soon(keep_asking)
            site.write("v2")
            await site.reloaded()
            nursery.cancel_scope.cancel()
        assert answers
        assert all(gone(pid) for pid in before)
        after = await site.all(2)
        assert {worker.kind for worker in after.values()} == {"v2"}
        # The third number was free, and so was the first when it had gone.
        assert {worker.number for worker in after.values()} == {1, 3}


async def test_a_reload_may_change_the_number_of_workers(tmp_path: Path) -> None:
    async with running(tmp_path) as site:
        for count in (3, 1, 2):
            site.write("v1", num_proc=count)
            await site.reloaded()
            assert len(await site.all(count)) == count
            assert len(children()) == count


def children() -> set[int]:
    """Our child processes that run the program of the workers; other tests leave other ones."""
    by_thread = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    found = {int(pid) for pid in " ".join(by_thread).split()}
    return {pid for pid in found if b"report_ready" in Path(f"/proc/{pid}/cmdline").read_bytes()}


async def test_a_reload_may_move_to_another_address(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        async with running(tmp_path) as site:
            site.write("v2", service_addr=f"127.0.0.1:{port}")
            probe.listen()
            await site.reloaded()  # the address is another's
            assert "not reloaded" in caplog.text
            assert f"127.0.0.1:{port} cannot be listened on" in caplog.text
            assert (await site.ask()).kind == "v1"
            probe.close()
            await site.reloaded()
            with pytest.raises(OSError, match=r"refused|connect"):
                await site.ask()
            moved = attrs.evolve(site, address=f"127.0.0.1:{port}")
            assert {worker.kind for worker in (await moved.all(2)).values()} == {"v2"}


async def test_a_configuration_that_cannot_be_used_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as site:
        before = await site.all(2)
        site.write("v2", num_proc=0)
        await site.reloaded()
        (line,) = [message for message in caplog.messages if "not reloaded" in message]
        assert line.endswith(
            f"stay as they are: {tmp_path}/manager.toml:4: `manager.num-proc`: 1 to 1024, not 0."
        )
        assert (await site.all(2)).keys() == before.keys()
        # A worker that dies now comes back as it was.
        victim, other = before.values()
        os.kill(victim.pid, signal.SIGKILL)
        os.kill(other.pid, signal.SIGSTOP)
        assert (await site.ask()).kind == "v1"
        os.kill(other.pid, signal.SIGCONT)


async def test_keys_without_effect_are_told_of_at_each_reading(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = f"{tmp_path}/manager.toml:8: `manager.event-loop` has no effect here"
    async with running(tmp_path, event_loop="uvloop") as site:
        assert caplog.text.count(told) == 1
        await site.reloaded()
        assert caplog.text.count(told) == 2


async def test_a_successor_that_does_not_come_up_ends_a_reload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path) as site:
        before = await site.all(2)
        site.write("broken")
        await site.reloaded()
        assert "not reloaded to the end" in caplog.text
        assert "The worker 3 did not start (exit 3)" in caplog.text
        assert (await site.all(2)).keys() == before.keys()
        site.write("v3")
        await site.reloaded()
        assert {worker.kind for worker in (await site.all(2)).values()} == {"v3"}


async def test_a_stop_is_told_and_kills_who_does_not_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, "stubborn") as site:
        workers = await site.all(2)
        site.stop.set()
        assert (await site.notified.recv(4096)).startswith(b"STOPPING=1")
    assert all(gone(pid) for pid in workers)
    assert caplog.text.count("did not end within") == 2


async def test_a_stop_in_the_middle_of_a_reload(tmp_path: Path) -> None:
    async with running(tmp_path) as site:
        await site.all(2)
        site.reload.send_nowait(None)
        assert (await site.notified.recv(4096)).startswith(b"RELOADING=1")
        site.stop.set()
    assert not children()


async def test_workers_that_do_not_come_up_end_the_server(tmp_path: Path) -> None:
    path = write(tmp_path, "broken")
    _, reloads = trio.open_memory_channel[None](1)
    with trio.fail_after(30), pytest.raises(ExceptionGroup) as raised:
        await run_server(
            path,
            stop=trio.Event(),
            reloads=reloads,
            configure_logging=lambda _: None,
            program=(sys.executable, "-c", PROGRAM),
        )
    assert raised.value.split(ChildError)[1] is None  # of one worker or of both
    assert not children()


async def test_the_pid_file_is_there_while_it_serves(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    async with running(tmp_path, pid_file=str(pid_file)):
        assert pid_file.read_text() == f"{os.getpid()}\n"
    assert not pid_file.exists()
    (tmp_path / "notify").unlink()
    async with running(tmp_path, pid_file="/dev/null"):
        pass
    assert os.path.exists("/dev/null")  # noqa: ASYNC240


async def test_a_pid_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, "v1", pid_file=str(tmp_path / "missing" / "pid"))
    _, reloads = trio.open_memory_channel[None](1)
    expected = pytest.RaisesExc(ConfigError, match=r"`manager.pid-file`: .* cannot be written")
    with pytest.RaisesGroup(expected, flatten_subgroups=True):
        await run_server(path, stop=trio.Event(), reloads=reloads, configure_logging=lambda _: None)


async def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    async with running(tmp_path) as site:
        for settings in ({"num_proc": 0}, {"ssl_enabled": True}, {"service_addr": "127.0.0.2:0"}):
            site.write("v2", **settings)
            await site.reloaded()
        (folder,) = (tmp_path / "tmp").iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not list(folder.rglob("*.toml"))  # there are passwords in it
    assert not list((tmp_path / "tmp").iterdir())
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------- a socket that was handed over


def listening_fd(host: str) -> int:
    with socket.create_server((host, 0)) as server:
        return os.dup(server.fileno())


def config_for(address: str) -> ManagerConfig:
    return parse_manager_config({"manager": {"service-addr": address}})


def test_a_socket_that_was_handed_over_is_used() -> None:
    found = Listener.take([listening_fd("127.0.0.1")], config_for("127.0.0.1:8081"))
    assert found is not None
    with found.socket:
        assert found.inherited
        assert found.where == f"127.0.0.1:{found.socket.getsockname()[1]}"
    assert Listener.take([], config_for("127.0.0.1:8081")) is None


def test_a_public_socket_is_not_taken_for_a_private_one() -> None:
    """The published example keys would be accepted on it."""
    with pytest.raises(ListenError, match=r"listens on 0\.0\.0\.0:\d+, but `manager\.service-addr` is 127"):
        Listener.take([listening_fd("0.0.0.0")], config_for("127.0.0.1:8081"))
    found = Listener.take([listening_fd("0.0.0.0")], config_for("0.0.0.0:8081"))
    assert found is not None
    found.socket.close()


def test_other_sockets_are_refused() -> None:
    one, other = socket.socketpair()
    with one, other, pytest.raises(ListenError, match="not one of TCP"):
        Listener.take([os.dup(one.fileno())], config_for("127.0.0.1:8081"))
    with pytest.raises(ListenError, match="2 sockets were handed over"):
        Listener.take([3, 4], config_for("127.0.0.1:8081"))
