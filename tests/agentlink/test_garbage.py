"""Whatever arrives at the agent's port, the next good call is answered."""

import logging
import random

import msgpack
import pytest
import trio

from backendai_mgr.runtime.zmqsocket import MAX_FRAME, open_context
from backendai_mgr.wire import callosum, link
from backendai_mgr.wire.call import to_wire
from backendai_mgr.wire.callosum import Kind
from tests.wire.test_calls import CALLS
from tests.wire.wrong import wrong_members

from .conftest import KERNEL

GOOD_CALLS = [call for call, _ in CALLS]
NOISE = random.Random(7).randbytes


async def good_call_works(link) -> None:
    with trio.fail_after(10):
        assert await link.list_runs(KERNEL) == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 64,
        b"\xff\0\0\0\0\0\0\0\x01\x7f",
        b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + bytes(48) + b"\xff" * 100,
        b"\x01\0\x05hello",
        NOISE(100_000),
        bytes(100_000),
    ],
    ids=lambda garbage: repr(garbage[:12]),
)
async def test_raw_bytes_on_the_port_change_nothing(link, endpoint, garbage):
    host, port = endpoint.removeprefix("tcp://").split(":")
    await good_call_works(link)
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        try:
            await stream.send_all(garbage)
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # hung up on already
        await good_call_works(link)
    await good_call_works(link)


def request(**changes) -> list[bytes]:
    header = {"type": 1, "meth": "list_runs", "okey": "", "seq": 1, "zip": False} | changes
    return [b"UPPER", msgpack.packb(header), msgpack.packb({"meta": b"", "body": None})]


MESSAGES = [
    [b""],
    [b"UPPER"],
    [b"UPPER", b"", b""],
    [b"UPPER", *[b"x"] * 8],
    [b"PING"],
    [b"PING", bytes(5000), b""],
    [b"PONG", b"", b""],
    [b"EVENTS"],
    [b"EVENTS", b"\xc1"],
    [b"EVENTS", msgpack.packb({"op": "subscribe", "epoch": "1", "owner": "w"})],
    link.encode(link.Refused(epoch=9)),
    [b"STREAM", b"", b""],
    [b"STREAM", msgpack.packb({"op": "open"})],
    link.encode(link.Data(sid=1, records=[], next=0)),
    [NOISE(20)],
    [NOISE(20), NOISE(20)],
    [NOISE(5) for _ in range(9)],
    [b""] * 500,
    request(type=9),
    request(type=0),
    request(type=2),
    request(type=5),
    request(seq=-1),
    request(okey=["x"]),
    [*request()[:2], b"\x91" * 5000],
    [*request()[:2], msgpack.packb({"meta": b"", "body": b"\xc1"})],
]


#: Bodies that promise more than they hold, or hide themselves deep: (the packed arguments).
BOMBS = {
    "an endless array": b"\xdd\xff\xff\xff\xff",
    "an endless map": b"\xdf\xff\xff\xff\xff",
    "endless bytes": b"\xc6\xff\xff\xff\xffx",
    "endless text": b"\xdb\xff\xff\xff\xffx",
    "an endless extension": b"\xc9\xff\xff\xff\xff\x01x",
    "arrays in arrays": b"\x91" * 100_000 + b"\xc0",
    "maps in maps": b"\x81\xa1a" * 100_000 + b"\xc0",
    "maps as names": b"\x81" * 100_000,
    "arrays as names": b"\x82\xa4args\x90\xa6kwargs\x81\x90\xc0",
    "a million nothings": b"\xdd\x00\x0f\x42\x40" + b"\xc0" * 1_000_000,
    "a million names": b"\x82\xa4args\x90\xa6kwargs\xdf\x00\x01\x86\xa0"
    + b"".join(b"\xa5%05d\xc0" % n for n in range(100_000)),
    "a time": b"\xd7\xff" + bytes(8),
    "a time that is none": b"\xc7\x0c\xff" + b"\xff" * 12,
    "the unused byte": b"\xc1",
    "text that is not UTF-8": b"\xa2\xff\xfe",
    "two values": b"\xc0\xc0",
    "nothing": b"",
    **{f"cut off after {n}": callosum.pack({"args": [], "kwargs": {"a": None}})[:n] for n in range(1, 17)},
}  # fmt: skip


async def answered(endpoint, frames) -> callosum.Message:
    """What the agent answers to these frames."""
    async with open_context() as context, context.dealer(endpoint) as dealer:
        with trio.fail_after(10):
            await dealer.send(frames)
            return callosum.decode(await dealer.recv())


@pytest.mark.parametrize("packed", BOMBS.values(), ids=BOMBS)
async def test_arguments_that_cannot_be_read_are_refused(link, endpoint, packed):
    frames = [*request()[:2], msgpack.packb({"meta": b"", "body": packed})]
    reply = await answered(endpoint, frames)
    assert (reply.kind, callosum.explanation(reply)[0]) == (Kind.FAILURE, "AgentRefusal")
    assert callosum.explanation(reply)[1].startswith("bad-request: ")
    await good_call_works(link)


@pytest.mark.parametrize("call", GOOD_CALLS, ids=lambda call: call.method)
async def test_wrong_arguments_are_refused(link, endpoint, agent, call):
    for name, arguments in wrong_members(type(call), to_wire(call)):
        if not all(isinstance(member, str) for member in arguments):
            continue
        reply = await answered(endpoint, callosum.encode(callosum.function(call.method, 1, arguments)))
        told = callosum.explanation(reply)
        assert (reply.kind, told[0]) == (Kind.FAILURE, "AgentRefusal"), name
        assert told[1].startswith("bad-request: "), name
        assert not agent.calls
    await good_call_works(link)


@pytest.mark.parametrize("frames", MESSAGES, ids=lambda frames: f"{len(frames)}x{b' '.join(frames)[:24]!r}")
async def test_wrong_messages_change_nothing(link, endpoint, frames):
    async with open_context() as context, context.dealer(endpoint) as dealer:
        await dealer.send(frames)
        await dealer.send([callosum.PING, b"after", b""])
        with trio.fail_after(10):
            while await dealer.recv() != [callosum.PONG, b"after", b""]:
                pass  # an answer to what was half right
    await good_call_works(link)


async def test_a_frame_over_the_limit_ends_its_connection_only(link, endpoint):
    async with open_context() as context, context.dealer(endpoint) as dealer:
        await dealer.send([b"UPPER", bytes(MAX_FRAME + 1)])
        await good_call_works(link)
        with trio.fail_after(10):  # its socket dials again
            while True:
                await dealer.send([callosum.PING, b"", b""])
                with trio.move_on_after(0.5):
                    assert await dealer.recv() == [callosum.PONG, b"", b""]
                    break


async def test_complaints_are_logged_once_per_peer(endpoint, caplog):
    with caplog.at_level(logging.WARNING):
        async with open_context() as context, context.dealer(endpoint) as dealer:
            for _ in range(100):
                await dealer.send([b"nonsense"])
            await dealer.send([callosum.PING, b"", b""])
            await dealer.recv()
    assert caplog.text.count("dropped a message") == 1


async def test_a_second_call_with_the_key_of_one_under_way_is_dropped(endpoint, agent):
    frames = callosum.encode(callosum.function("list_runs", 1, {"kernel_id": str(KERNEL)}))
    async with open_context() as context, context.dealer(endpoint) as dealer:
        with trio.fail_after(10):
            with agent.hold("list_runs"):
                await dealer.send(frames)
                await dealer.send(frames)
                await dealer.send([callosum.PING, b"", b""])
                assert (await dealer.recv())[0] == callosum.PONG
                await agent.until(lambda: agent.calls["list_runs"])
            assert callosum.decode(await dealer.recv()).kind is Kind.RESULT
            await dealer.send([callosum.PING, b"", b""])
            assert (await dealer.recv())[0] == callosum.PONG
    assert agent.calls["list_runs"] == 1
