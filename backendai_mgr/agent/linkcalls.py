"""The agent's side of RPC: a task per call, bounded in number, cancelled when the caller says so."""

import logging
from typing import Any

import trio

from ..runtime.zmqsocket import PeerGone
from ..wire import callosum, calls, filecalls
from ..wire.call import MAX_OUTPUT, Call, from_wire, to_wire
from ..wire.callosum import FrameError, Kind, Message
from ..wire.link import merge, take
from ..wire.rpc import AgentRefusal, Output
from .handler import Chunk, Handler
from .linkreports import Fence, Send

log = logging.getLogger(__name__)

#: Calls under way at once. Those that mostly wait for a program are counted apart, lest they keep others out.
MAX_CALLS = 256
MAX_READS = 1024

_Key = tuple[bytes, callosum.Key]


class Calls:
    """Answers every FUNCTION exactly once: RESULT, FAILURE (refused), ERROR (broken) or CANCELLED."""

    def __init__(self, handler: Handler, fence: Fence, send: Send, nursery: trio.Nursery) -> None:
        self._handler = handler
        self._fence = fence
        self._send = send
        self._nursery = nursery
        self._scopes: dict[_Key, trio.CancelScope] = {}
        self._calls = trio.CapacityLimiter(MAX_CALLS)
        self._reads = trio.CapacityLimiter(MAX_READS)

    def on_message(self, peer: bytes, message: Message) -> None:
        """Start or cancel a call; `FrameError` for what a caller may not send."""
        key = (peer, message.key)
        if message.kind is Kind.CANCEL:
            if scope := self._scopes.get(key):
                scope.cancel()
            return
        if message.kind is not Kind.FUNCTION:
            raise FrameError(f"a {message.kind.name} that answers no call")
        if key in self._scopes:
            raise FrameError("a call with the key of one under way")
        limiter = self._reads if message.method in _READS else self._calls
        try:
            limiter.acquire_on_behalf_of_nowait(key)
        except trio.WouldBlock:
            self.refuse(peer, message, "Busy", f"{limiter.total_tokens} such calls are under way")
            return
        scope = self._scopes[key] = trio.CancelScope()
        self._nursery.start_soon(self._serve, peer, message, scope, limiter)

    def refuse(self, peer: bytes, request: Message, name: str, text: str) -> None:
        """Answer with an ERROR at once."""
        self._reply(peer, callosum.error(request, name, text))

    async def _serve(
        self, peer: bytes, request: Message, scope: trio.CancelScope, limiter: trio.CapacityLimiter
    ) -> None:
        key = (peer, request.key)
        reply = callosum.cancelled(request)
        try:
            with scope:
                reply = await self._answer(request)
        finally:
            del self._scopes[key]
            limiter.release_on_behalf_of(key)
        self._reply(peer, reply)

    async def _answer(self, request: Message) -> Message:
        try:
            return callosum.result(request, to_wire(await self._carry_out(_structured(request))))
        except AgentRefusal as refusal:
            return callosum.failure(request, "AgentRefusal", str(refusal))
        except _UnknownMethod as error:
            return callosum.error(request, "UnknownMethod", str(error))
        except Exception as error:  # a bug in one call must not end the kernels' only connection
            log.exception("call %s broke", request.method)
            return callosum.error(request, type(error).__name__, str(error))

    async def _carry_out(self, call: Call) -> Any:
        handler = self._handler
        match call:
            case calls.CreateKernel(spec=spec):
                kernel = await handler.create_kernel(spec)
                report = handler.make_report()
                return calls.Created(boot=report.boot, seq=report.seq, kernel=kernel)
            case calls.DestroyKernel(epoch=epoch):
                self._fence.check(epoch)
                await handler.destroy_kernel(call.kernel_id, call.incarnation, call.reason)
                return {"seq": handler.make_report().seq}
            case calls.StartRun():
                return await handler.start_run(call.kernel_id, call.run_id, call.order)
            case calls.GetRun():
                return await handler.get_run(call.kernel_id, call.run_id)
            case calls.ListRuns():
                return list(await handler.list_runs(call.kernel_id, limit=call.limit, after=call.after))
            case calls.DeleteRun():
                return await handler.delete_run(call.kernel_id, call.run_id)
            case calls.InterruptRun():
                return await handler.interrupt_run(call.kernel_id, call.run_id)
            case calls.AbandonRun():
                return await handler.abandon_run(call.kernel_id, call.run_id, call.after)
            case calls.AnswerRun():
                return await handler.answer_run(call.kernel_id, call.run_id, call.offset, call.text)
            case calls.TypeInput():
                return await handler.type_input(
                    call.kernel_id, call.run_id, call.writer, call.offset, call.data
                )
            case calls.ResizeTerminal():
                return await handler.resize_terminal(call.kernel_id, call.run_id, call.rows, call.columns)
            case calls.StartService():
                return await handler.start_service(
                    call.kernel_id, call.service, call.port, call.arguments, call.envs
                )
            case calls.ShutdownService():
                return await handler.shut_down_service(call.kernel_id, call.service)
            case calls.Complete():
                return list(await handler.complete(call.kernel_id, call.code, call.cursor))
            case calls.ReadOutput():
                chunk = await handler.read_output(
                    call.kernel_id, call.run_id, offset=call.offset, max_bytes=call.max_bytes, wait=call.wait
                )
                return _output(chunk)
            case calls.PollRun():
                if call.order is not None:
                    await handler.start_run(call.kernel_id, call.run_id, call.order)
                chunk = await handler.poll_run(
                    call.kernel_id, call.run_id, wait=call.wait, max_bytes=call.max_bytes
                )
                return _polled(chunk)
            case filecalls.FileCall() | filecalls.ReadLog():
                return await self._on_files(call)
            case calls.MakeReport(epoch=epoch):
                self._fence.check(epoch)
                return handler.make_report()
        raise _UnknownMethod(call.method)

    async def _on_files(self, call: filecalls.FileCall | filecalls.ReadLog) -> Any:
        files = self._handler.files(call.kernel_id)
        match call:
            case filecalls.ListFiles():
                return await files.list(call.path)
            case filecalls.ReadFile():
                return await files.read(call.path, call.offset, call.max_bytes)
            case filecalls.WriteFile():
                return await files.write(
                    call.path,
                    call.upload,
                    call.offset,
                    call.data,
                    final=call.final,
                    condition=call.condition,
                )
            case filecalls.DropUpload():
                return await files.drop(call.path, call.upload)
            case filecalls.PatchFile():
                return await files.patch(call.path, call.offset, call.data, condition=call.condition)
            case filecalls.MoveFile():
                return await files.move(call.path, call.to, replace=call.replace, condition=call.condition)
            case filecalls.RemoveFile():
                return await files.remove(call.path, recursive=call.recursive, condition=call.condition)
            case filecalls.ArchiveFile():
                return await files.archive(call.path, call.max_bytes)
            case filecalls.ReadLog():
                return await files.log(call.before, call.max_bytes)
        raise _UnknownMethod(call.method)

    def _reply(self, peer: bytes, reply: Message) -> None:
        try:
            frames = callosum.encode(reply)
        except FrameError as error:
            log.error("the answer to %s cannot travel: %s", reply.method, error)
            frames = callosum.encode(callosum.error(reply, "FrameError", str(error)))
        try:
            self._send(peer, frames)
        except PeerGone as error:
            log.debug("nobody takes the answer to %s: %s", reply.method, error)


class _UnknownMethod(Exception):
    pass


_READS = frozenset({calls.ReadOutput.method, calls.PollRun.method, calls.TypeInput.method})


def _structured(request: Message) -> Call:
    """The call with checked arguments; `AgentRefusal` bad-request when they are wrong."""
    kind = calls.CALLS.get(request.method)
    if kind is None:
        raise _UnknownMethod(request.method)
    try:
        positional, named = callosum.arguments(request)
        if positional:
            raise FrameError("arguments have names here")
        return from_wire(named, kind)
    except FrameError as error:
        raise AgentRefusal("bad-request", str(error)) from error


def _output(chunk: Chunk) -> Output:
    """As much of the chunk as an answer holds; the reader asks for the rest again."""
    records, rest = take(chunk.records, MAX_OUTPUT)
    return Output(
        records=[record.pack() for record in records],
        next_offset=rest[0].offset if rest else chunk.next_offset,
        run=chunk.run,
    )


def _polled(chunk: Chunk) -> Output:
    """The whole chunk, since its cursor has moved; merged, so that even tiny records fit into an answer."""
    return Output(
        records=[record.pack() for record in merge(chunk.records)],
        next_offset=chunk.next_offset,
        run=chunk.run,
    )
