"""`worker` and `agent`: the two long-running processes, as children of `up` or by themselves."""

import errno
import fcntl
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import click
import trio

from ..runtime.config import ConfigError, find_config, load_toml, structure
from ..runtime.lifeline import ORPHAN_DEADLINE, report_ready, watch_lifeline
from ..runtime.logging import LoggingConfig, setup_logging
from ..runtime.paths import PathRefused
from . import options
from .errors import CliError, told
from .joining import TOKEN_VARIABLE

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

    def config_file(self, name: str) -> Path | None:
        """The file named on the command line, or the one that `up` wrote; None when there is neither."""
        if self.config_path is None and self.data_dir is not None:
            return self.data_dir / "etc" / name
        return self.config_path


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
    from ..app.config import FILE_NAME, load_manager_config
    from ..app.serve import serve_manager

    with told(ConfigError):
        config = load_manager_config(process.config_file(FILE_NAME))
    setup_logging(config.logging)
    serve = partial(serve_manager, config, stop=process.stop, end_sessions=process.end)
    with told(SchemaMismatch, StoreUnavailable):
        await _run(process, serve, f"The address {config.service_addr}")


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
    wishes = {"manager-url": manager_url, "join-token": join_token}
    return partial(_agent, _Process(role="agent", **given), {k: v for k, v in wishes.items() if v})


async def _agent(process: _Process, wishes: Mapping[str, str]) -> None:
    from ..agent.build import prepare_data_dir, run_agent
    from ..agent.config import parse_agent_config
    from ..agent.registry import DataDirInUse

    with told(ConfigError):
        document = _agent_document(process)
        logging = structure(LoggingConfig, document.pop("logging", {}), "logging")
        if isinstance(table := document.setdefault("agent", {}), dict):
            table |= wishes
        config = parse_agent_config(document)
        if process.data_dir is not None:
            prepare_data_dir(process.data_dir)
    setup_logging(logging)
    serve = partial(run_agent, config, stop=process.stop, end_kernels=process.end)
    with told(ConfigError, DataDirInUse):
        await _run(process, serve, "The agent's address")


def _agent_document(process: _Process) -> dict[str, Any]:
    """What agent.toml says. A data directory without one is where the agent keeps its things."""
    path = process.config_file("agent.toml")
    if process.config_path is None and path is not None and not path.exists():
        return {"agent": {"data-dir": str(path.parents[1].absolute())}}
    path = path or find_config("agent.toml")
    return {} if path is None else load_toml(path)


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
