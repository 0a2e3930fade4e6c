"""How kernels are kept from the machine and from each other here, and what of that cannot be had."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

import attrs

from ..wire.rpc import KernelSpec
from .accounts import Account, separate_accounts
from .cgroups import Cgroup, CgroupDriver, find_cgroups
from .images import Probe
from .sandbox import Sandbox, find_sandbox, rlimits, run_enclosed


@attrs.frozen(kw_only=True)
class KernelLimits:
    """What all kernels of an agent have in common. Sizes in bytes; ``processes`` counts threads too; after
    ``leash`` seconds without an agent a kernel ends."""

    network: bool = False
    processes: int = 512
    run_output: int = 64 << 20
    leash: float = 3600.0


@attrs.frozen(kw_only=True)
class Enclosure:
    """What is used of `sandbox` and `cgroups` here. Make it with `find_enclosure`."""

    sandbox: Sandbox | None
    cgroups: CgroupDriver | None
    limits: KernelLimits
    #: Capabilities that are missing, each with a sentence that says why and what follows.
    missing: Mapping[str, str]
    #: Names of this agent's control groups begin so.
    prefix: str

    def group(self, token: str) -> Cgroup | None:
        """The control group of a place, made if it is not there. Raises `CgroupError`."""
        return None if self.cgroups is None else self.cgroups.create(self.prefix + token)

    def probe(self, account: Account | None) -> Probe | None:
        """Runs commands as kernels of *account* do; None where they are plain processes."""
        if (sandbox := self.sandbox) is None:
            return None

        async def run(argv: Sequence[str], readable: Sequence[Path]) -> bytes | None:
            return await run_enclosed(sandbox, account, readable=readable, command=argv)

        return run

    async def sweep(self, tokens: frozenset[str]) -> None:
        """Remove what earlier agents left, but the groups of these places."""
        if self.cgroups is not None:
            await self.cgroups.sweep(self.prefix, frozenset(self.prefix + token for token in tokens))

    def bound(self, group: Cgroup | None, spec: KernelSpec) -> Mapping[str, int]:
        """Hold a kernel to what it was given; returns the rlimits that it has to set itself.

        Raises `CgroupError`.
        """
        memory = int(Decimal(spec.slots.get("mem", "0"))) or None
        if group is not None:
            cpu = float(Decimal(spec.slots.get("cpu", "0"))) or None
            group.set_limits(memory=memory, pids=self.limits.processes, cpu=cpu)
            return {"RLIMIT_CORE": 0}
        found = rlimits(memory or _unlimited(), self.limits.processes)
        if self.sandbox is None and not separate_accounts():
            del found["RLIMIT_NPROC"]  # it would count all that the agent's account has
        return found


def _unlimited() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


async def find_enclosure(
    data_dir: Path, account: Account | None, inside: Path, limits: KernelLimits, *, sandboxed: bool
) -> Enclosure:
    """Try what this machine lets us use. *inside* is the folder of what runs in kernels."""
    sandbox: Sandbox | str = "isolation is switched off by the agent's settings"
    if sandboxed:
        sandbox = await find_sandbox(account, readable=[inside])
    cgroups = find_cgroups() if os.geteuid() == 0 else "the agent is not root"
    missing: dict[str, str] = {}
    if isinstance(sandbox, str):
        shared = "" if separate_accounts() else " and act with the agent's own account"
        missing["isolation"] = (
            f"Kernels are plain processes: they see the machine's files and processes{shared} ({sandbox})."
        )
        missing["network"] = "Kernels share the machine's network."
    if isinstance(cgroups, str):
        missing["limits"] = (
            "Memory is limited for each process, not for a kernel as a whole, and processors are not"
            f" ({cgroups})."
        )
    elif "cpu" not in cgroups.limits:
        missing["limits"] = "Kernels are not held to the processors that they were given."
    return Enclosure(
        sandbox=None if isinstance(sandbox, str) else sandbox,
        cgroups=None if isinstance(cgroups, str) else cgroups,
        limits=limits,
        missing=missing,
        prefix=hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:8] + "-",
    )
