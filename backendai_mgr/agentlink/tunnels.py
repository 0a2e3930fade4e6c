"""The manager's side of ``TUNNEL``: connections to services inside of kernels.

A tunnel does not outlive the connection to its agent: bytes may have been lost with that.
"""

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import trio

from ..runtime.tunnel import TunnelBroken, TunnelEnd
from ..wire import link
from ..wire.callosum import AgentError
from ..wire.rpc import AgentRefusal, AgentUnreachable
from .feed import TrySend

#: Seconds for the agent to connect to a service.
DIAL_TIMEOUT = 20.0

Send = Callable[[Sequence[bytes]], Awaitable[None]]


class Tunnel:
    """One connection to a service. Made by `Tunnels.dial`."""

    def __init__(self, tunnels: "Tunnels", sid: int) -> None:
        self.sid = sid
        self.dialled = trio.Event()
        self._tunnels = tunnels
        self._end = TunnelEnd(
            credit=link.TUNNEL_CREDIT,
            longest=link.MAX_PIECE,
            piece=lambda offset, data: tunnels.send(link.Piece(sid=sid, offset=offset, data=data)),
            taken=lambda offset: tunnels.say(link.Taken(sid=sid, offset=offset)),
        )
        #: Why it ended before it was there.
        self._failure: Exception | None = None

    async def send(self, data: bytes) -> None:
        """Send all of it, as fast as the service reads; what comes after its end goes nowhere."""
        await self._end.send(data)

    async def receive(self) -> bytes:
        """The next bytes; none when the service has hung up. Raises what links raise."""
        return await self._end.receive()

    async def wait_dialled(self) -> None:
        """Until the service is connected to. Raises what links raise."""
        with trio.move_on_after(DIAL_TIMEOUT) as scope:
            await self.dialled.wait()
        if scope.cancelled_caught:
            raise AgentUnreachable(f"no connection to the service within {DIAL_TIMEOUT:g} s")
        if self._failure is not None:
            raise self._failure

    # -- told by `Tunnels`

    def on_message(self, message: link.Dialled | link.Piece | link.Taken | link.Hangup) -> None:
        try:
            match message:
                case link.Dialled():
                    self.dialled.set()
                case link.Piece(offset=offset, data=data):
                    self._end.on_piece(offset, data)
                case link.Taken(offset=offset):
                    self._end.on_taken(offset)
                case link.Hangup():
                    self.end(_failure(message))
        except TunnelBroken as error:
            self._tunnels.hang_up(self)
            self.end(AgentError(f"the connection to the service broke: {error}"))

    def end(self, error: Exception | None) -> None:
        """It is gone; with *error*, if its user shall know why."""
        if not self.dialled.is_set():
            self._failure = error or AgentError("the agent hung up")
            self.dialled.set()
        self._end.end(error)

    def alive(self) -> None:
        if self.dialled.is_set():
            self._end.alive()


class Tunnels:
    """The tunnels of one connection to an agent."""

    def __init__(self, send: Send, try_send: TrySend) -> None:
        self._send = send
        self._try_send = try_send
        self._by_sid: dict[int, Tunnel] = {}
        self._last_sid = 0

    async def dial(self, kernel_id: UUID, port: int) -> Tunnel:
        """Have the agent connect; `hang_up` must be called in the end."""
        self._last_sid += 1
        tunnel = self._by_sid[self._last_sid] = Tunnel(self, self._last_sid)
        try:
            await self.send(link.Dial(sid=tunnel.sid, kernel_id=kernel_id, port=port))
            await tunnel.wait_dialled()
        except BaseException:
            self.hang_up(tunnel)
            raise
        return tunnel

    def hang_up(self, tunnel: Tunnel) -> None:
        """Its user has left."""
        if self._by_sid.pop(tunnel.sid, None) is not None:
            self.say(link.Hangup(sid=tunnel.sid, code=link.CLOSED))

    async def send(self, message: link.LinkMessage) -> None:
        await self._send(link.encode(message))

    def say(self, message: link.LinkMessage) -> None:
        """Send if there is a connection; without one the tunnel ends anyway."""
        self._try_send(link.encode(message))

    # -- told by the connection

    def on_message(self, message: link.Dialled | link.Piece | link.Taken | link.Hangup) -> None:
        """Hand the message to its tunnel; whoever speaks of an unknown one is told."""
        tunnel = self._by_sid.get(message.sid)
        if tunnel is None:
            if not isinstance(message, link.Hangup):
                self.say(link.Hangup(sid=message.sid, code=link.CLOSED))
            return
        if isinstance(message, link.Hangup):
            del self._by_sid[message.sid]
        tunnel.on_message(message)

    def tick(self) -> None:
        """Say that the tunnels are used."""
        for tunnel in self._by_sid.values():
            tunnel.alive()

    def abort(self, error: Callable[[], AgentUnreachable]) -> None:
        """The connection has broken or ended, and bytes were lost."""
        tunnels, self._by_sid = self._by_sid, {}
        for tunnel in tunnels.values():
            tunnel.end(error())


def _failure(message: link.Hangup) -> Exception | None:
    """What its user is told; None for an ordinary end."""
    if message.code == link.CLOSED:
        return None
    if message.code in (link.BROKEN, link.NO_SUCH_STREAM):
        return AgentError(message.message or "the connection to the service broke")
    return AgentRefusal(message.code, message.message)
