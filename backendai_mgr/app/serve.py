"""One worker of the manager: opens everything, serves until told to stop, and closes in the right order.

The nesting is the order of a stop: HTTP drains first, then the loops end, then the links, then the database.
"""

import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from ..agentlink.keys import LinkKeys
from ..agentlink.links import open_links
from ..api.app import create_app
from ..api.context import RequestIdFilter
from ..api.server.serving import open_listener, raise_descriptor_limit, serve_http
from ..api.server.tls import CertificateError, load_certificate, server_context
from ..db.joining import PgJoining
from ..db.pool import open_database
from ..domain.ids import AgentId
from ..runtime.config import HostPort
from ..runtime.supervise import supervise
from ..services.ports import StoreUnavailable
from ..services.stopping import end_all_sessions
from ..services.turns import run_in_turn
from .build import Manager, build, utc_now
from .config import ManagerConfig
from .prepare import prepare

log = logging.getLogger(__name__)

#: Start-up waits so long for the database and for the first notifications.
STARTUP_TIMEOUT = 60.0
END_SESSIONS_TIMEOUT = 6.0
ACKNOWLEDGE_TIMEOUT = 1.0
CLEANUP_TIMEOUT = 2.0


async def serve_manager(
    config: ManagerConfig,
    *,
    stop: trio.Event,
    end_sessions: trio.Event,
    listener: socket.socket | None = None,
    hangups: trio.MemoryReceiveChannel[None] | None = None,
    task_status: trio.TaskStatus[dict[str, str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until ``stop``; started with ``{"endpoint": URL}`` once sessions can be had.

    The socket is *listener*, which somebody else has bound, or one that is opened here. Upon each item of
    *hangups* the certificate is read anew. `CertificateError` when the first one cannot be used.

    A stop ends all sessions as well when ``end_sessions`` is set by then. The process is gone
    `shutdown_timeout` seconds after ``stop``, whatever a client does.
    """
    for handler in logging.getLogger().handlers:
        handler.addFilter(RequestIdFilter())
    raise_descriptor_limit()
    tls = None if config.tls is None else server_context(*config.tls)
    if listener is None:
        listener = open_listener(config.service_addr.host, config.service_addr.port)
    async with trio.open_nursery() as last_resort:
        last_resort.start_soon(_exit_in_time, stop, config.shutdown_timeout)
        async with open_database(config.db.parameters, size=config.pool_size) as database:
            with trio.fail_after(STARTUP_TIMEOUT):
                keys = await prepare(database, config)
            link_keys = LinkKeys(keys, PgJoining(database))
            async with open_links(keys=link_keys) as links, trio.open_nursery() as loops:
                manager = build(config, database, links, public_key=keys.public)
                with trio.fail_after(STARTUP_TIMEOUT):
                    await loops.start(manager.hub.run)
                for name in ("keeper", "starter"):
                    loops.start_soon(partial(supervise, getattr(manager, name).run, name=name))
                in_turn = {name: getattr(manager, name).run for name in ("scheduler", "reaper")}
                loops.start_soon(partial(run_in_turn, manager.turns, in_turn))
                if tls is not None and hangups is not None:
                    loops.start_soon(_renew_certificate, tls, config, hangups)
                await _serve_http(config, manager, listener, tls, stop, task_status)
                with trio.move_on_after(END_SESSIONS_TIMEOUT + CLEANUP_TIMEOUT):
                    await _leave(manager, end_sessions.is_set())
                loops.cancel_scope.cancel()
        last_resort.cancel_scope.cancel()


async def _serve_http(
    config: ManagerConfig,
    manager: Manager,
    listener: socket.socket,
    tls: ssl.SSLContext | None,
    stop: trio.Event,
    task_status: trio.TaskStatus[dict[str, str]],
) -> None:
    """Serve HTTP until ``stop`` and the drain that follows it."""
    async with trio.open_nursery() as nursery:
        serve = partial(
            serve_http,
            create_app(manager.api, config.limits),
            listener,
            limits=config.limits,
            stop=manager.health.stopping,
            tls=tls,
            drain_timeout=config.drain_timeout,
        )
        await nursery.start(serve)
        endpoint = _endpoint(config, listener)
        log.info("serving at %s", endpoint)
        if config.local is not None:
            await _first_of(stop.wait, partial(manager.keeper.first_report, AgentId(config.local.agent_id)))
        task_status.started({"endpoint": endpoint})
        await stop.wait()
        log.info("stopping: no new work from now on")
        manager.health.draining = True
        manager.hub.stop()
        manager.health.stopping.set()


async def _renew_certificate(
    tls: ssl.SSLContext, config: ManagerConfig, hangups: trio.MemoryReceiveChannel[None]
) -> None:
    """Use the files as they are now, each time that is asked for."""
    assert config.tls is not None
    async for _ in hangups:
        try:
            load_certificate(tls, *config.tls)
        except CertificateError as error:
            log.error("the certificate stays as it was: %s", error)
        else:
            log.info("the certificate was read anew")


def _endpoint(config: ManagerConfig, listener: socket.socket) -> str:
    host, port = config.service_addr.host, listener.getsockname()[1]
    scheme = "http" if config.tls is None else "https"
    return f"{scheme}://{HostPort(host, port)}"


async def _first_of(*waits: Callable[[], Awaitable[object]]) -> None:
    """Until the first of *waits* returns, or `STARTUP_TIMEOUT` has passed."""
    with trio.move_on_after(STARTUP_TIMEOUT):
        async with trio.open_nursery() as nursery:

            async def wait(one: Callable[[], Awaitable[object]]) -> None:
                await one()
                nursery.cancel_scope.cancel()

            for one in waits:
                nursery.start_soon(wait, one)


async def _leave(manager: Manager, end_sessions: bool) -> None:
    """What is told to others before this worker goes."""
    try:
        if end_sessions:
            left = await end_all_sessions(
                manager.sessions, manager.hub, now=utc_now, timeout=END_SESSIONS_TIMEOUT
            )
            if left:
                log.warning("%d sessions had not ended in time", left)
            with trio.move_on_after(ACKNOWLEDGE_TIMEOUT):  # so that agents clean up before they go
                await manager.keeper.all_acknowledged()
        await manager.keeper.release()
    except StoreUnavailable as error:
        log.warning("the database went first: %s", error)


async def _exit_in_time(stop: trio.Event, timeout: float) -> None:
    """The outer deadline: exit although something still hangs."""
    await stop.wait()
    await trio.sleep(timeout)
    log.error("not everything stopped within %.0f s; exiting all the same", timeout)
    os._exit(0)
