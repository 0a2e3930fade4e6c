"""The agent's side of ``TUNNEL``: a task per connection to a service, which carries its bytes both ways."""

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID

import trio

from ..runtime.tunnel import TunnelBroken, TunnelEnd
from ..runtime.zmqsocket import PeerGone
from ..wire import link
from ..wire.rpc import AgentRefusal
from .handler import Handler
from .linkreports import Send
from .shimsocket import NobodyListens

log = logging.getLogger(__name__)

#: Tunnels of all kernels, and of one of them.
MAX_TUNNELS = 1024
MAX_OF_KERNEL = 256

_Key = tuple[bytes, int]


class Tunnels:
    """The tunnels of all peers. One about which its peer says nothing for ``peer_timeout`` seconds ends."""

    def __init__(self, handler: Handler, send: Send, nursery: trio.Nursery, *, peer_timeout: float) -> None:
        self.handler = handler
        self.peer_timeout = peer_timeout
        self._send = send
        self._nursery = nursery
        self._tunnels: dict[_Key, _Tunnel] = {}

    def on_message(self, peer: bytes, message: link.Dial | link.Piece | link.Taken | link.Hangup) -> None:
        """Open, feed or end a tunnel."""
        tunnel = self._tunnels.get((peer, message.sid))
        match message:
            case link.Dial():
                self._dial(peer, message, tunnel)
            case link.Hangup() if tunnel is not None:
                tunnel.scope.cancel()
            case link.Piece() | link.Taken() if tunnel is not None:
                tunnel.on_message(message)
            case link.Piece() | link.Taken():
                self.hang_up(peer, message.sid, link.NO_SUCH_STREAM)

    def _dial(self, peer: bytes, message: link.Dial, present: "_Tunnel | None") -> None:
        if present is not None:
            log.warning("a tunnel was dialled twice")
        elif len(self._tunnels) >= MAX_TUNNELS or self._count(message.kernel_id) >= MAX_OF_KERNEL:
            self.hang_up(peer, message.sid, link.BROKEN, "too many connections to services")
        else:
            tunnel = self._tunnels[peer, message.sid] = _Tunnel(self, peer, message)
            self._nursery.start_soon(self._serve, tunnel)

    def _count(self, kernel_id: UUID) -> int:
        return sum(tunnel.spec.kernel_id == kernel_id for tunnel in self._tunnels.values())

    async def _serve(self, tunnel: "_Tunnel") -> None:
        code, words = link.CLOSED, ""
        try:
            with tunnel.scope:
                await tunnel.run()
        except NobodyListens:
            code = link.CONNECTION_REFUSED
        except AgentRefusal as refusal:
            code, words = refusal.code, refusal.message
        except (TunnelBroken, OSError) as error:
            code, words = link.BROKEN, str(error)
        except PeerGone as error:
            log.debug("a tunnel's peer is gone: %s", error)
        except Exception as error:  # a bug in one tunnel must not end the kernels' only connection
            log.exception("a tunnel broke", extra={"kernel": str(tunnel.spec.kernel_id)})
            code, words = link.BROKEN, f"{type(error).__name__}: {error}"
        finally:
            del self._tunnels[tunnel.peer, tunnel.sid]
        self.hang_up(tunnel.peer, tunnel.sid, code, words)

    def send(self, peer: bytes, message: link.LinkMessage) -> None:
        """Send, or raise `PeerGone`."""
        self._send(peer, link.encode(message))

    def hang_up(self, peer: bytes, sid: int, code: str, message: str = "") -> None:
        try:
            self.send(peer, link.Hangup(sid=sid, code=code, message=message))
        except PeerGone as error:
            log.debug("a tunnel's peer is gone: %s", error)


class _Tunnel:
    """One tunnel; its task runs `run` within ``scope``."""

    def __init__(self, tunnels: Tunnels, peer: bytes, spec: link.Dial) -> None:
        self.peer = peer
        self.sid = spec.sid
        self.spec = spec
        self.scope = trio.CancelScope()
        self._tunnels = tunnels
        self._heard = trio.current_time()
        self._end = TunnelEnd(
            credit=link.TUNNEL_CREDIT, longest=link.MAX_PIECE, piece=self._send_piece, taken=self._send_taken
        )

    def on_message(self, message: link.Piece | link.Taken) -> None:
        self._heard = trio.current_time()
        try:
            match message:
                case link.Piece(offset=offset, data=data):
                    self._end.on_piece(offset, data)
                case link.Taken(offset=offset):
                    self._end.on_taken(offset)
        except TunnelBroken as error:
            self._end.end(error)

    async def run(self) -> None:
        """Connect, and carry bytes until the service or its user hangs up."""
        stream = await self._tunnels.handler.connect(self.spec.kernel_id, self.spec.port)
        error: Exception | None = None
        async with stream:
            self._tunnels.send(self.peer, link.Dialled(sid=self.sid))
            async with trio.open_nursery() as nursery:

                async def carry(what: Callable[[], Awaitable[None]]) -> None:
                    nonlocal error
                    try:
                        await what()
                    except (TunnelBroken, PeerGone) as caught:
                        error = caught
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        pass  # the service has hung up hard
                    nursery.cancel_scope.cancel()

                nursery.start_soon(carry, partial(self._from_service, stream))
                nursery.start_soon(carry, partial(self._to_service, stream))
                nursery.start_soon(carry, self._watch_peer)
        if error is not None:
            raise error

    async def _from_service(self, stream: trio.SocketStream) -> None:
        while data := await stream.receive_some(link.MAX_PIECE):
            await self._end.send(data)

    async def _to_service(self, stream: trio.SocketStream) -> None:
        while data := await self._end.receive():
            await stream.send_all(data)

    async def _watch_peer(self) -> None:
        while True:
            until = self._heard + self._tunnels.peer_timeout
            if trio.current_time() >= until:
                return
            await trio.sleep_until(until)

    async def _send_piece(self, offset: int, data: bytes) -> None:
        self._tunnels.send(self.peer, link.Piece(sid=self.sid, offset=offset, data=data))
        await trio.lowlevel.checkpoint()

    def _send_taken(self, offset: int) -> None:
        self._tunnels.send(self.peer, link.Taken(sid=self.sid, offset=offset))
