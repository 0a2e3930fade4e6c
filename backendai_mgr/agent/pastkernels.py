"""The runs of kernels that are gone, for as long as they are kept."""

from collections import OrderedDict
from uuid import UUID

from ..wire.rpc import AgentRefusal
from .pastruns import PastRuns
from .runs import KernelRuns
from .scratch import KernelStore, ended_how

#: Of so many kernels it is remembered what was read last.
_OPEN = 64


class PastKernels:
    """Opens the runs of past kernels as they are asked for."""

    def __init__(self, store: KernelStore) -> None:
        self._store = store
        self._open: OrderedDict[UUID, KernelRuns] = OrderedDict()

    def runs(self, kernel_id: UUID) -> KernelRuns:
        """The kernel's runs. `AgentRefusal` no-such-kernel when none are kept."""
        folder = self._store.past(kernel_id)
        runs = self._open.pop(kernel_id, None)
        try:
            reason, ended_at = ended_how(folder)
        except FileNotFoundError:
            raise AgentRefusal("no-such-kernel", f"this agent has no kernel {kernel_id}") from None
        if runs is None:
            runs = KernelRuns(folder)
            runs.end(PastRuns(folder, reason, ended_at))
        self._open[kernel_id] = runs
        if len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return runs
