"""Services of real kernels, in networks of their own and in the machine's."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from backendai_mgr.agent.registry import KernelRegistry
from backendai_mgr.agent.services import Service
from backendai_mgr.agent.shimsocket import NobodyListens
from backendai_mgr.wire.rpc import AgentRefusal

from .harness import PATIENCE, Site, destroy, read_all, run, start

NUMBERS = range(31990, 32000)


@asynccontextmanager
async def agent(site: Site, *services: Service) -> AsyncIterator[KernelRegistry]:
    """An agent whose Python image has these services (its own: `files`)."""
    async with site.agent(ports=NUMBERS) as registry:
        if services:
            backend = site.backend
            backend.services = lambda spec: services  # type: ignore[union-attr, method-assign]
        yield registry


async def get(stream: trio.SocketStream, path: str) -> bytes:
    await stream.send_all(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    answer = b""
    while data := await stream.receive_some():
        answer += data
    return answer


def a_service(command: str, **more: object) -> Service:
    return Service(name="own", protocol="tcp", port=9000, command=command, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("sandboxed", [True, False])
async def test_a_web_server_inside_is_reached(site: Site, sandboxed: bool) -> None:
    site.sandboxed = sandboxed
    with trio.fail_after(2 * PATIENCE):
        async with agent(site) as registry:
            first, second = site.spec(), site.spec()
            for spec in (first, second):
                report = await registry.create_kernel(spec)
                (port,) = report.service_ports
                assert (port.name, port.protocol, port.container_ports) == ("files", "http", [8000])
                assert port.host_ports[0] in NUMBERS
                await run(registry, spec, "q", f"open('who', 'w').write('{spec.kernel_id}')")
            for spec in (first, second):  # at the same port, each inside of its own, where there is such
                started = await registry.start_service(spec.kernel_id, "files", None, {}, {})
                assert (started.port == 8000) is sandboxed
                assert not started.was_running
                async with await registry.connect(spec.kernel_id, started.port) as stream:
                    assert str(spec.kernel_id).encode() in await get(stream, "/who")
                again = await registry.start_service(spec.kernel_id, "files", 8000, {}, {})
                assert (again.port, again.was_running) == (started.port, True)
            for spec in (first, second):
                await destroy(registry, site, spec)


async def test_it_is_shut_down_and_can_be_started_again(site: Site) -> None:
    with trio.fail_after(2 * PATIENCE):
        async with agent(site) as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            with pytest.raises(NobodyListens):
                await registry.connect(spec.kernel_id, 8000)
            await registry.shut_down_service(spec.kernel_id, "files")
            for number in (1, 2):
                await registry.start_service(spec.kernel_id, "files", None, {}, {})
                await registry.shut_down_service(spec.kernel_id, "files")
                runs = {item.run_id: item for item in await registry.list_runs(spec.kernel_id)}
                name = f"service-files-{number}"
                assert runs[name].mode == "service"
                _, ended = await read_all(registry, spec.kernel_id, name)
                assert ended.state == "cancelled"
                with pytest.raises(NobodyListens):
                    await registry.connect(spec.kernel_id, 8000)
            await destroy(registry, site, spec)


async def test_the_next_agent_finds_it_and_its_number(site: Site) -> None:
    with trio.fail_after(2 * PATIENCE):
        async with agent(site) as registry:
            spec = site.spec(preopen_ports=[8080])
            before = (await registry.create_kernel(spec)).service_ports
            assert [port.name for port in before] == ["files", "8080"]
            await registry.start_service(spec.kernel_id, "files", None, {}, {})
        async with agent(site) as registry:
            (report,) = registry.make_report().kernels
            assert report.service_ports == before
            started = await registry.start_service(spec.kernel_id, "files", None, {}, {})
            assert started.was_running
            other = (await registry.create_kernel(other_spec := site.spec())).service_ports
            assert not {n for p in other for n in p.host_ports} & {n for p in before for n in p.host_ports}
            for item in (spec, other_spec):
                await destroy(registry, site, item)


@pytest.mark.parametrize("sandboxed", [True, False])
async def test_what_the_user_opens_is_reached_when_somebody_listens(site: Site, sandboxed: bool) -> None:
    site.sandboxed = sandboxed
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with trio.fail_after(2 * PATIENCE):
        async with agent(site) as registry:
            spec = site.spec(preopen_ports=[port])
            report = await registry.create_kernel(spec)
            opened = report.service_ports[-1]
            assert (opened.name, opened.protocol, opened.container_ports) == (str(port), "preopen", [port])
            started = await registry.start_service(spec.kernel_id, str(port), None, {}, {})
            assert started.port == port
            with pytest.raises(NobodyListens):
                await registry.connect(spec.kernel_id, port)
            code = f"""
import socket, threading
server = socket.create_server(("127.0.0.1", {port}))
threading.Thread(target=lambda: server.accept()[0].sendall(b"hello"), daemon=True).start()
"""
            await run(registry, spec, "q", code)
            async with await registry.connect(spec.kernel_id, port) as stream:
                assert await stream.receive_some() == b"hello"
            await destroy(registry, site, spec)


async def test_only_what_is_offered_is_reached(site: Site) -> None:
    with trio.fail_after(2 * PATIENCE):
        async with agent(site) as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            with pytest.raises(AgentRefusal) as refused:
                await registry.connect(spec.kernel_id, 22)
            assert refused.value.code == "no-such-port"
            for service, port, code in (("ftp", None, "no-such-service"), ("files", 8001, "no-such-port")):
                with pytest.raises(AgentRefusal) as refused:
                    await registry.start_service(spec.kernel_id, service, port, {}, {})
                assert refused.value.code == code
            with pytest.raises(AgentRefusal) as refused:
                await registry.shut_down_service(spec.kernel_id, "ftp")
            assert refused.value.code == "no-such-service"
            await destroy(registry, site, spec)
            with pytest.raises(AgentRefusal) as refused:
                await registry.connect(spec.kernel_id, 8000)
            assert refused.value.code == "no-such-kernel"


async def test_arguments_and_variables_reach_it_and_nothing_else(site: Site) -> None:
    code = """
import os, sys, http.server as h
open("got", "w").write(repr((os.environ.get("A"), sys.argv[1:])))
h.HTTPServer(("127.0.0.1", {port}), h.SimpleHTTPRequestHandler).serve_forever()
"""
    service = a_service(f"python3 -c '{code}'", allowed_envs=("A",), allowed_arguments=("--x", "--y"))
    with trio.fail_after(2 * PATIENCE):
        async with agent(site, service) as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            for arguments, envs in (({"--z": []}, {}), ({}, {"PATH": "/"})):
                with pytest.raises(AgentRefusal) as refused:
                    await registry.start_service(spec.kernel_id, "own", None, arguments, envs)
                assert refused.value.code == "bad-request"
            given = {"--x": ["$(id); '\"", "2"], "--y": []}
            await registry.start_service(spec.kernel_id, "own", None, given, {"A": "it's; $HOME"})
            got = (await registry.files(spec.kernel_id).read("got", 0, 1000)).data.decode()
            assert got == repr(("it's; $HOME", ["--x", "$(id); '\"", "2", "--y"]))
            await destroy(registry, site, spec)


async def test_one_that_does_not_come_up_tells_its_last_words(site: Site) -> None:
    with trio.fail_after(2 * PATIENCE):
        async with agent(site, a_service("echo no config for {port} >&2; exit 3")) as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            for _ in range(2):
                with pytest.raises(AgentRefusal) as refused:
                    await registry.start_service(spec.kernel_id, "own", None, {}, {})
                assert refused.value.code == "service-failed"
                assert refused.value.message == "it ended with exit code 3: no config for 9000"
            await destroy(registry, site, spec)


async def test_two_who_start_it_at_once_start_one(site: Site) -> None:
    with trio.fail_after(2 * PATIENCE):
        async with agent(site) as registry:
            spec = site.spec()
            await registry.create_kernel(spec)
            outcomes: list[bool] = []

            async def start_it() -> None:
                started = await registry.start_service(spec.kernel_id, "files", None, {}, {})
                outcomes.append(started.was_running)

            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(start_it)
            assert sorted(outcomes) == [False, True, True, True, True]
            await start(registry, spec, "q", "while True: pass")  # which it does not wait for
            assert (await registry.start_service(spec.kernel_id, "files", None, {}, {})).was_running
            await destroy(registry, site, spec)


async def test_numbers_that_are_used_up_refuse_a_kernel(site: Site) -> None:
    with trio.fail_after(2 * PATIENCE):
        async with agent(site) as registry:
            spec = site.spec(preopen_ports=list(range(9000, 9016)))
            with pytest.raises(AgentRefusal) as refused:
                await registry.create_kernel(spec)
            assert refused.value.code == "create-failed"
            assert "31990-31999" in refused.value.message
            await registry.create_kernel(good := site.spec())
            await destroy(registry, site, good)
