"""The agent, joined from its parts. Nesting is shutdown order: the link goes before the registry."""

import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from ..domain.addresses import is_local_host
from ..runtime.config import ConfigError, ListenAddress
from ..runtime.curve import CurveServer
from ..runtime.paths import PathRefused, check_traversable, socket_dir
from . import capacity
from .accounts import FIRST_UID, separate_accounts
from .backends.process import ProcessBackend
from .config import AgentConfig
from .enclosure import KernelLimits
from .images import load_manifests, packaged_manifests
from .membership import LinkPlan, Managers, is_new_token, load_membership, own_keys, plan_link
from .portpool import parse_ports
from .registry import KernelRegistry, open_registry
from .retention import Limits
from .scratch import KernelStore
from .server import serve_link

log = logging.getLogger(__name__)

#: Seconds that all kernels together have to end when the agent is told to end them.
END_KERNELS_TIMEOUT = 5.0
SHUTDOWN_REASON = "manager-shutdown"


async def run_agent(
    config: AgentConfig,
    *,
    stop: trio.Event,
    end_kernels: trio.Event,
    task_status: trio.TaskStatus[dict[str, Any]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run an agent until *stop* or *end_kernels* is set; with the latter all kernels are ended first.

    Otherwise kernels go on, and the next agent on the same data directory adopts them. *task_status* gets
    ``{"addr": "tcp://HOST:PORT", "missing": {capability: sentence}}`` as soon as managers can connect. Raises
    `ConfigError` for what the operator has to change, `DataDirInUse` when another agent is at work there.
    """
    data_dir = prepare_data_dir(config.data_dir)
    try:
        sockets = socket_dir(data_dir)
    except PathRefused as error:
        raise ConfigError(f"{error}.") from error
    link = await _plan(config, data_dir)
    keys = None if link.is_plain else own_keys(data_dir)
    manifests = load_manifests(config.images_dir or packaged_manifests())
    store = KernelStore(data_dir, shared_with_kernels=separate_accounts())
    backend = await ProcessBackend.open(
        store=store,
        sockets=sockets,
        manifests=manifests,
        limits=KernelLimits(
            network=config.network,
            processes=config.kernel_processes,
            run_output=config.run_output,
            leash=config.leash,
        ),
        sandboxed=config.isolation != "none",
        pool_size=config.pool_size,
    )
    missing = backend.missing()
    if "isolation" in missing and not is_local_host(link.bind.host) and not config.allow_unisolated:
        raise ConfigError(
            f"`agent.bind`: {link.bind} is reachable from other machines, but: {missing['isolation']}"
            " Set `agent.allow-unisolated` to accept that."
        )
    if "isolation" in missing and config.isolation == "required":
        raise ConfigError(f'`agent.isolation` is "required", but: {missing["isolation"]}')
    for name, sentence in missing.items():
        log.warning("missing capability %s: %s", name, sentence)
    offered = capacity.offered(
        capacity.measure(), cpu_overcommit=config.cpu_overcommit, reserved_mem=config.reserved_mem
    )
    # Kept and raised below: on its way out of the nurseries it would be wrapped in exception groups.
    refused: ConfigError | None = None
    async with (
        open_registry(
            store,
            backend,
            offered,
            session_lifetime=config.session_lifetime,
            run_timeout=config.run_timeout,
            upload_size=config.upload_size,
            retention=Limits(
                after_end=config.run_retention,
                session_bytes=config.session_output,
                all_bytes=config.total_output,
            ),
            ports=parse_ports(config.service_ports),
        ) as registry,
        trio.open_nursery() as nursery,
    ):
        managers = Managers(None if link.membership is None else link.membership.manager_public_key)
        serve = partial(
            serve_link,
            registry,
            bind=_endpoint(link.bind),
            report_interval=config.report_interval,
            curve=None if keys is None else CurveServer(secret_key=keys.secret, admits=managers.admits),
        )
        try:
            address = await nursery.start(serve)
            if link.join and keys is not None:
                joining = partial(_join, config, link, keys.public, data_dir, managers)
                await _unless(joining, partial(_either, stop, end_kernels))
        except OSError as error:
            refused = ConfigError(f"`agent.bind`: {error.strerror}.")
        except ConfigError as error:
            refused = error
        else:
            task_status.started({"addr": address, "missing": dict(missing)})
            await _either(stop, end_kernels)
            if end_kernels.is_set():
                await _end_all(registry)
        nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused


async def _plan(config: AgentConfig, data_dir: Path) -> LinkPlan:
    """How the link is to be served."""
    known = load_membership(data_dir)
    towards = None
    if config.bind is None and config.manager_url and is_new_token(config, known):
        from .joining import address_towards  # here and below: only who joins needs an HTTP client

        towards = await address_towards(config.manager_url)
    return plan_link(config, known, towards_manager=towards)


async def _join(
    config: AgentConfig, link: LinkPlan, public_key: str, data_dir: Path, managers: Managers
) -> None:
    """Join the cluster and admit its managers. By now the address is bound, so that no token is spent on one
    that cannot be had."""
    from .joining import join

    membership = await join(config, link, public_key, data_dir)
    managers.learn(membership.manager_public_key)


async def _unless(work: Callable[[], Awaitable[None]], given_up: Callable[[], Awaitable[None]]) -> None:
    """Do *work* to its end, or until *given_up* returns. A `ConfigError` of the work comes out as it is."""
    failure: ConfigError | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await given_up()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await work()
        except ConfigError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _end_all(registry: KernelRegistry) -> None:
    with trio.move_on_after(END_KERNELS_TIMEOUT) as scope:
        await registry.end_all(SHUTDOWN_REASON)
    if scope.cancelled_caught:
        log.error("not all kernels ended within %g s", END_KERNELS_TIMEOUT)


def _endpoint(address: ListenAddress) -> str:
    """The address as ZeroMQ spells it."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"tcp://{host}:{address.port or '*'}"


def prepare_data_dir(path: Path) -> Path:
    """Make the data directory if it is absent; `ConfigError` when kernels' accounts could not pass it."""
    separate = separate_accounts()
    try:
        path.mkdir(0o711 if separate else 0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"`agent.data-dir`: {path} cannot be made: {error.strerror}.") from error
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError(f"`agent.data-dir`: {path} is not writable.")
    if separate and (barrier := check_traversable(path, FIRST_UID)):
        raise ConfigError(
            f"`agent.data-dir`: kernels have accounts of their own, which cannot pass {barrier}"
            f" (mode {barrier.stat().st_mode & 0o7777:04o}) on the way to their folders in {path}."
        )
    return path.resolve()


async def _either(*events: trio.Event) -> None:
    """Until one of the events is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)
