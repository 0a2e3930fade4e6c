"""How much this machine has to give, and how much of it is given away."""

import os
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path

from ..domain.slots import Slots


def measure(meminfo: Path = Path("/proc/meminfo")) -> Slots:
    """What the machine has: ``cpu`` in processors that we may run on, ``mem`` in bytes."""
    for line in meminfo.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "MemTotal":
            kibibytes = int(rest.split()[0])
            break
    else:
        raise OSError(f"{meminfo} does not tell MemTotal")
    return Slots({"cpu": Decimal(len(os.sched_getaffinity(0))), "mem": Decimal(kibibytes * 1024)})


def offered(machine: Slots, *, cpu_overcommit: float, reserved_mem: int) -> Slots:
    """What kernels may have of *machine*: processors times *cpu_overcommit*, all but *reserved_mem* bytes."""
    return Slots(
        {
            "cpu": machine.amount("cpu") * Decimal(str(cpu_overcommit)),
            "mem": max(machine.amount("mem") - Decimal(reserved_mem), Decimal(0)),
        }
    )


def occupied(kernels: Iterable[Mapping[str, str]]) -> Slots:
    """The sum of the slots (amounts as text) of *kernels*."""
    total = Slots()
    for slots in kernels:
        total += Slots.parse(slots)
    return total
