from collections import deque

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.runtime.tunnel import MAX_PIECES, TunnelBroken, TunnelEnd


class Wire:
    """Two ends; what one sends waits in the middle until it is delivered."""

    def __init__(self, credit: int = 100, longest: int = 40) -> None:
        self.under_way: deque = deque()
        self.pieces: list[bytes] = []

        async def piece(offset: int, data: bytes) -> None:
            await trio.lowlevel.checkpoint()
            self.pieces.append(data)
            self.under_way.append(lambda: self.there.on_piece(offset, data))

        async def nothing(offset: int, data: bytes) -> None:
            raise AssertionError

        self.here = TunnelEnd(credit=credit, longest=longest, piece=piece, taken=lambda offset: None)
        self.there = TunnelEnd(
            credit=credit,
            longest=longest,
            piece=nothing,
            taken=lambda offset: self.under_way.append(lambda: self.here.on_taken(offset)),
        )

    def deliver(self) -> None:
        while self.under_way:
            self.under_way.popleft()()


@given(st.lists(st.binary(max_size=300), max_size=10), st.integers(1, 200), st.integers(1, 100))
def test_bytes_arrive_in_order_and_never_more_than_there_is_room_for(
    texts: list[bytes], credit: int, longest: int
) -> None:
    async def main() -> None:
        wire = Wire(credit, longest)
        got = b""
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for text in texts:
                    await wire.here.send(text)

            nursery.start_soon(send)
            while len(got) < sum(map(len, texts)):
                await trio.testing.wait_all_tasks_blocked()
                assert sum(map(len, wire.pieces)) - len(got) <= credit
                wire.deliver()
                got += await wire.there.receive()
                wire.deliver()
        assert got == b"".join(texts)
        assert all(0 < len(piece) <= longest for piece in wire.pieces)

    trio.run(main)


async def test_tiny_pieces_are_counted_too(autojump_clock):
    wire = Wire(credit=10_000)
    with trio.move_on_after(1) as scope:
        for _ in range(MAX_PIECES + 1):
            await wire.here.send(b"x")
    assert scope.cancelled_caught
    assert len(wire.pieces) == MAX_PIECES


async def test_what_has_arrived_comes_before_the_end():
    wire = Wire()
    await wire.here.send(b"last")
    wire.deliver()
    wire.there.end(ValueError("broke"))
    wire.there.end()
    assert await wire.there.receive() == b"last"
    for _ in range(2):
        with pytest.raises(ValueError, match="broke"):
            await wire.there.receive()
    await wire.there.send(b"into the void")


async def test_an_end_without_an_error_is_no_bytes():
    wire = Wire()
    wire.there.end()
    assert await wire.there.receive() == b""


async def test_the_end_lets_a_sender_go(autojump_clock):
    wire = Wire(credit=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.here.send, b"many")
        await trio.testing.wait_all_tasks_blocked()
        wire.here.end()


@pytest.mark.parametrize(
    "break_it",
    [
        lambda wire: wire.there.on_piece(1, b"x"),
        lambda wire: wire.there.on_piece(0, b""),
        lambda wire: wire.there.on_piece(0, b"x" * 101),
        lambda wire: wire.there.on_taken(1),
    ],
)
async def test_what_breaks_the_rules_is_told(break_it):
    with pytest.raises(TunnelBroken):
        break_it(Wire())
