"""The sockets over real loopback TCP."""

import select
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from backendai_mgr.runtime.zmqsocket import HIGH_WATER, SOCKETS_OF_DEALER, PeerGone, open_context

ANY = "tcp://127.0.0.1:*"


async def test_a_thousand_round_trips_lose_no_wake_up_while_one_task_sends_and_another_receives():
    rounds = 1000
    with trio.fail_after(30):
        async with (
            open_context() as context,
            context.router(ANY) as router,
            context.dealer(router.endpoint) as dealer,
            trio.open_nursery() as nursery,
        ):

            async def echo() -> None:
                for _ in range(rounds):
                    peer, *frames = await router.recv()
                    router.send(peer, frames)

            answers, answered = trio.open_memory_channel[bytes](0)

            async def receive() -> None:
                for _ in range(rounds):
                    (frame,) = await dealer.recv()
                    await answers.send(frame)

            nursery.start_soon(echo)
            nursery.start_soon(receive)
            for number in range(rounds):
                await dealer.send([b"%d" % number])
                assert await answered.receive() == b"%d" % number


async def test_a_send_that_swallows_the_news_of_an_arrived_message_still_wakes_its_receiver():
    got, arrivals = trio.open_memory_channel[bytes](10)
    with trio.fail_after(30):
        async with (
            open_context() as context,
            context.router(ANY) as router,
            context.dealer(router.endpoint) as dealer,
            trio.open_nursery() as nursery,
        ):

            async def receive() -> None:
                while True:
                    await got.send((await dealer.recv())[0])

            await dealer.send([b"hello"])
            peer, _ = await router.recv()
            nursery.start_soon(receive)
            for number in range(200):
                await trio.testing.wait_all_tasks_blocked()
                router.send(peer, [b"%d" % number])
                # Without giving the pump a chance: the message is here, and then somebody sends.
                assert select.select([dealer._raw.fd], [], [], 5)[0]
                dealer.send_nowait([b"meanwhile"])
                with trio.fail_after(2):
                    assert await arrivals.receive() == b"%d" % number
            nursery.cancel_scope.cancel()


async def test_a_flood_arrives_whole_and_in_order():
    count = 5000
    with trio.fail_after(30):
        async with (
            open_context() as context,
            context.router(ANY) as router,
            context.dealer(router.endpoint) as dealer,
            trio.open_nursery() as nursery,
        ):

            async def flood() -> None:
                for number in range(count):
                    await dealer.send([b"%d" % number, b""])

            nursery.start_soon(flood)
            for number in range(count):
                _, first, second = await router.recv()
                assert (first, second) == (b"%d" % number, b"")


async def test_cancelling_receivers_loses_no_message():
    count = 2000
    seen: list[int] = []
    with trio.fail_after(30):
        async with (
            open_context() as context,
            context.router(ANY) as router,
            context.dealer(router.endpoint) as dealer,
            trio.open_nursery() as nursery,
        ):

            async def flood() -> None:
                for number in range(count):
                    await dealer.send([b"%d" % number])
                    if number % 7 == 0:
                        await trio.lowlevel.checkpoint()

            async def receive_once(scope: trio.CancelScope) -> None:
                with scope:
                    seen.append(int((await router.recv())[1]))

            nursery.start_soon(flood)
            turn = 0
            while len(seen) < count:
                async with trio.open_nursery() as receivers:
                    scopes = [trio.CancelScope() for _ in range(4)]
                    for scope in scopes:
                        receivers.start_soon(receive_once, scope)
                    await trio.lowlevel.checkpoint()
                    for scope in scopes[turn % 2 :]:
                        scope.cancel()
                    for scope in scopes:
                        scope.deadline = trio.current_time() + 0.05
                turn += 1
    assert sorted(seen) == list(range(count))


@asynccontextmanager
async def own_router(endpoint):
    """A router in a context of its own, whose end alone waits until the port is free again."""
    async with open_context() as context, context.router(endpoint) as router:
        yield router


async def test_send_waits_for_a_peer_that_comes_later_and_queues_nothing_before():
    with trio.fail_after(30):
        async with open_context() as context:
            async with own_router(ANY) as router:
                endpoint = router.endpoint
            async with context.dealer(endpoint) as dealer:
                with pytest.raises(trio.WouldBlock):
                    dealer.send_nowait([b"too early"])
                with trio.move_on_after(0.05) as scope:
                    await dealer.send([b"gave up"])
                assert scope.cancelled_caught
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(dealer.send, [b"patient"])
                    async with own_router(endpoint) as router:
                        assert (await router.recv())[1:] == [b"patient"]


async def test_a_dealer_reconnects_to_a_restarted_peer_and_brings_nothing_old():
    with trio.fail_after(30):
        async with open_context() as context:
            async with own_router(ANY) as router:
                endpoint = router.endpoint
            async with context.dealer(endpoint) as dealer:
                async with own_router(endpoint) as router:
                    await dealer.send([b"first"])
                    assert (await router.recv())[1:] == [b"first"]
                    await dealer.send([b"never read"])
                async with own_router(endpoint) as successor:
                    got = None
                    while got is None:  # a message that went out before the break was noticed is lost
                        await dealer.send([b"second"])
                        with trio.move_on_after(1):
                            got = await successor.recv()
                    assert got[1:] == [b"second"]


async def test_each_break_of_a_connection_is_told_once():
    with trio.fail_after(30):
        async with open_context() as context:
            async with own_router(ANY) as router:
                endpoint = router.endpoint
            async with context.dealer(endpoint) as dealer:
                for _ in range(3):
                    async with own_router(endpoint) as router:
                        await dealer.send([b"hello"])
                        await router.recv()
                        with trio.move_on_after(0.02) as scope:
                            await dealer.broken()
                        assert scope.cancelled_caught, "it is whole"
                    await dealer.broken()


async def test_the_router_tells_of_an_unknown_peer():
    async with open_context() as context, context.router(ANY) as router:
        with pytest.raises(PeerGone, match="not connected"):
            router.send(b"nobody", [b"hello"])


def fill(router, peer) -> None:
    """Send more than both queues and the kernel's buffers hold."""
    for _ in range(10 * HIGH_WATER):
        router.send(peer, [bytes(1024)])


async def test_a_peer_that_does_not_read_holds_up_nobody():
    with trio.fail_after(30):
        async with (
            open_context() as context,
            context.router(ANY) as router,
            context.dealer(router.endpoint) as lazy,
            context.dealer(router.endpoint) as eager,
        ):
            await lazy.send([b"lazy"])
            lazy_id = (await router.recv())[0]
            await eager.send([b"eager"])
            eager_id = (await router.recv())[0]
            with pytest.raises(PeerGone, match="does not read"):
                fill(router, lazy_id)
            router.send(eager_id, [b"still here"])
            assert await eager.recv() == [b"still here"]


async def test_a_hot_socket_lets_other_tasks_run():
    turns = 0
    with trio.fail_after(30):
        async with (
            open_context() as context,
            context.router(ANY) as router,
            context.dealer(router.endpoint) as dealer,
            trio.open_nursery() as nursery,
        ):

            async def count_turns() -> None:
                nonlocal turns
                while True:
                    await trio.lowlevel.checkpoint()
                    turns += 1

            await dealer.send([b"connected"])
            await router.recv()
            nursery.start_soon(count_turns)
            for _ in range(1000):
                await dealer.send([b"x"])
            nursery.cancel_scope.cancel()
    assert turns >= 20


async def test_closing_wakes_those_who_wait_with_an_error():
    with trio.fail_after(30):
        async with open_context() as context, trio.open_nursery() as nursery:
            closed = trio.Event()

            async def wait(recv) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await recv()
                closed.set()

            async with context.router(ANY) as router:
                nursery.start_soon(wait, router.recv)
                await trio.testing.wait_all_tasks_blocked()
            await closed.wait()


@pytest.mark.parametrize("address", ["nonsense", "tcp://", "tcp://127.0.0.1", "carrier://x:1"])
async def test_a_wrong_address_is_an_oserror(address):
    async with open_context() as context:
        with pytest.raises(OSError, match="cannot dial"):
            async with context.dealer(address):
                pass
        with pytest.raises(OSError, match="cannot bind"):
            async with context.router(address):
                pass


async def test_binding_a_taken_port_is_an_oserror():
    async with open_context() as context, context.router(ANY) as router:
        with pytest.raises(OSError, match="cannot bind"):
            async with context.router(router.endpoint):
                pass


async def test_more_sockets_than_allowed_is_an_oserror():
    async with open_context(max_sockets=SOCKETS_OF_DEALER) as context, context.router(ANY):
        with pytest.raises(OSError, match="no more"):
            async with context.router(ANY):
                pass
