"""`worker` and `agent`: the two long-running processes, as children of `up` or by themselves."""

import errno
import fcntl
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import attrs
import click
import trio

from ..runtime.config import ConfigError
from ..runtime.configfile import Schema
from ..runtime.lifeline import ORPHAN_DEADLINE, report_ready, watch_lifeline
from ..runtime.logging import LoggingConfig, setup_logging
from ..runtime.paths import PathRefused
from . import options
from .config import read_for
from .errors import CliError, told

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
    #: Set when it is to stop; ``end`` is set before if sessions (worker) or kernels (agent) are to end too.
    stop: trio.Event = attrs.field(init=False, factory=trio.Event)
    end: trio.Event = attrs.field(init=False, factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        for fd in (self.lifeline, self.ready):
            if fd is not None:
                os.set_inheritable(fd, False)

    def configure(self, schema: Schema[_Config]) -> _Config:
        """The configuration; logging is set up by it, and is told what there is to be told."""
        with told(ConfigError):
            reading = read_for(schema, self.data_dir, self.config_path)
            config = reading.checked()
            setup_logging(config.logging)
        for warning in reading.warnings:
            log.warning("%s", warning)
        return config


@click.command()
@options.data_dir
@options.config_file
@options.lifeline
@options.ready
def worker(**given: Any) -> Any:
    """Serve the API, as one process, until SIGTERM or SIGINT.

    With --data-dir it is the worker of that local system; else manager.toml says all.
    """
    return partial(_worker, _Process(role="worker", **given))


async def _worker(process: _Process) -> None:
    from ..app.admin import SchemaMismatch, StoreUnavailable
    from ..app.config import SCHEMA
    from ..app.serve import serve_manager

    config = process.configure(SCHEMA)
    serve = partial(serve_manager, config, stop=process.stop, end_sessions=process.end)
    with told(SchemaMismatch, StoreUnavailable):
        await _run(process, serve, f"The address {config.service_addr}")


@click.command()
@options.data_dir
@options.config_file
@options.lifeline
@options.ready
def agent(**given: Any) -> Any:
    """Run sessions on this machine for a manager, until SIGTERM or SIGINT; kernels outlive it.

    With --data-dir it is the agent of that local system; else agent.toml says all.
    """
    return partial(_agent, _Process(role="agent", **given))


async def _agent(process: _Process) -> None:
    from ..agent.build import run_agent
    from ..agent.config import SCHEMA
    from ..agent.registry import DataDirInUse

    config = process.configure(SCHEMA)
    serve = partial(run_agent, config, stop=process.stop, end_kernels=process.end)
    with told(ConfigError, DataDirInUse):
        await _run(process, serve, f"The address {config.bind}")


async def _run(process: _Process, serve: Callable[..., Awaitable[None]], address: str) -> None:
    """Serve until a signal or the lifeline says stop; tell the parent when ready."""
    async with trio.open_nursery() as nursery:
        await nursery.start(_stop_at_signal, process.stop)
        if process.lifeline is not None:
            nursery.start_soon(_follow_lifeline, process)
        with told(PathRefused), _address_told(address), await _only_one(process):
            async with trio.open_nursery() as serving:
                said = await serving.start(serve)
                if process.ready is not None:
                    report_ready(process.ready, said)
        nursery.cancel_scope.cancel()


async def _stop_at_signal(stop: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            stop.set()


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
