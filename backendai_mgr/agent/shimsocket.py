"""Sockets of a kernel's own network, which its shim hands out."""

import json
import os
import socket
import struct
from pathlib import Path

import trio

from ..wire.rpc import AgentRefusal
from .shimlink import ShimGone, check_peer

#: Seconds for the shim to answer, and for a connection inside of one machine.
ANSWER_TIMEOUT = 10.0
CONNECT_TIMEOUT = 10.0
_LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


class NobodyListens(Exception):
    """Nothing inside of the kernel listens at the port."""


async def listens(shim: Path, pid: int, port: int) -> bool:
    """Whether something inside of the kernel listens at the port; it does not notice the question."""
    try:
        made = await _ask(shim, pid, port)
    except NobodyListens:
        return False
    made.close()
    return True


async def connect(shim: Path, pid: int, port: int) -> trio.SocketStream:
    """A connection to what listens at the port inside of the kernel whose shim serves *shim*.

    Raises `NobodyListens`, `AgentRefusal` kernel-ended or kernel-silent, and OSError.
    """
    made = trio.socket.from_stdlib_socket(await _ask(shim, pid, port))
    try:
        with trio.fail_after(CONNECT_TIMEOUT):
            await made.connect((_LOOPBACK[socket.AddressFamily(made.family)], port))
    except ConnectionRefusedError:  # it has stopped since
        made.close()
        raise NobodyListens from None
    except trio.TooSlowError:
        made.close()
        raise TimeoutError(f"no answer within {CONNECT_TIMEOUT:g} s") from None
    except BaseException:
        made.close()
        raise
    return trio.SocketStream(made)


async def _ask(shim: Path, pid: int, port: int) -> socket.socket:
    """The socket, in the kernel's network and not connected."""
    body = json.dumps({"id": 1, "op": "socket", "port": port}).encode()
    try:
        with trio.fail_after(ANSWER_TIMEOUT):
            async with await trio.open_unix_socket(str(shim)) as stream:
                check_peer(stream, shim, pid)
                await stream.send_all(struct.pack(">I", len(body)) + body)
                answer, descriptors = await _receive(stream.socket)
    except (ShimGone, OSError) as error:
        raise AgentRefusal("kernel-ended", "the kernel has ended") from error
    except trio.TooSlowError:
        raise AgentRefusal("kernel-silent", f"no answer within {ANSWER_TIMEOUT:g} s") from None
    match answer, descriptors:
        case {"ok": _}, [fd]:
            return socket.socket(fileno=fd)
        case {"error": {"code": "not-found"}}, []:
            raise NobodyListens
    for fd in descriptors:
        os.close(fd)
    raise AgentRefusal("kernel-ended", "the kernel gives no socket")


async def _receive(connection: "trio.socket.SocketType") -> tuple[object, list[int]]:
    """The one answer, and what came with it."""
    data, descriptors = b"", list[int]()
    try:
        while len(data) < 4 or len(data) < 4 + struct.unpack_from(">I", data)[0]:
            more, extra, _, _ = await connection.recvmsg(4096, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)
            for level, kind, content in extra:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    descriptors += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
            if not more:
                raise ShimGone("no answer")
            data += more
        return json.loads(data[4:]), descriptors
    except BaseException:
        for fd in descriptors:
            os.close(fd)
        raise
