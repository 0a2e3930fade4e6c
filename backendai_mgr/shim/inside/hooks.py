"""Changes to library modules, made when user code imports them.

Loaded by `host` (see there for what holds of all modules in this folder).
"""

import builtins
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional  # noqa: F401

    Action = Callable[[Any, Callable[[Any], None]], None]


FIGURES = "backendai_kernel_figures"  # what matplotlib knows our backend as


class Finder:
    """A finder of sys.meta_path for a few names.

    `actions` maps the name of a module to a function that is called with the module and with what executes
    it.  `sources` maps names to modules that only exist here: a function which fills the module.
    """

    def __init__(self, actions: "Dict[str, Action]", sources: "Dict[str, Callable[[Any], None]]") -> None:
        self._actions = actions
        self._sources = sources

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name in self._sources:
            from importlib.machinery import ModuleSpec

            loader = Loader(None, self._sources[name])  # type: Any
            return ModuleSpec(name, loader)
        action = self._actions.get(name)
        if action is None:
            return None
        for finder in list(sys.meta_path):
            spec = None if finder is self else finder.find_spec(name, path, target)  # type: Any
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = Loader(spec.loader, action)
                return spec
        return None


class Loader:
    """Executes a module in place of its own loader, and then gives way to it."""

    def __init__(self, real: "Any", action: "Any") -> None:
        self._real = real
        self._action = action

    def create_module(self, spec: "Any") -> "Any":
        return None if self._real is None else self._real.create_module(spec)

    def exec_module(self, module: "Any") -> None:
        if self._real is None:
            self._action(module)
            return
        module.__loader__ = module.__spec__.loader = self._real
        self._action(module, self._real.exec_module)


def import_matplotlib(module: "Any", execute: "Callable[[Any], None]") -> None:
    """Select our backend; not for good, as processes that user code starts could not find it."""
    environ = os.environ
    if "MPLBACKEND" in environ:
        execute(module)
        return
    environ["MPLBACKEND"] = "module://" + FIGURES
    try:
        execute(module)
    finally:
        environ.pop("MPLBACKEND", None)


def named(name: str, function: "Any") -> "Any":
    """Return a plain function that calls another."""

    def call(*arguments: "Any", **options: "Any") -> "Any":
        return function(*arguments, **options)

    call.__name__ = call.__qualname__ = name
    call.__module__ = "builtins" if name in vars(builtins) else name
    return call
