"""`start-server`: the parent of the workers that serve one address. It serves nothing itself.

The parent opens the listening socket, starts workers that inherit it, and starts those again that die. Told
to reload, it lets a successor of each worker come up before that worker drains, one by one, so that there is
somebody to take connections at every moment. When the parent dies the workers see their lifelines end.

Workers have numbers. Of a server with N workers the numbers 1 to N are taken, and one more while a successor
comes up: a number is one living process's at a time.
"""

import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count, zip_longest
from pathlib import Path
from typing import Self

import attrs
import trio
from prometheus_client.multiprocess import mark_process_dead

from ..api.server.tls import server_context
from ..runtime.config import ConfigError
from ..runtime.logging import LoggingConfig
from ..runtime.notify import Notifier
from .children import Child, ChildError
from .config import FILE_NAME, ManagerConfig, read_manager_config
from .listening import Listener, ListenError

log = logging.getLogger(__name__)

#: Where the workers of one server keep their figures, for the Prometheus client library.
METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"
#: A worker that has not gone by its own deadline gets so many seconds more, and is killed.
_GRACE = 2.0


@attrs.frozen(eq=False)
class _Generation:
    """One reading of the configuration, and what its workers inherit: the socket, and a copy of the file (in
    memory, for there are passwords in it). A worker that starts again long after is like those beside it,
    whatever has been written meanwhile."""

    config: ManagerConfig
    copy: int
    listener: Listener


@attrs.frozen
class _Worker:
    child: Child
    generation: _Generation

    async def stop(self) -> None:
        """Let it finish what it is at, within its own deadline."""
        await self.child.stop(self.generation.config.shutdown_timeout + _GRACE)


async def run_server(
    path: Path | None,
    *,
    stop: trio.Event,
    reloads: trio.MemoryReceiveChannel[None],
    configure_logging: Callable[[LoggingConfig], None],
    notifier: Notifier | None = None,
    handed_over: Sequence[int] = (),
    program: Sequence[str] | None = None,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve by the configuration at *path* (None: the usual places) until *stop*; started with the address
    once all workers serve. Each item of *reloads* has the configuration read anew; what it says of logs is
    given to *configure_logging*.

    *handed_over* are descriptors of listening sockets of the service manager's; *program* is what workers are
    started with instead of ours. `ConfigError`, `ListenError` or `ChildError` (perhaps in a group) when it
    cannot start.
    """
    notifier = notifier or Notifier()
    with tempfile.TemporaryDirectory(prefix="backendai-mgr-metrics-") as metrics:
        async with trio.open_nursery() as children:
            server = Server(path, Path(metrics), handed_over, children, configure_logging, program=program)
            with server, _pid_file(server.now.config.pid_file):
                async with trio.open_nursery() as work:
                    work.start_soon(_cancel_at, stop, work.cancel_scope)
                    await server.start()
                    log.info("serving at %s", server.status)
                    task_status.started(server.now.listener.where)
                    notifier.ready(server.status)
                    async for _ in reloads:
                        notifier.reloading()
                        await server.reload()
                        notifier.ready(server.status)
                log.info("stopping")
                notifier.stopping()
                await server.stop()
            children.cancel_scope.cancel()


class Server:
    """The workers, and what they share. Made by `run_server`."""

    def __init__(
        self,
        path: Path | None,
        metrics: Path,
        handed_over: Sequence[int],
        children: trio.Nursery,
        configure_logging: Callable[[LoggingConfig], None],
        *,
        program: Sequence[str] | None,
    ) -> None:
        self._path = path
        self._configure_logging = configure_logging
        self._metrics = metrics
        self._children = children
        self._program = {} if program is None else {"program": program}
        self._workers: dict[int, _Worker] = {}
        #: Leases are by worker. An earlier server's workers may still be on their way out: names differ.
        self._token = secrets.token_hex(3)
        self._generations: set[_Generation] = set()
        #: What new workers are started by.
        self.now = self._read(
            lambda config: Listener.take(handed_over, config) or Listener.open(config.service_addr)
        )

    @property
    def status(self) -> str:
        """In a few words, for people."""
        return f"{self.now.listener.where} with {len(self._workers)} workers"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_all_but()

    async def start(self) -> None:
        """Start all workers. `ChildError` when one does not come up."""
        async with trio.open_nursery() as nursery:
            for number in range(1, self.now.config.num_proc + 1):
                nursery.start_soon(self._start_worker, number, self.now)

    async def stop(self) -> None:
        """Stop all workers at once. New connections are refused from now on."""
        for worker in self._workers.values():
            worker.child.tell_to_stop()
        self._close_all_but()
        async with trio.open_nursery() as nursery:
            for worker in self._workers.values():
                nursery.start_soon(worker.stop)

    async def reload(self) -> None:
        """Read the configuration anew, and replace the workers one by one.

        What cannot be used is told in the log and changes nothing. A successor that does not come up ends it:
        the workers that are left stay.
        """
        try:
            new = self._read(self._listen_again)
        except (ConfigError, ListenError) as error:
            log.error("not reloaded, the workers stay as they are: %s", error)
            return
        log.info("reloading: the workers are replaced one by one")
        try:
            for wanted, old in zip_longest(range(new.config.num_proc), sorted(self._workers)):
                if wanted is not None:
                    await self._start_worker(self._free_number(), new)
                    self.now = new
                if old is not None:
                    await self._workers[old].stop()
                    del self._workers[old]
        except ChildError as error:
            log.error("not reloaded to the end, the workers that are left stay as they are: %s", error)
        self._close_all_but(self.now, *(worker.generation for worker in self._workers.values()))

    def _close_all_but(self, *used: _Generation) -> None:
        """Close what only others have. While a socket is open, connections wait where no worker is."""
        for unused in self._generations.difference(used):
            os.close(unused.copy)
            if all(unused.listener is not generation.listener for generation in used):
                unused.listener.socket.close()
        self._generations.intersection_update(used)

    def _read(self, listen: Callable[[ManagerConfig], Listener]) -> _Generation:
        """The configuration as it is now, served where *listen* says; logs follow it. `ConfigError` and
        `ListenError` when it cannot be used."""
        copy = os.memfd_create(FILE_NAME)
        try:
            config = self._load(copy)
            found = _Generation(config, copy, listen(config))
        except BaseException:
            os.close(copy)
            raise
        self._generations.add(found)
        return found

    def _load(self, copy: int) -> ManagerConfig:
        reading = read_manager_config(self._path)
        config = reading.checked()
        with open(copy, "w", closefd=False, encoding="utf-8") as file:
            file.write(reading.text)
        if config.tls is not None:
            server_context(*config.tls)  # to see that it can be used
        self._configure_logging(config.logging)
        for warning in reading.warnings:
            log.warning("%s", warning)
        return config

    def _listen_again(self, config: ManagerConfig) -> Listener:
        """The listener of a new configuration: ours, or another when the address is."""
        listener = self.now.listener
        if listener.inherited:
            listener.check(config)
        elif config.service_addr != listener.address:
            return Listener.open(config.service_addr)
        return listener

    async def _start_worker(self, number: int, generation: _Generation) -> None:
        config, fd = generation.config, generation.listener.socket.fileno()
        options = [f"--config={_path_of(generation.copy)}", f"--listen={fd}"]
        options.append(f"--id={config.id}-{number}.{self._token}")
        environ = {name: value for name, value in os.environ.items() if name != METRICS_DIR}
        if config.num_proc > 1:
            environ[METRICS_DIR] = str(self._metrics)
            options.append(f"--metrics-number={number}")
        child = Child(
            command="worker",
            name=f"worker {number}",
            options=options,
            pass_fds=(fd, generation.copy),
            environ=environ,
            on_exit=partial(mark_process_dead, number, str(self._metrics)),
            **self._program,
        )
        await self._children.start(child.keep_running)
        self._workers[number] = _Worker(child, generation)

    def _free_number(self) -> int:
        return next(number for number in count(1) if number not in self._workers)


def _path_of(fd: int) -> Path:
    """Where this process, and one that inherits it, opens the file of a descriptor from its beginning."""
    return Path(f"/proc/self/fd/{fd}")


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


@contextmanager
def _pid_file(path: Path | None) -> Iterator[None]:
    """The file with our process id, for the length of the block. `ConfigError` if it cannot be written."""
    if path is None:
        yield
        return
    mine = f"{os.getpid()}\n"
    try:
        path.write_text(mine)
    except OSError as error:
        raise ConfigError(f"`manager.pid-file`: {path} cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        # Not a device such as /dev/null, nor the file of a server that has come after us.
        with suppress(OSError):
            if path.is_file() and path.read_text() == mine:
                path.unlink()
