"""Files and logs of kernels as the link server asks for them: the disk's work, in a few threads."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import attrs
import trio

from ..domain.status import KernelState
from ..wire.files import FilePiece, Listing, LogPiece, LogPlace
from ..wire.rpc import AgentRefusal
from .kernel import Kernel
from .kernellog import read_log
from .workfolder import WorkFolder

#: The largest file that may be uploaded, unless the agent is told another size.
UPLOAD_SIZE = 1 << 30
#: Threads that wait for the disk at the same time, for all kernels.
_THREADS = 8

T = TypeVar("T")


class FileAccess:
    """The bounds that all kernels share."""

    def __init__(self, upload_size: int) -> None:
        self.upload_size = upload_size
        self._threads = trio.CapacityLimiter(_THREADS)

    def of(self, kernel: Kernel) -> "KernelFiles":
        return KernelFiles(self, kernel)

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

    async def write(self, path: str, upload: str, offset: int, data: bytes, *, final: bool) -> None:
        if self._kernel.state is KernelState.ENDED:
            raise AgentRefusal("kernel-ended", "the kernel has ended")
        most = self._access.upload_size
        write = partial(self._folder.write, path, upload, offset, data, final=final, most=most)
        await self._access.run(write)

    async def archive(self, path: str, max_bytes: int) -> bytes:
        return await self._access.run(partial(self._folder.archive, path, max_bytes))

    async def log(self, before: LogPlace | None, max_bytes: int) -> LogPiece:
        runs = await self._kernel.runs.list()
        return await self._access.run(partial(read_log, self._kernel.scratch, runs, before, max_bytes))

    @property
    def _folder(self) -> WorkFolder:
        return WorkFolder(self._kernel.scratch.work)
