"""What an agent reports: states, never deltas."""

from typing import Any
from uuid import UUID

import attrs

from ..domain.status import KernelState


@attrs.frozen(kw_only=True)
class KernelExit:
    """Why a kernel ended. ``exit_code`` is negative for a signal, None when unknown."""

    reason: str
    exit_code: int | None = None


@attrs.frozen(kw_only=True)
class ServicePort:
    """A service of a kernel. Its ports are numbered inside, and for the outside in the same order."""

    name: str
    protocol: str
    container_ports: list[int]
    host_ports: list[int]
    allowed_envs: list[str] = attrs.Factory(list)
    allowed_arguments: list[str] = attrs.Factory(list)


@attrs.frozen(kw_only=True)
class KernelReport:
    """One kernel on the agent. Ended ones stay in reports until they are acknowledged."""

    id: UUID
    session_id: UUID
    incarnation: int
    cluster_id: str
    state: KernelState
    exit: KernelExit | None = None
    last_active: float = 0.0
    service_ports: list[ServicePort] = attrs.Factory(list)


@attrs.frozen(kw_only=True)
class ImageReport:
    """An image the agent can start: canonical name ``registry/name:tag`` and what its manifest says."""

    name: str
    architecture: str
    digest: str
    labels: dict[str, str] = attrs.Factory(dict)
    resources: dict[str, dict[str, str | None]] = attrs.Factory(dict)
    aliases: list[str] = attrs.Factory(list)
    size_bytes: int = 0


@attrs.frozen(kw_only=True)
class Report:
    """State of an agent. ``boot`` changes with each start of it, ``seq`` grows with each report and reply.

    Slot amounts are decimal text. ``missing`` lists capabilities that isolation lacks here, with the reason.
    """

    boot: str
    seq: int
    version: str
    architecture: str
    capacity: dict[str, str]
    occupied: dict[str, str]
    images: list[ImageReport]
    kernels: list[KernelReport]
    missing: dict[str, str] = attrs.Factory(dict)
    stats: dict[str, Any] = attrs.Factory(dict)
