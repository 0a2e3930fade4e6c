"""Images of the process back end: manifests that describe runtimes which this machine already has."""

import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs

from ..runtime.config import ConfigError, load_toml, structure
from ..runtime.resources import resource
from ..wire.reports import ImageReport
from .accounts import Account, run_as

REGISTRY = "local"
#: In a manifest's interpreters: the interpreter that runs the agent.
SELF = "@self"
#: Labels of this prefix tell the least amount of a slot.
_LEAST = "ai.backend.resource.min."
_PROBE = """
import sys, ast, json, linecache, os
print('%d.%d' % sys.version_info[:2])
print(sys.prefix)
print(sys.base_prefix)
print(os.path.dirname(os.path.dirname(os.path.realpath(sys.executable))))
"""
_PROBE_TIMEOUT = 20.0


def _file_name(_: object, __: object, value: str) -> None:
    if not value.replace("-", "").replace("_", "").isalnum() or not value.isascii():
        raise ValueError("name must be letters, digits, dashes or underscores")


@attrs.frozen(kw_only=True)
class Manifest:
    """A runtime that may be on the machine, as a file in ``conf/images`` describes it."""

    name: str = attrs.field(validator=_file_name)
    runtime: Literal["python"]
    #: Commands to try, absolute or `SELF`; the first that the kernel's account can execute is taken.
    interpreters: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    labels: Mapping[str, str] = attrs.Factory(dict)

    def digest(self, interpreter: str) -> str:
        """``sha256:`` and the hex digest of what this image is: the manifest with *interpreter*."""
        content = {"manifest": attrs.asdict(self), "interpreter": interpreter}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@attrs.frozen(kw_only=True)
class LocalImage:
    """A manifest together with the interpreter that was found for it, and that one's version (``3.11``)."""

    manifest: Manifest
    interpreter: str
    version: str
    #: Folders that the interpreter needs, wherever they are.
    paths: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The canonical name, ``local/python:3.11``."""
        return f"{REGISTRY}/{self.manifest.name}:{self.version}"

    def report(self) -> ImageReport:
        labels = self.manifest.labels
        return ImageReport(
            name=self.name,
            architecture=platform.machine(),
            digest=self.manifest.digest(self.interpreter),
            labels=dict(labels),
            resources={
                label.removeprefix(_LEAST): {"min": amount, "max": None}
                for label, amount in labels.items()
                if label.startswith(_LEAST)
            },
            aliases=list(self.manifest.aliases),
        )


def packaged_manifests() -> Path:
    """The folder of manifests that comes with the package."""
    return Path(str(resource("conf/images")))


def load_manifests(folder: Path) -> list[Manifest]:
    """The manifests in *folder*, by file name. Raises `ConfigError`, which names the file and the key."""
    manifests = []
    for path in sorted(folder.glob("*.toml")):
        document = load_toml(path)
        try:
            manifests.append(structure(Manifest, document))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    if not manifests:
        raise ConfigError(f"{folder} holds no image manifest (*.toml).")
    return manifests


async def find_images(manifests: Iterable[Manifest], account: Account | None) -> list[LocalImage]:
    """The images whose interpreter *account* (None: the agent's own) can really run. Tries each once."""
    images = []
    for manifest in manifests:
        for candidate in _commands(manifest.interpreters):
            found = await _probe(candidate, account)
            if found is not None:
                version, *paths = found
                images.append(
                    LocalImage(
                        manifest=manifest,
                        interpreter=candidate,
                        version=version,
                        paths=tuple(map(Path, dict.fromkeys(paths))),
                    )
                )
                break
    return images


def _commands(interpreters: Sequence[str]) -> list[str]:
    # sys.executable is empty where the interpreter is embedded in another program.
    return [command for name in interpreters if (command := sys.executable if name == SELF else name)]


async def _probe(command: str, account: Account | None) -> list[str] | None:
    """The version, and the folders that it needs."""
    argv = [command, "-I", "-c", _PROBE]
    result = await run_as(account, argv, environ={"PATH": "/usr/bin:/bin"}, timeout=_PROBE_TIMEOUT)
    if result is None or result.returncode != 0:
        return None
    version, *paths = result.stdout.decode("utf-8", "surrogateescape").splitlines() or [""]
    major, _, minor = version.partition(".")
    if not (major.isdecimal() and minor.isdecimal()) or (int(major), int(minor)) < (3, 6):
        return None
    return [version, *paths]
