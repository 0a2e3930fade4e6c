"""One DEALER to one agent's address: calls and their answers, and what feed and streams share."""

import logging
import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import trio

from ..runtime.curve import CurveClient
from ..runtime.loglimit import LogLimit
from ..runtime.supervise import Backoff
from ..runtime.zmqsocket import Context, Dealer, HandshakeFailed
from ..wire import callosum, link
from ..wire.callosum import AgentError, FrameError, Kind, Message
from ..wire.rpc import AgentRefusal, AgentUnreachable
from .feed import Feeds
from .keys import NotDialled
from .streams import Streams
from .tunnels import Tunnels

log = logging.getLogger(__name__)

#: An address that refused us, or could not even be dialled, is tried again after so many seconds, at first
#: and at most.
_FIRST_REDIAL = 0.2
_REDIAL = 5.0
#: For an agent that has been away for longer than a restart takes a call waits so long: a few dials.
_AWAY_PATIENCE = 2.0
_PING = (callosum.PING, b"", b"")


class _Pending:
    """A call that waits for its answer."""

    def __init__(self) -> None:
        self.done = trio.Event()
        #: It has left: its answer can only come on the connection on which it did.
        self.sent = False
        self.answer: Message | None = None


class Connection:
    """Runs as a task of its owner (`run`); everything else may be called from any task, also after its end.

    ``keys`` is asked at each dialling and may raise `NotDialled`. ``interval`` is the agents' report
    interval, ``silence`` how long a stream's reader waits for a sign of life, ``restart`` how long an agent
    may take to come back; all in seconds.
    """

    def __init__(
        self,
        addr: str,
        *,
        keys: Callable[[], Awaitable[CurveClient | None]],
        interval: float,
        silence: float,
        restart: float,
    ) -> None:
        self.addr = addr
        self.last_heard = -math.inf
        #: Why there is no connection, where more is known than that nobody answers.
        self.trouble: str | None = None
        self._keys = keys
        self.streams = Streams(self._try_send)
        self.feeds = Feeds(self._try_send, interval=interval)
        self.tunnels = Tunnels(self.send, self._try_send)
        self._interval = interval
        self.silence = silence
        self._restart = restart
        #: Since when nothing answers at the address.
        self._away_since = trio.current_time()
        self._dealer: Dealer | None = None
        self._pending: dict[callosum.Key, _Pending] = {}
        self._seq = 0
        self._ready = trio.Event()
        self._users = 0
        self._retired = False
        #: Why calls are in vain at the moment.
        self._in_vain: str | None = None
        self.ended = False
        self._scope = trio.CancelScope()
        self._complaints = LogLimit()

    # ------------------------------------------------------------ life

    async def run(self, context: Context) -> None:
        """Serve the connection until it is retired or cancelled.

        Where nobody answers libzmq dials on; whoever refused us is dialled anew, for keys may have changed.
        """
        backoff = Backoff(first=_FIRST_REDIAL, longest=_REDIAL)
        try:
            with self._scope:
                while True:
                    began = trio.current_time()
                    self.trouble = await self._serve(context)
                    held = self._complaints.admit(self.trouble, trio.current_time())
                    if held is not None:
                        log.warning("agent at %s: %s (%d more before)", self.addr, self.trouble, held)
                    self._give_up(self.trouble)
                    if self._ready.is_set():
                        self._away_since = trio.current_time()
                    await trio.sleep(backoff.after(trio.current_time() - began))
                    self._in_vain, self._ready = None, trio.Event()
        finally:
            self.ended = True
            self._give_up("the link is closed")
            self.feeds.abort(self._unreachable)

    async def _serve(self, context: Context) -> str:
        """One socket's life; returns, with the reason, when it serves no longer."""
        refusal = ""
        try:
            curve = await self._keys()
            async with context.dealer(self.addr, curve=curve) as dealer, trio.open_nursery() as nursery:
                self._dealer = dealer

                async def watch() -> None:
                    nonlocal refusal
                    try:
                        await self._watch_breaks(dealer, nursery)
                    except HandshakeFailed as error:
                        refusal = f"no connection comes about: {error}"
                        nursery.cancel_scope.cancel()

                try:
                    nursery.start_soon(self._keep_alive)
                    nursery.start_soon(watch)
                    await dealer.send(_PING)
                    await self._receive(dealer)
                finally:
                    self._dealer = None
        except (OSError, NotDialled) as error:  # not an address, no socket left, no key
            return str(error)
        return refusal

    def _give_up(self, trouble: str) -> None:
        """Let everybody who waits for the agent know that it is in vain. Feeds may wait: it may come."""
        self._in_vain = trouble
        self._ready.set()
        for pending in self._pending.values():
            pending.done.set()
        self.streams.abort(self._unreachable)
        self.tunnels.abort(self._unreachable)

    def retire(self) -> None:
        """End as soon as nobody uses the connection."""
        self._retired = True
        self._end_if_unused()

    def revive(self) -> None:
        """Take `retire` back."""
        self._retired = False

    @contextmanager
    def used(self) -> Iterator[None]:
        """While inside, the connection does not end by being retired."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._end_if_unused()

    def _end_if_unused(self) -> None:
        if self._retired and not self._users:
            self.ended = True
            self._scope.cancel()

    # ------------------------------------------------------------ calls

    async def ready(self, *, timeout: float) -> None:
        """Wait until the agent has answered a PING; `AgentUnreachable` when it does not in time.

        One that has been away for too long gets less time than *timeout* seconds.
        """
        back_by = self._away_since + self._restart - trio.current_time()
        timeout = min(timeout, max(back_by, _AWAY_PATIENCE))
        with trio.move_on_after(timeout) as scope:
            await self._ready.wait()
        if scope.cancelled_caught:
            raise AgentUnreachable(f"{self.addr}: no answer to PING within {timeout:g} s")
        if self._in_vain is not None:
            raise self._unreachable()

    async def call(self, method: str, arguments: dict[str, Any], *, timeout: float) -> Any:
        """The result of the agent's method, within *timeout* seconds.

        `AgentRefusal`, `AgentError` and `AgentUnreachable` as `services.agentports.AgentLink` says. A call
        that is cancelled or late is called off at the agent, too.
        """
        self._seq += 1
        try:
            request = callosum.function(method, self._seq, arguments)
            frames = callosum.encode(request)
        except FrameError as error:
            raise AgentRefusal("bad-request", str(error)) from error
        try:
            with self.used(), trio.fail_after(timeout):
                await self.ready(timeout=timeout)
                return _result(await self._exchange(request, frames))
        except trio.TooSlowError:
            raise AgentUnreachable(f"{self.addr}: no answer to {method} within {timeout:g} s") from None

    async def _exchange(self, request: Message, frames: Sequence[bytes]) -> Message:
        pending = self._pending[request.key] = _Pending()
        try:
            await self.send(frames)
            pending.sent = True
            await pending.done.wait()
        finally:
            del self._pending[request.key]
            if pending.answer is None:
                self._try_send(callosum.encode(callosum.cancel(request)))
        if pending.answer is None:
            raise self._unreachable("the connection broke")
        return pending.answer

    # ------------------------------------------------------------ frames

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send, waiting for a connection if there is none; `AgentUnreachable` after the end."""
        try:
            if self._dealer is None:
                raise self._unreachable()
            await self._dealer.send(frames)
        except trio.ClosedResourceError:
            raise self._unreachable() from None

    def _try_send(self, frames: Sequence[bytes]) -> bool:
        """Send if that is possible at once."""
        try:
            if self._dealer is not None:
                self._dealer.send_nowait(frames)
                return True
        except (trio.WouldBlock, trio.ClosedResourceError):
            pass
        return False

    async def _keep_alive(self) -> None:
        """Greet until the agent has answered, then look after feed and streams, every interval."""
        while True:
            await trio.sleep(self._interval)
            if not self._ready.is_set() or self.streams.any_open:
                self._try_send(_PING)
            now = trio.current_time()
            self.feeds.tick(now)
            self.streams.tick(now, heard=self.last_heard, silence=self.silence, lost=self._unreachable)
            self.tunnels.tick()

    async def _watch_breaks(self, dealer: Dealer, nursery: trio.Nursery) -> None:
        """Let the calls under way fail as soon as the connection breaks: the agent died, or answers in vain.

        That needs no word of a new boot, which a worker without a feed would not get. The next connection is
        greeted, so that a feed is asked for at once.
        """
        while True:
            await dealer.broken()
            for pending in self._pending.values():
                if pending.sent:
                    pending.done.set()
            if self._ready.is_set():
                self._ready, self._away_since = trio.Event(), trio.current_time()
            self.feeds.on_break()
            self.tunnels.abort(partial(self._unreachable, "the connection broke"))
            nursery.start_soon(dealer.send, _PING)  # waits for that connection, which may be refused

    async def _receive(self, dealer: Dealer) -> None:
        while True:
            frames = await dealer.recv()
            self.last_heard = trio.current_time()
            try:
                self._dispatch(frames)
            except FrameError as error:
                held = self._complaints.admit(self.addr, self.last_heard)
                if held is not None:
                    log.warning("agent at %s: dropped a message: %s (%d more before)", self.addr, error, held)

    def _dispatch(self, frames: Sequence[bytes]) -> None:
        match frames:
            case [callosum.PONG, _, _]:
                self.trouble = None
                self._ready.set()
                self.feeds.on_pong()
            case [callosum.UPPER, *_]:
                self._answer(callosum.decode(frames))
            case [link.EVENTS | link.STREAM | link.TUNNEL, *_]:
                self._link_message(link.decode(frames))
            case _:
                raise FrameError(f"{len(frames)} frames of no known type")

    def _link_message(self, message: link.LinkMessage) -> None:
        match message:
            case link.Reported():
                self.feeds.on_report(message.report)
            case link.Refused():
                self.feeds.on_refused(message.epoch)
            case link.Data() | link.End() | link.Failed():
                self.streams.on_message(message)
            case link.Dialled() | link.Piece() | link.Taken() | link.Hangup():
                self.tunnels.on_message(message)
            case _:
                raise FrameError(f"{message.op} is not for a manager")

    def _answer(self, reply: Message) -> None:
        if reply.kind in (Kind.FUNCTION, Kind.CANCEL, Kind.NULL):
            raise FrameError(f"a {reply.kind.name} is not for a manager")
        pending = self._pending.get(reply.key)
        if pending is not None:  # else its caller has left
            pending.answer = reply
            pending.done.set()

    def _unreachable(self, otherwise: str = "no sign of life") -> AgentUnreachable:
        return AgentUnreachable(f"{self.addr}: {self._in_vain or otherwise}")


def _result(reply: Message) -> Any:
    """The value of a reply, or the exception that it tells of."""
    if reply.kind is Kind.RESULT:
        try:
            return callosum.value(reply)
        except FrameError as error:
            raise AgentError(f"{reply.method}: {error}") from error
    name, text = callosum.explanation(reply)
    if reply.kind is Kind.FAILURE and name == AgentRefusal.__name__:
        raise AgentRefusal.parse(text)
    raise AgentError(f"{reply.method}: {name or reply.kind.name}: {text}")
