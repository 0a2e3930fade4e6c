"""Images of the process back end: manifests that describe runtimes which this machine already has."""

import glob
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs
import trio

from ..domain.slots import parse_amount
from ..runtime.config import ConfigError, load_toml, structure
from ..runtime.resources import resource
from ..wire.reports import ImageReport
from .accounts import Account, run_as
from .services import Service, check_services, services_label

REGISTRY = "local"
#: In a manifest's interpreters: the interpreter that runs the agent.
SELF = "@self"
#: Labels of this prefix tell the least amount of a slot.
_LEAST = "ai.backend.resource.min."
_SERVICES = "ai.backend.service-ports"
_PROBE = """
import sys, ast, json, linecache, os
print('%d.%d' % sys.version_info[:2])
print(sys.prefix)
print(sys.base_prefix)
print(os.path.dirname(os.path.dirname(os.path.realpath(sys.executable))))
"""
_PROBE_TIMEOUT = 20.0
#: First parts of paths that are the machine's own, and never shown to kernels as they are.
_MACHINE = ("proc", "dev", "sys")


def _file_name(_: object, __: object, value: str) -> None:
    if not value.replace("-", "").replace("_", "").isalnum() or not value.isascii():
        raise ValueError("`name`: must be letters, digits, dashes or underscores")


def _places(_: object, field: "attrs.Attribute[tuple[str, ...]]", values: tuple[str, ...]) -> None:
    for value in values:
        parts = Path(value).parts
        if value == SELF and field.name == "interpreters":
            continue
        if (
            parts[:1] not in (("/",), ("~",))
            or ".." in parts
            or parts[1:2] in ((), *((p,) for p in _MACHINE))
        ):
            raise ValueError(f"`{field.name}`: {value!r} is not below / or ~, or it is the machine's own")


def _amounts(_: object, __: object, labels: Mapping[str, str]) -> None:
    for label, amount in labels.items():
        if label.startswith(_LEAST):
            try:
                parse_amount(amount)
            except ValueError as error:
                raise ValueError(f"`labels.{label}`: {error}") from error


#: Runs an argv the way kernels do, who see some folders beside the system's; its standard output, or None if
#: it failed or took too long.
Probe = Callable[[Sequence[str], Sequence[Path]], Awaitable[bytes | None]]


def _pattern(_: object, __: object, value: str) -> None:
    try:
        groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"pattern is no regular expression: {error}") from error
    if groups != 1:
        raise ValueError("pattern must have exactly one group, the version")


@attrs.frozen(kw_only=True)
class VersionQuery:
    """How a command is asked for its version: its arguments, and where its output has the version."""

    argv: tuple[str, ...]
    pattern: str = attrs.field(validator=_pattern)


@attrs.frozen(kw_only=True)
class Commands:
    """Lines for ``/bin/sh -c`` in the work folder: what ``*`` means per step, and a query (code on stdin)."""

    clean: str = ""
    build: str = ""
    exec: str = ""
    query: str = ""


@attrs.frozen(kw_only=True)
class Manifest:
    """A runtime that may be on the machine, as a file in ``conf/images`` describes it."""

    name: str = attrs.field(validator=_file_name)
    runtime: Literal["python", "command"]
    #: Commands to try, absolute or `SELF`; the first that the kernel's account can execute is taken.
    interpreters: tuple[str, ...] = attrs.field(default=(), validator=_places)
    #: The same for the runtime "command".
    command: tuple[str, ...] = attrs.field(default=(), validator=_places)
    version: VersionQuery | None = None
    #: What the sandbox shows besides the system and the command's own file, read-only at the same place.
    paths: tuple[str, ...] = attrs.field(default=(), validator=_places)
    environ: Mapping[str, str] = attrs.Factory(dict)
    commands: Commands = Commands()
    aliases: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    labels: Mapping[str, str] = attrs.field(factory=dict, validator=_amounts)

    def __attrs_post_init__(self) -> None:
        for key, runtime in (("interpreters", "python"), ("command", "command"), ("version", "command")):
            if runtime == self.runtime and not getattr(self, key):
                raise ValueError(f"`{key}` is missing or empty; the runtime {runtime!r} needs it")
            if runtime != self.runtime and getattr(self, key):
                raise ValueError(f"`{key}` is not a key of the runtime {self.runtime!r}")
        check_services(self.services)
        if self.runtime == "python" and self.commands.query:
            raise ValueError("`commands.query`: queries are run by the interpreter itself")

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
    #: Folders that it needs, wherever they are.
    paths: tuple[Path, ...] = ()

    @property
    def query_command(self) -> str:
        """The line that gets a program on standard input; empty if the image has none."""
        return self.manifest.commands.query

    def environ(self) -> dict[str, str]:
        return dict(self.manifest.environ)

    def command_for(self, step: Literal["clean", "build", "exec"], given: str) -> str:
        """The line of *step*: *given*, or the image's default where that is ``*``."""
        default: str = getattr(self.manifest.commands, step)
        return default if given.strip() == "*" else given

    @property
    def name(self) -> str:
        """The canonical name, ``local/python:3.11``."""
        return f"{REGISTRY}/{self.manifest.name}:{self.version}"

    def report(self) -> ImageReport:
        labels = {
            "ai.backend.kernelspec": "1",
            "ai.backend.role": "COMPUTE",
            "ai.backend.base-distro": _distribution(),
            "ai.backend.runtime-type": self.manifest.name,
            "ai.backend.runtime-path": self.interpreter,
            **({_SERVICES: services_label(self.manifest.services)} if self.manifest.services else {}),
            **self.manifest.labels,
        }
        return ImageReport(
            name=self.name,
            architecture=platform.machine(),
            digest=self.manifest.digest(self.interpreter),
            labels=labels,
            resources={
                label.removeprefix(_LEAST): {"min": amount, "max": None}
                for label, amount in labels.items()
                if label.startswith(_LEAST)
            },
            aliases=list(self.manifest.aliases),
        )


#: What runs the guest of kernels that have no Python of their own.
GUEST = Manifest(name="guest", runtime="python", interpreters=(SELF, "/usr/bin/python3"))


def packaged_manifests() -> Path:
    """The folder of manifests that comes with the package."""
    return Path(str(resource("conf/images")))


def load_manifests(folder: Path) -> list[Manifest]:
    """The manifests in *folder*, by file name. Raises `ConfigError`, which names the file and the key."""
    manifests: dict[Path, Manifest] = {}
    for path in sorted(folder.glob("*.toml")):
        document = load_toml(path)
        try:
            manifests[path] = structure(Manifest, document)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
    _check_aliases(manifests)
    if not manifests:
        raise ConfigError(f"{folder} holds no image manifest (*.toml).")
    return list(manifests.values())


def _check_aliases(manifests: Mapping[Path, Manifest]) -> None:
    """Versions of one name may share an alias."""
    owners: dict[str, tuple[Path, str]] = {}
    for path, manifest in manifests.items():
        for alias in manifest.aliases:
            other, name = owners.setdefault(alias, (path, manifest.name))
            if name != manifest.name:
                raise ConfigError(f"`aliases`: {other} and {path} both claim {alias!r}.")


def _distribution() -> str:
    """This machine's, as images name it: ``debian12``."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "linux"
    return release.get("ID", "linux") + release.get("VERSION_ID", "")


async def find_images(
    manifests: Iterable[Manifest], account: Account | None, probe: Probe | None = None
) -> list[LocalImage]:
    """The images that *account* (None: the agent's own) can really run, in the order of *manifests*.

    *probe* runs commands the way kernels are run; without it, and for interpreters, `run_as` does so outside
    of a sandbox.
    """
    known = list(manifests)
    found: list[LocalImage | None] = [None] * len(known)

    async def default(argv: Sequence[str], _: Sequence[Path]) -> bytes | None:
        result = await run_as(account, list(argv), environ={"PATH": "/usr/bin:/bin"}, timeout=_PROBE_TIMEOUT)
        return None if result is None or result.returncode != 0 else result.stdout

    async def look(index: int, manifest: Manifest) -> None:
        enclosed = probe is not None and manifest.runtime == "command"
        found[index] = await _find(manifest, probe if probe is not None and enclosed else default)

    async with trio.open_nursery() as nursery:
        for index, manifest in enumerate(known):
            nursery.start_soon(look, index, manifest)
    images = [image for image in found if image is not None]
    # Of two manifests that come to the same name and version the first is taken.
    return list({image.name: image for image in reversed(images)}.values())[::-1]


async def _find(manifest: Manifest, probe: Probe) -> LocalImage | None:
    for candidate in _expand(manifest.interpreters or manifest.command):
        with trio.move_on_after(_PROBE_TIMEOUT):
            ask = _ask_python if manifest.runtime == "python" else _ask
            found = await ask(manifest, candidate, probe, _shown(manifest, candidate))
            if found is not None:
                version, paths = found
                return LocalImage(
                    manifest=manifest,
                    interpreter=candidate,
                    version=version,
                    paths=tuple(dict.fromkeys(paths)),
                )
    return None


def _shown(manifest: Manifest, candidate: str) -> list[Path]:
    """What kernels see besides the system: the manifest's paths, and a command's own file.

    No folder around that: it might be the home of the agent's account. An interpreter names its own folders.
    """
    paths = [Path(path) for path in _expand(manifest.paths)]
    inside = any(Path(candidate).is_relative_to(path) for path in paths)
    return paths if inside or manifest.runtime == "python" else [Path(candidate), *paths]


async def _ask(
    manifest: Manifest, command: str, probe: Probe, shown: Sequence[Path]
) -> tuple[str, Sequence[Path]] | None:
    """The version of a command, as its manifest says how to ask for it."""
    assert manifest.version is not None
    output = await probe([command, *manifest.version.argv], shown)
    match = re.search(manifest.version.pattern, (output or b"").decode("utf-8", "replace").strip())
    return None if match is None else (match[1], shown)


async def _ask_python(
    manifest: Manifest, command: str, probe: Probe, shown: Sequence[Path]
) -> tuple[str, Sequence[Path]] | None:
    """The version of an interpreter, and the folders that it needs."""
    output = await probe([command, "-I", "-c", _PROBE], shown)
    version, *paths = (output or b"").decode("utf-8", "surrogateescape").splitlines() or [""]
    major, _, minor = version.partition(".")
    if not (major.isdecimal() and minor.isdecimal()) or (int(major), int(minor)) < (3, 6):
        return None
    return version, [*map(Path, paths), *shown]


def _expand(names: Sequence[str]) -> Iterator[str]:
    """What is there of `SELF`, paths, and patterns of paths; ``~`` is the home of the agent's account."""
    for name in names:
        if name == SELF:
            if sys.executable:  # empty where the interpreter is embedded in another program
                yield sys.executable
        else:
            yield from sorted(glob.glob(os.path.expanduser(name)), reverse=True)
