"""Environments: of the guest, which comes first, and of what runs in a kernel, which is the user's."""

import json
from pathlib import Path

from ..wire.rpc import KernelSpec
from .images import LocalImage

#: Prefixes of variables that have an effect only if they are there when an interpreter is executed.
_EARLY = ("PYTHON", "LD_", "MALLOC_", "GLIBC_")
_CORE_COUNT_LABEL = "ai.backend.envs.corecount"
_PATH = ("/usr/local/bin", "/usr/bin", "/bin")


def guest_environ(spec: KernelSpec | None, mark: str) -> dict[str, str]:
    """What a guest is executed with; *mark* (``NAME=value``) tells its processes from others.

    *spec* is None for a kernel that nobody has asked for yet.
    """
    name, _, value = mark.partition("=")
    environ = {"PATH": ":".join(_PATH), "LANG": "C.UTF-8", name: value}
    if spec is not None:
        environ["BACKENDAI_KERNEL_ID"] = str(spec.kernel_id)
        if early := early_environ(spec):
            # Never as such: the sandbox, and the guest before it has the kernel's account, would obey them.
            environ["BACKENDAI_EARLY"] = json.dumps(early)
    return environ


def early_environ(spec: KernelSpec) -> dict[str, str]:
    """What of the user's environment cannot be given to an interpreter that runs already."""
    return {name: value for name, value in spec.environ.items() if name.startswith(_EARLY)}


def kernel_environ(spec: KernelSpec, image: LocalImage, home: str) -> dict[str, str]:
    """The environment of a kernel: a plain account's, the user's own on top, and what tells it who it is."""
    core_count_names = image.manifest.labels.get(_CORE_COUNT_LABEL, "").split(",")
    cores = spec.slots.get("cpu", "1").partition(".")[0]
    return {
        "HOME": home,
        "USER": "work",
        "LOGNAME": "work",
        "SHELL": "/bin/sh",
        "LANG": "C.UTF-8",
        "PATH": ":".join(dict.fromkeys((str(Path(image.interpreter).parent), *_PATH))),
        **{name: cores for name in core_count_names if name},
        **image.environ(),
        **spec.environ,
        "BACKENDAI_SESSION_ID": str(spec.session_id),
        "BACKENDAI_SESSION_NAME": spec.session_name,
        "BACKENDAI_KERNEL_ID": str(spec.kernel_id),
        "BACKENDAI_KERNEL_IMAGE": spec.image,
        "BACKENDAI_CLUSTER_SIZE": "1",
        "BACKENDAI_CLUSTER_REPLICAS": "main:1",
        "BACKENDAI_CLUSTER_HOSTS": "main1",
        "BACKENDAI_CLUSTER_HOST": "main1",
        "BACKENDAI_CLUSTER_ROLE": "main",
        "BACKENDAI_CLUSTER_IDX": "1",
    }
