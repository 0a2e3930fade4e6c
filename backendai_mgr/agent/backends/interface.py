"""What a back end does for the agent: it turns a specification into a running shim, and cleans up after it.

The agent speaks with every shim in the same way, whatever the kernel behind it is: plain processes, a
sandbox, a container, or a member of a pool that was made ready before anybody asked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

import attrs

from ...wire.reports import ImageReport
from ...wire.rpc import KernelSpec, RunSpec
from ..processes import Process
from ..scratch import Scratch
from ..services import Service


class StartFailed(Exception):
    """No kernel was started; the message says why, for the user. Nothing of it is left running."""


@attrs.frozen
class Shim:
    """A living shim: its process, which the receiver must close, and the socket that it serves."""

    process: Process
    socket: Path


class Backend(Protocol):
    """Starts kernels of one kind. Calls for different kernels may overlap, those for one kernel do not."""

    def images(self) -> Sequence[ImageReport]:
        """The images that it can start here."""

    def missing(self) -> Mapping[str, str]:
        """Capabilities that kernels lack here, each with a sentence that says what follows from it."""

    def lines(self, kernel: KernelSpec, run: RunSpec) -> RunSpec:
        """The batch run with what the kernel's image has for steps that are ``*``."""

    @property
    def shares_network(self) -> bool:
        """Whether kernels are in the machine's network, where each port can be only one's."""

    def services(self, spec: KernelSpec) -> Sequence[Service]:
        """What the kernel's image offers to those who connect."""

    def stats(self) -> Mapping[str, Any]:
        """Numbers for the agent's reports."""

    async def run(self) -> None:
        """Do what is not part of a call, until cancelled."""

    async def start(self, spec: KernelSpec) -> Shim:
        """Start the shim of a new kernel, and prepare its scratch folder; returns when its socket is served.

        Raises `StartFailed`. When it raises or is cancelled, nothing is left running.
        """

    async def adopt(self, spec: KernelSpec, scratch: Scratch) -> Shim | None:
        """The living shim that an earlier agent started for this kernel; None when there is none."""

    async def clear(self, spec: KernelSpec) -> None:
        """Kill whatever this kernel may have left running after its shim has gone."""

    def release(self, kernel_id: UUID) -> None:
        """The kernel's scratch folder is gone: what was set aside for it can be given to others."""
