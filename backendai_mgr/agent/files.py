"""Files and logs of kernels as the link server asks for them: the disk's work, in a few threads."""

import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import attrs
import trio

from ..domain.status import KernelState
from ..wire.files import Condition, FilePiece, Listing, LogPiece, LogPlace, Written
from ..wire.rpc import AgentRefusal
from .kernel import Kernel
from .kernellog import read_log
from .workchanges import WorkChanges

#: The largest file that may be uploaded, unless the agent is told another size.
UPLOAD_SIZE = 1 << 30
#: Threads that wait for the disk at the same time, for all kernels.
_THREADS = 8
_LOCKS = 64

T = TypeVar("T")


class FileAccess:
    """The bounds that all kernels share."""

    def __init__(self, upload_size: int) -> None:
        self.upload_size = upload_size
        #: Of changes in a kernel's files; few for all kernels, of which some share one.
        self._locks = tuple(threading.Lock() for _ in range(_LOCKS))
        self._threads = trio.CapacityLimiter(_THREADS)

    def of(self, kernel: Kernel) -> "KernelFiles":
        return KernelFiles(self, kernel)

    def folder_of(self, kernel: Kernel) -> WorkChanges:
        return WorkChanges(kernel.scratch.work, self._locks[kernel.spec.kernel_id.int % _LOCKS])

    async def run(self, work: Callable[[], T]) -> T:
        """Do *work* in a thread. A caller that is cancelled leaves it to its end."""
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._threads)


@attrs.frozen
class KernelFiles:
    """One kernel's files (`handler.Files`). Refusals are `AgentRefusal`."""

    _access: FileAccess
    _kernel: Kernel

    async def list(self, path: str) -> Listing:
        return await self._access.run(partial(self._folder.list, path))

    async def read(self, path: str, offset: int, max_bytes: int) -> FilePiece:
        return await self._access.run(partial(self._folder.read, path, offset, max_bytes))

    async def write(
        self,
        path: str,
        upload: str,
        offset: int,
        data: bytes,
        *,
        final: bool,
        condition: Condition | None = None,
    ) -> Written | None:
        most = self._access.upload_size
        write = partial(self._folder.write, final=final, most=most, condition=condition)
        return await self._change(partial(write, path, upload, offset, data))

    async def drop(self, path: str, upload: str) -> None:
        await self._access.run(partial(self._folder.drop, path, upload))

    async def patch(
        self, path: str, offset: int | None, data: bytes, *, condition: Condition | None
    ) -> Written:
        most = self._access.upload_size
        return await self._change(
            partial(self._folder.patch, path, offset, data, most=most, condition=condition)
        )

    async def move(self, path: str, to: str, *, replace: bool, condition: Condition | None) -> Written:
        return await self._change(partial(self._folder.move, path, to, replace=replace, condition=condition))

    async def remove(self, path: str, *, recursive: bool, condition: Condition | None) -> bool:
        return await self._change(
            partial(self._folder.remove, path, recursive=recursive, condition=condition)
        )

    async def archive(self, path: str, max_bytes: int) -> bytes:
        return await self._access.run(partial(self._folder.archive, path, max_bytes))

    async def log(self, before: LogPlace | None, max_bytes: int) -> LogPiece:
        runs = await self._kernel.runs.list()
        return await self._access.run(partial(read_log, self._kernel.scratch, runs, before, max_bytes))

    async def _change(self, work: Callable[[], T]) -> T:
        if self._kernel.state is KernelState.ENDED:
            raise AgentRefusal("kernel-ended", "the kernel has ended")
        return await self._access.run(work)

    @property
    def _folder(self) -> WorkChanges:
        return self._access.folder_of(self._kernel)
