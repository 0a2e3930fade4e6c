"""CURVE and ZAP over real loopback TCP: who comes in, who does not, and what each side is told."""

import re
import struct
from contextlib import asynccontextmanager

import pytest
import trio
import zmq.utils.z85

from backendai_mgr.runtime.curve import (
    CurveClient,
    CurveServer,
    SocketEvent,
    new_key_pair,
    public_key_of,
    zap_client,
    zap_reply,
)
from backendai_mgr.runtime.zmqsocket import HandshakeFailed, open_context

ANY = "tcp://127.0.0.1:*"
AGENT = new_key_pair()
MANAGER = new_key_pair()
STRANGER = new_key_pair()


def among(keys):
    async def admits(key: str) -> bool:
        return key in keys

    return admits


def client(own=MANAGER, server=AGENT[0]) -> CurveClient:
    return CurveClient(public_key=own[0], secret_key=own[1], server_key=server)


@asynccontextmanager
async def guarded(admitted, endpoint=ANY):
    """An agent's router that admits these keys; the dialling side has a context of its own, as it has."""
    async with (
        open_context() as here,
        open_context() as there,
        here.router(endpoint, curve=CurveServer(secret_key=AGENT[1], admits=among(admitted))) as router,
    ):
        yield router, there


async def echoed(router, dealer) -> bool:
    """Whether a message makes it to the router and back."""
    with trio.move_on_after(5):
        await dealer.send([b"question"])
        peer, question = await router.recv()
        router.send(peer, [question])
        return await dealer.recv() == [b"question"]
    return False


async def test_the_manager_and_the_agent_that_know_each_other_talk():
    async with (
        guarded({MANAGER[0]}) as (router, context),
        context.dealer(router.endpoint, curve=client()) as dealer,
    ):
        assert await echoed(router, dealer)


@pytest.mark.parametrize(
    ("curve", "told", "logged"),
    [
        (client(STRANGER), "does not admit our key", "its key is not admitted"),
        (client(server=STRANGER[0]), "another key", "key"),
        (None, *["one side encrypts|hung up"] * 2),  # whichever end is first to speak
    ],
    ids=["a stranger's key", "the key of another agent", "no key"],
)
async def test_all_others_are_refused_and_both_sides_learn_why(curve, told, logged):
    with trio.fail_after(20):
        async with guarded({MANAGER[0]}) as (router, context):
            async with context.dealer(router.endpoint, curve=curve) as dealer:
                with pytest.raises(HandshakeFailed, match=told):
                    await dealer.broken()
                with pytest.raises(trio.WouldBlock):
                    dealer.send_nowait([b"secret"])
            assert re.search(logged, await router.refused())
            # Those who are refused are in nobody's way.
            async with context.dealer(router.endpoint, curve=client()) as dealer:
                assert await echoed(router, dealer)


async def test_one_who_encrypts_does_not_talk_to_one_who_does_not():
    with trio.fail_after(20):
        async with (
            open_context() as context,
            context.router(ANY) as router,
            context.dealer(router.endpoint, curve=client()) as dealer,
        ):
            with pytest.raises(HandshakeFailed, match=r"one side encrypts|hung up"):
                await dealer.broken()


async def test_whom_it_admits_may_change_while_it_listens():
    admitted: set[str] = set()
    with trio.fail_after(20):
        async with guarded(admitted) as (router, context):
            async with context.dealer(router.endpoint, curve=client()) as dealer:
                with pytest.raises(HandshakeFailed):
                    await dealer.broken()
            admitted.add(MANAGER[0])
            async with context.dealer(router.endpoint, curve=client()) as dealer:
                assert await echoed(router, dealer)
                admitted.clear()
                assert await echoed(router, dealer)  # a handshake is for the life of its connection


async def test_a_handshake_waits_until_it_is_known_who_is_admitted():
    known = trio.Event()

    async def admits(key: str) -> bool:
        await known.wait()
        return key == MANAGER[0]

    server = CurveServer(secret_key=AGENT[1], admits=admits)
    with trio.fail_after(20):
        async with (
            open_context() as here,
            open_context() as there,
            here.router(ANY, curve=server) as router,
            there.dealer(router.endpoint, curve=client()) as dealer,
        ):
            with trio.move_on_after(0.3) as early:
                await dealer.broken()
            assert early.cancelled_caught
            known.set()
            assert await echoed(router, dealer)


async def test_an_agent_with_another_key_at_an_old_address_is_not_taken_for_the_one_before():
    with trio.fail_after(20):
        async with guarded({MANAGER[0]}) as (router, context):
            port = router.endpoint
            async with context.dealer(port, curve=client()) as dealer:
                assert await echoed(router, dealer)
        successor = CurveServer(secret_key=STRANGER[1], admits=among({MANAGER[0]}))
        async with (
            open_context() as here,
            open_context() as there,
            here.router(port, curve=successor),
            there.dealer(port, curve=client()) as dealer,
        ):
            with pytest.raises(HandshakeFailed):
                await dealer.broken()


async def test_a_peer_that_is_no_zeromq_at_all_is_a_failed_handshake():
    async def answer(stream) -> None:
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, open_context() as context:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, answer, [listener])
            port = listener.socket.getsockname()[1]
            for curve in (client(), None):
                async with context.dealer(f"tcp://127.0.0.1:{port}", curve=curve) as dealer:
                    with pytest.raises(HandshakeFailed):
                        await dealer.broken()
            nursery.cancel_scope.cancel()


async def test_a_break_after_the_handshake_is_a_break_and_the_same_socket_connects_again():
    with trio.fail_after(20):
        async with guarded({MANAGER[0]}) as (router, _):
            endpoint = router.endpoint
        async with open_context() as there, there.dealer(endpoint, curve=client()) as dealer:
            for _ in range(2):
                async with guarded({MANAGER[0]}, endpoint) as (router, _):
                    assert await echoed(router, dealer)
                await dealer.broken()


async def test_a_second_guarded_router_of_a_context_and_a_key_that_is_none_are_oserrors():
    server = CurveServer(secret_key=AGENT[1], admits=among(()))
    async with open_context() as context, context.router(ANY, curve=server):
        with pytest.raises(OSError, match="already"):
            async with context.router(ANY, curve=server):
                pass
        with pytest.raises(OSError, match="key"):
            async with context.dealer("tcp://127.0.0.1:1", curve=client(server="short")):
                pass


def request(**changes) -> list[bytes]:
    parts = {
        "version": b"1.0",
        "id": b"7",
        "domain": b"local",
        "address": b"10.0.0.1",
        "identity": b"",
        "mechanism": b"CURVE",
        "key": zmq.utils.z85.decode(MANAGER[0]),
    }
    return list((parts | changes).values())


@pytest.mark.parametrize(
    ("frames", "status"),
    [
        (request(), b"200"),
        (request(key=zmq.utils.z85.decode(STRANGER[0])), b"400"),
        (request(key=b""), b"400"),
        (request(key=zmq.utils.z85.decode(MANAGER[0])[:31]), b"400"),
        (request(domain=b"elsewhere"), b"400"),
        (request(version=b"2.0"), b"400"),
        (request(mechanism=b"PLAIN"), b"400"),
        (request(mechanism=b"NULL")[:6], b"400"),
        ([*request(), b"more"], b"400"),
        ([], b"400"),
    ],
)
def test_answers_to_zap_requests(frames, status):
    reply = zap_reply(frames, admitted=zap_client(frames) == MANAGER[0])
    assert len(reply) == 6
    assert reply[0] == b"1.0"
    assert reply[2] == status
    assert reply[1] == (b"7" if frames else b"")


def test_secrets_do_not_show():
    assert MANAGER[1] not in repr(client())
    assert AGENT[1] not in repr(CurveServer(secret_key=AGENT[1], admits=among(())))


def test_the_public_key_of_a_secret_one():
    assert public_key_of(AGENT[1]) == AGENT[0]
    for nonsense in ("", "short", "ü" * 40, " " * 40):
        with pytest.raises(ValueError, match="not a key"):
            public_key_of(nonsense)


def test_a_monitors_event():
    event = SocketEvent.parse([struct.pack("=HI", 0x4000, 400), b"tcp://10.0.0.1:6001"])
    assert (event.event, event.value, event.endpoint) == (0x4000, 400, "tcp://10.0.0.1:6001")
