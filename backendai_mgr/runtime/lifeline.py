"""Two pipes between `up` and each of its children: the lifeline downwards, the ready pipe upwards.

The *lifeline* stays open as long as the parent lives. Its end of file says that the parent is gone: the child
stops as at SIGTERM, within a deadline, and leaves kernels alone. The byte ``E`` says: end everything first.
The *ready pipe* carries one JSON object, once, when the child serves.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, Literal, Self

import attrs
import trio

END = b"E"
#: A child whose parent is gone has so many seconds to stop.
ORPHAN_DEADLINE = 3.0
#: The longest message on a ready pipe; it fits into a pipe's buffer, so writing never waits.
_LONGEST_MESSAGE = 4096


async def watch_lifeline(fd: int) -> Literal["eof", "end"]:
    """Wait for the parent's word on the lifeline's read end, which is closed afterwards."""
    os.set_inheritable(fd, False)
    async with trio.lowlevel.FdStream(fd) as stream:
        async for chunk in stream:
            if END in chunk:
                return "end"
    return "eof"


def report_ready(fd: int, message: Mapping[str, Any]) -> None:
    """Tell the parent that this child serves, and close the pipe. A parent that has gone does not matter."""
    line = json.dumps(message).encode() + b"\n"
    if len(line) > _LONGEST_MESSAGE:
        raise ValueError("the message does not fit")
    try:
        os.write(fd, line)
    except BrokenPipeError:
        pass
    finally:
        os.close(fd)


async def read_ready(fd: int) -> Mapping[str, Any] | None:
    """The child's message from the ready pipe's read end, which is closed; None when it ended without one."""
    async with trio.lowlevel.FdStream(fd) as stream:
        data = b""
        while not data.endswith(b"\n"):
            chunk = await stream.receive_some()
            if not chunk:
                return None
            data += chunk
    message: Mapping[str, Any] = json.loads(data)
    return message


@attrs.define
class Lifeline:
    """The parent's end of a child's lifeline. Closing it, or dying, lets the child see the end of file."""

    _write: int
    #: The child's end, to be inherited by it and closed here once it runs; -1 afterwards.
    child_fd: int

    @classmethod
    def open(cls) -> Self:
        read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(read, True)
        return cls(write, read)

    def close_child_end(self) -> None:
        """Close our copy of the child's end, after the child has started."""
        if self.child_fd >= 0:
            os.close(self.child_fd)
            self.child_fd = -1

    def end(self) -> None:
        """Ask the child to end everything. A child that has gone needs no telling."""
        if self._write >= 0:
            try:
                os.write(self._write, END)
            except (BrokenPipeError, BlockingIOError):
                return

    def close(self) -> None:
        """Let the child see the end of file."""
        self.close_child_end()
        if self._write >= 0:
            os.close(self._write)
            self._write = -1
