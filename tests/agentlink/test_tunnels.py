"""Connections to services over the link: bytes both ways, ends of every kind, credit, lost links."""

from functools import partial

import pytest
import trio

from backendai_mgr.agent.server import serve_link
from backendai_mgr.agent.shimsocket import NobodyListens
from backendai_mgr.wire import link as messages
from backendai_mgr.wire.callosum import AgentError
from backendai_mgr.wire.rpc import AgentRefusal, AgentUnreachable

from .conftest import INTERVAL, KERNEL, serving


@pytest.fixture
async def service(agent, nursery):
    """A service that the agent connects to: connections arrive in the channel."""
    send, receive = trio.open_memory_channel[trio.SocketStream](10)

    async def accept(stream: trio.SocketStream) -> None:
        await send.send(stream)
        await trio.sleep_forever()

    listeners = await nursery.start(partial(trio.serve_tcp, accept, 0, host="127.0.0.1"))
    port = listeners[0].socket.getsockname()[1]

    async def connect(kernel_id, asked):
        await agent._called("connect")
        assert (kernel_id, asked) == (KERNEL, 8000)
        return await trio.open_tcp_stream("127.0.0.1", port)

    agent.connect = connect
    return receive


async def test_bytes_go_both_ways(link, service):
    with trio.fail_after(20):
        async with link.tunnel(KERNEL, 8000) as tunnel:
            inside = await service.receive()
            await tunnel.send(b"ask\0\xff")
            assert await inside.receive_some() == b"ask\0\xff"
            await inside.send_all(b"answer")
            assert await tunnel.receive() == b"answer"
        assert await inside.receive_some() == b""  # its user has left


async def test_much_goes_through_while_only_so_much_is_kept(link, service):
    text = bytes(range(256)) * 40_000
    with trio.fail_after(60):
        async with link.tunnel(KERNEL, 8000) as tunnel, trio.open_nursery() as nursery:
            inside = await service.receive()
            nursery.start_soon(tunnel.send, text)
            got = b""
            while len(got) < len(text):
                got += await inside.receive_some(1 << 20)
            assert got == text

            async def answer() -> None:
                await inside.send_all(text)
                await inside.aclose()

            nursery.start_soon(answer)
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            assert tunnel._end._arrived_to - tunnel._end._taken_to <= messages.TUNNEL_CREDIT
            got = b""
            while data := await tunnel.receive():
                got += data
            assert got == text


async def test_a_service_that_hangs_up_is_heard_after_its_last_words(link, service):
    with trio.fail_after(20):
        async with link.tunnel(KERNEL, 8000) as tunnel:
            inside = await service.receive()
            await inside.send_all(b"bye")
            await inside.aclose()
            assert await tunnel.receive() == b"bye"
            assert await tunnel.receive() == b""
            await tunnel.send(b"into the void")


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (NobodyListens(), AgentRefusal, "connection-refused"),
        (AgentRefusal("no-such-port", "not 8000"), AgentRefusal, "no-such-port"),
        (OSError("no route"), AgentError, "no route"),
        (ZeroDivisionError("bug"), AgentError, "bug"),
    ],
)
async def test_what_cannot_be_connected_to_says_why(link, agent, error, kind, told, caplog):
    agent.refuse_once("connect", error)
    with trio.fail_after(20), pytest.raises(kind) as caught:
        async with link.tunnel(KERNEL, 8000):
            raise AssertionError
    assert told in str(caught.value)


async def test_many_at_a_time(link, service):
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:

            async def ask(number: int) -> None:
                async with link.tunnel(KERNEL, 8000) as tunnel:
                    await tunnel.send(b"%d" % number)
                    assert await tunnel.receive() == b"%d!" % number

            async def answer(stream: trio.SocketStream) -> None:
                await stream.send_all(await stream.receive_some() + b"!")

            for number in range(20):
                nursery.start_soon(ask, number)
            for _ in range(20):
                nursery.start_soon(answer, await service.receive())


async def test_a_lost_agent_ends_it(agent, links, service):
    with trio.fail_after(30):
        async with serving(agent) as endpoint:
            link = links.link("i-test", endpoint)
            context = link.tunnel(KERNEL, 8000)
            tunnel = await context.__aenter__()
            inside = await service.receive()
        with pytest.raises(AgentUnreachable):
            await tunnel.receive()
        assert await inside.receive_some() == b""
        await context.__aexit__(None, None, None)


async def test_a_manager_that_is_silent_loses_it(agent, nursery, links, service):
    with trio.fail_after(30):
        serve = partial(
            serve_link, agent, bind="tcp://127.0.0.1:*", report_interval=INTERVAL, peer_timeout=0.5
        )
        link = links.link("i-test", await nursery.start(serve))
        async with link.tunnel(KERNEL, 8000) as tunnel:
            inside = await service.receive()
            await trio.sleep(1)  # in which it is said to be used
            await inside.send_all(b"x")
            assert await tunnel.receive() == b"x"
            connection = links.connection("i-test", link._addr)
            connection.tunnels._by_sid.clear()  # nobody speaks of it any more
            assert await inside.receive_some() == b""


@pytest.mark.parametrize(
    "message",
    [
        messages.Piece(sid=1, offset=5, data=b"x"),
        messages.Piece(sid=1, offset=0, data=b""),
        messages.Taken(sid=1, offset=5),
    ],
)
async def test_what_breaks_the_rules_ends_the_tunnel_on_either_side(link, links, service, message):
    with trio.fail_after(20):
        for towards_agent in (True, False):
            async with link.tunnel(KERNEL, 8000) as tunnel:
                inside = await service.receive()
                broken = type(message)(
                    **{"sid": tunnel.sid, "offset": message.offset}
                    | ({"data": message.data} if isinstance(message, messages.Piece) else {})
                )
                connection = links.connection("i-test", link._addr)
                if towards_agent:
                    await connection.send(messages.encode(broken))
                else:
                    connection.tunnels.on_message(broken)
                with pytest.raises(AgentError):
                    await tunnel.receive()
                assert await inside.receive_some() == b""


async def test_services_are_started_and_shut_down(link, agent):
    started = await link.start_service(KERNEL, "http", port=None, arguments={"--x": ["y"]}, envs={"A": "b"})
    assert (started.port, started.was_running) == (8000, False)
    assert agent.services == {"http": ({"--x": ["y"]}, {"A": "b"})}
    await link.shut_down_service(KERNEL, "http")
    assert agent.services == {}


async def test_one_kernel_does_not_take_all_of_an_agents_tunnels(link, service, monkeypatch):
    monkeypatch.setattr("backendai_mgr.agent.linktunnels.MAX_OF_KERNEL", 1)
    with trio.fail_after(20):
        async with link.tunnel(KERNEL, 8000):
            await service.receive()
            with pytest.raises(AgentError, match="too many"):
                async with link.tunnel(KERNEL, 8000):
                    raise AssertionError
        while True:
            try:
                async with link.tunnel(KERNEL, 8000):
                    break
            except AgentError:  # the end of the first has not been heard yet
                continue
