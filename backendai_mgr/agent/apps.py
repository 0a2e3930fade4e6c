"""The services of an agent's kernels: started, waited for, ended, connected to.

A service is a run of its kernel (mode "service"): the shim keeps what it prints, and starts none twice.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from uuid import UUID
from weakref import WeakKeyDictionary

import attrs
import trio

from ..wire.calls import ServiceStarted
from ..wire.reports import ServicePort
from ..wire.rpc import SERVICE, AgentRefusal, KernelSpec, RunOrder, RunSpec, RunStatus
from .backends.interface import Backend
from .kernel import Kernel
from .portpool import NoPortLeft, PortPool
from .services import Service, ports_of, service_ports
from .shimsocket import connect, listens

#: Seconds for a service to listen, and between two looks whether it does: no event tells that.
START_TIMEOUT = 30.0
LOOK = 0.05
#: Bytes of its last words that are told when it does not start.
_LAST_WORDS = 2000


class Apps:
    """What is told and done about services; the kernels are the registry's."""

    def __init__(self, backend: Backend, numbers: range) -> None:
        self._backend = backend
        self._pool = PortPool(numbers, shared=backend.shares_network)
        self._turns: WeakKeyDictionary[Kernel, trio.Lock] = WeakKeyDictionary()

    def assign(self, spec: KernelSpec) -> KernelSpec:
        """The specification with public numbers for its ports. `AgentRefusal` create-failed."""
        services = self._backend.services(spec)
        # In a network that kernels share, what the user's programs listen at is public as it is.
        opened = spec.preopen_ports if self._backend.shares_network else ()
        ports = [port for port in ports_of(services, spec.preopen_ports) if port not in opened]
        try:
            numbers = self._pool.take(spec.kernel_id, ports)
            return attrs.evolve(spec, host_ports={str(port): port for port in opened} | numbers)
        except NoPortLeft as error:
            raise AgentRefusal("create-failed", str(error)) from error

    def keep(self, spec: KernelSpec) -> None:
        """A kernel of an earlier agent has the numbers that its specification says."""
        self._pool.keep(spec.kernel_id, spec.host_ports)

    def release(self, kernel_id: UUID) -> None:
        self._pool.give_back(kernel_id)

    def ports(self, spec: KernelSpec) -> list[ServicePort]:
        """What a kernel offers."""
        return service_ports(self._backend.services(spec), spec.preopen_ports, spec.host_ports)

    # -- of one kernel

    async def start(
        self,
        kernel: Kernel,
        name: str,
        port: int | None,
        arguments: Mapping[str, Sequence[str]],
        envs: Mapping[str, str],
    ) -> ServiceStarted:
        """Have the service run, and wait until it listens. Who listens at a port of the user's is theirs."""
        offered = self._offered(kernel, name)
        if port is not None and port not in offered.container_ports:
            raise AgentRefusal("no-such-port", f"{name} has no port {port}")
        inside = self._inside(kernel.spec, offered.container_ports[0] if port is None else port)
        service = self._service(kernel, name)
        if service is None:
            return ServiceStarted(port=inside, was_running=True)
        async with self._turns.setdefault(kernel, trio.Lock()):
            number, running = _latest(name, await kernel.runs.list())
            if not running:
                number += 1
                spec = RunSpec(mode="service", exec=service.line(inside, arguments, envs))
                await kernel.runs.start(_run_id(name, number), RunOrder.of(kernel.spec.incarnation, spec))
            await self._until_listening(kernel, _run_id(name, number), inside)
        return ServiceStarted(port=inside, was_running=running)

    async def shut_down(self, kernel: Kernel, name: str) -> None:
        """Ask the service to end, if it runs."""
        self._offered(kernel, name)
        number, running = _latest(name, await kernel.runs.list())
        if running:
            await kernel.runs.interrupt(_run_id(name, number))

    async def connect(self, kernel: Kernel, port: int) -> trio.SocketStream:
        """A connection to a port inside that the kernel offers. `NobodyListens`, `AgentRefusal`, OSError."""
        spec = kernel.spec
        if port not in (self._inside(spec, int(known)) for known in spec.host_ports):
            raise AgentRefusal("no-such-port", f"the kernel does not offer port {port}")
        return await connect(*_shim(kernel), port)

    # -- within

    def _offered(self, kernel: Kernel, name: str) -> ServicePort:
        for offered in self.ports(kernel.spec):
            if offered.name == name:
                return offered
        raise AgentRefusal("no-such-service", f"the kernel has no service {name}")

    def _service(self, kernel: Kernel, name: str) -> Service | None:
        """The image's service; None for a port that the user opens."""
        services = self._backend.services(kernel.spec)
        return next((service for service in services if service.name == name), None)

    def _inside(self, spec: KernelSpec, port: int) -> int:
        """Where it listens: in a network that kernels share each has its public number."""
        return spec.host_ports[str(port)] if self._backend.shares_network else port

    async def _until_listening(self, kernel: Kernel, run_id: str, port: int) -> None:
        with trio.move_on_after(START_TIMEOUT):
            while not await listens(*_shim(kernel), port):
                if (run := await kernel.runs.get(run_id)).ended:
                    raise AgentRefusal("service-failed", await _end_of(kernel, run))
                await trio.sleep(LOOK)
            return
        raise AgentRefusal("service-failed", f"it does not listen at port {port} after {START_TIMEOUT:g} s")


def _shim(kernel: Kernel) -> tuple[Path, int]:
    if kernel.shim is None:
        raise AgentRefusal("kernel-ended", "the kernel has ended")
    return kernel.shim


def _run_id(name: str, number: int) -> str:
    return f"service-{name}-{number}"


def _latest(name: str, runs: Iterable[RunStatus]) -> tuple[int, bool]:
    """The number of the service's latest run (0: it never ran), and whether that lives."""
    pattern = re.compile(rf"service-{re.escape(name)}-([1-9][0-9]{{0,8}})\Z")
    found = [
        (int(match[1]), not run.ended)
        for run in runs
        if run.mode == SERVICE and (match := pattern.match(run.run_id))
    ]
    return max(found, default=(0, False))


async def _end_of(kernel: Kernel, run: RunStatus) -> str:
    """Why it did not come to listen, in its own last words."""
    offset = max(0, run.end_offset - _LAST_WORDS)
    chunk = await kernel.runs.read(run.run_id, offset, _LAST_WORDS, 0.0)
    said = b"".join(record.data for record in chunk.records).decode(errors="replace").strip()
    return f"it ended with exit code {run.exit_code}" + (f": {said}" if said else "")
