"""`start-server`, `worker` and `agent`: the long-running processes, by themselves or as children."""

import errno
import fcntl
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import attrs
import click
import trio

from ..runtime.config import ConfigError
from ..runtime.configfile import Reading, Schema, Setting, read
from ..runtime.lifeline import ORPHAN_DEADLINE, report_ready, watch_lifeline
from ..runtime.logging import LoggingConfig, setup_logging
from ..runtime.notify import Notifier, take_listeners
from ..runtime.paths import PathRefused
from . import options
from .config import read_for
from .errors import CliError, told
from .joining import TOKEN_VARIABLE

log = logging.getLogger(__name__)


class HasLogging(Protocol):
    """A configuration that says what is logged."""

    @property
    def logging(self) -> LoggingConfig: ...


_Config = TypeVar("_Config", bound=HasLogging)

#: A predecessor that has lost its parent is gone after this many seconds, with a margin.
_PREDECESSOR = ORPHAN_DEADLINE + 5.0


@attrs.frozen(kw_only=True)
class _Process:
    """This process: its role, the data directory it belongs to, the pipes to its parent, what it is told."""

    role: str
    data_dir: Path | None
    config_path: Path | None
    lifeline: int | None
    ready: int | None
    notifier: Notifier = attrs.field(init=False, factory=Notifier.taken)
    #: Set when it is to stop; ``end`` is set before if sessions (worker) or kernels (agent) are to end too.
    stop: trio.Event = attrs.field(init=False, factory=trio.Event)
    end: trio.Event = attrs.field(init=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        for fd in (self.lifeline, self.ready):
            if fd is not None:
                os.set_inheritable(fd, False)


def _in_force(reading: Reading[_Config], *, worker: str | None = None) -> _Config:
    """The configuration; logging is set up by it, and is told what there is to be told. Of a *worker* that is
    one of several its parent has done so."""
    config = reading.checked()
    setup_logging(config.logging, worker=worker)
    for warning in reading.warnings if worker is None else ():
        log.warning("%s", warning)
    return config


@click.command()
@options.config_file
def start_server(config_path: Path | None) -> Any:
    """Serve the API for a cluster, with as many processes as `num-proc` says, until SIGTERM or SIGINT.

    SIGHUP has manager.toml and the certificates read anew: the processes are replaced one by one, while
    others go on taking requests.
    """
    return partial(_start_server, config_path)


async def _start_server(config_path: Path | None) -> None:
    from ..app.children import ChildError
    from ..app.listening import ListenError
    from ..app.server import run_server

    stop = trio.Event()
    reload, reloads = trio.open_memory_channel[None](1)
    with told(ConfigError, ListenError, ChildError):
        async with trio.open_nursery() as nursery:
            await nursery.start(_obey_signals, stop, reload)
            await run_server(
                config_path,
                stop=stop,
                reloads=reloads,
                configure_logging=setup_logging,
                notifier=Notifier.taken(),
                handed_over=take_listeners(),
            )
            nursery.cancel_scope.cancel()


async def _obey_signals(
    stop: trio.Event, reload: trio.MemorySendChannel[None] | None, *, task_status: trio.TaskStatus[None]
) -> None:
    """SIGTERM and SIGINT stop; SIGHUP, where anything can be read anew, has that done."""
    numbers = [signal.SIGTERM, signal.SIGINT, *([] if reload is None else [signal.SIGHUP])]
    with trio.open_signal_receiver(*numbers) as signals:
        task_status.started()
        async for number in signals:
            if reload is None or number != signal.SIGHUP:
                stop.set()
                continue
            with suppress(trio.WouldBlock):  # one is due already, and it will see what has changed by now
                reload.send_nowait(None)


@click.command()
@options.data_dir
@options.config_file
@options.lifeline
@options.ready
@options.listen
@options.worker_id
@options.metrics_number
def worker(listen: int | None, worker_id: str | None, metrics_number: int | None, **given: Any) -> Any:
    """Serve the API, as one process, until SIGTERM or SIGINT. SIGHUP has the certificate read anew.

    With --data-dir it is the worker of that local system; else manager.toml says all.
    """
    return partial(_worker, _Process(role="worker", **given), listen, worker_id, metrics_number)


async def _worker(
    process: _Process, listen: int | None, worker_id: str | None, metrics_number: int | None
) -> None:
    from ..app.admin import SchemaMismatch, StoreUnavailable
    from ..app.config import SCHEMA
    from ..app.figures import share_figures
    from ..app.serve import serve_manager

    with told(ConfigError):
        config = _in_force(read_for(SCHEMA, process.data_dir, process.config_path), worker=worker_id)
    # A worker that has no name given has no others beside it.
    config = attrs.evolve(config, num_proc=1) if worker_id is None else attrs.evolve(config, id=worker_id)
    if metrics_number is not None:
        share_figures(metrics_number)
    hangup, hangups = trio.open_memory_channel[None](1)
    serve = partial(serve_manager, config, stop=process.stop, end_sessions=process.end, hangups=hangups)
    if listen is not None:
        os.set_inheritable(listen, False)
        serve = partial(serve, listener=socket.socket(fileno=listen))
    with told(ConfigError, SchemaMismatch, StoreUnavailable):
        await _run(process, serve, f"The address {config.service_addr}", hangup)


@click.command()
@options.data_dir
@options.config_file
@options.lifeline
@options.ready
@click.option(
    "--join",
    "manager_url",
    metavar="URL",
    help="Join the cluster of the manager there, e.g. https://HOST:8081.",
)
@click.option(
    "--token",
    "join_token",
    envvar=TOKEN_VARIABLE,
    show_envvar=True,
    help="What lets it join; once. Better in the environment, since others see command lines.",
)
def agent(manager_url: str | None, join_token: str | None, **given: Any) -> Any:
    """Run sessions on this machine for a manager, until SIGTERM or SIGINT; kernels outlive it.

    agent.toml says how; with --data-dir the one of that local system, if there is one. When it has joined a
    cluster it remembers that, and needs neither --join nor --token again.
    """
    os.environ.pop(TOKEN_VARIABLE, None)  # no child of this process needs it
    wishes = [
        Setting(("agent", "manager-url"), manager_url, "--join"),
        Setting(("agent", "join-token"), join_token, "--token"),
    ]
    return partial(_agent, _Process(role="agent", **given), [wish for wish in wishes if wish.value])


async def _agent(process: _Process, given: Sequence[Setting]) -> None:
    from ..agent.build import prepare_data_dir, run_agent
    from ..agent.config import SCHEMA
    from ..agent.scratch import DataDirInUse

    with told(ConfigError):
        config = _in_force(_read_agent(SCHEMA, process, given))
        if process.data_dir is not None:
            prepare_data_dir(process.data_dir)
    serve = partial(run_agent, config, stop=process.stop, end_kernels=process.end)
    with told(ConfigError, DataDirInUse):
        await _run(process, serve, "The agent's address")


def _read_agent(schema: Schema[_Config], process: _Process, given: Sequence[Setting]) -> Reading[_Config]:
    """agent.toml under what was *given*. A data directory without one is where the agent keeps its things."""
    folder = process.data_dir
    if (
        process.config_path is None
        and folder is not None
        and not (folder / "etc" / schema.file_name).exists()
    ):
        place = Setting(("agent", "data-dir"), str(folder.absolute()), "--data-dir")
        return read(schema, {}, environ=os.environ, given=[place, *given])
    return read_for(schema, folder, process.config_path, given)


async def _run(
    process: _Process,
    serve: Callable[..., Awaitable[None]],
    address: str,
    hangup: trio.MemorySendChannel[None] | None = None,
) -> None:
    """Serve until a signal or the lifeline says stop; tell the parent when ready."""
    async with trio.open_nursery() as nursery:
        await nursery.start(_obey_signals, process.stop, hangup)
        if process.lifeline is not None:
            nursery.start_soon(_follow_lifeline, process)
        with told(PathRefused), _address_told(address), await _only_one(process):
            async with trio.open_nursery() as serving:
                said = await serving.start(serve)
                if process.ready is not None:
                    report_ready(process.ready, said)
                process.notifier.ready(f"Serving at {said.get('endpoint') or said['addr']}")
                await process.stop.wait()
                process.notifier.stopping()
        nursery.cancel_scope.cancel()


async def _follow_lifeline(process: _Process) -> None:
    assert process.lifeline is not None
    if await watch_lifeline(process.lifeline) == "end":
        process.end.set()
    else:
        # The parent has died. A thread keeps the deadline, so that nothing that hangs can miss it.
        deadline = threading.Timer(ORPHAN_DEADLINE, os._exit, (1,))
        deadline.daemon = True
        deadline.start()
    process.stop.set()


@contextmanager
def _address_told(address: str) -> Iterator[None]:
    """One sentence for the address that cannot be listened on."""
    try:
        yield
    except* OSError as group:
        error = group.exceptions[0]
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        reasons = {
            errno.EADDRINUSE: "is already in use by another program",
            errno.EADDRNOTAVAIL: "is not an address of this machine",
            errno.EACCES: "may not be used by this account",
        }
        if not isinstance(error, OSError) or error.errno not in reasons:
            raise
        raise CliError(f"{address} {reasons[error.errno]}.") from error


async def _only_one(process: _Process) -> AbstractContextManager[object]:
    """A context that keeps others of this role out of the data directory, if the process belongs to one.

    Waits for a predecessor whose parent died: that one is about to go.
    """
    if process.data_dir is None:
        return nullcontext()
    path = process.data_dir / f".{process.role}.lock"
    file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb")
    with trio.move_on_after(_PREDECESSOR):
        await trio.to_thread.run_sync(fcntl.flock, file, fcntl.LOCK_EX, abandon_on_cancel=True)
        return file
    raise CliError(f"Another {process.role} still runs in {process.data_dir}.")
