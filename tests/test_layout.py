"""Who may import whom. The table is the architecture; a new edge needs a change here, made on purpose."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "backendai_mgr"
PACKAGE = ROOT.name

PURE = {"domain", "wire", "scheduling"}
ADAPTERS = {"db", "agentlink", "clients", "settings"}

#: Room -> the rooms of ours that it may import besides itself. ``services.ports`` is a room of its own, with
#: ``services.agentports``: what adapters implement. The agent may lean on what the shim lends, and so may the
#: crash points' other name.
ROOMS: dict[str, set[str]] = {
    "domain": set(),
    "wire": {"domain"},
    "scheduling": {"domain"},
    "runtime": {"shim.failpoint"},
    "services": {"domain", "wire", "scheduling", "runtime", "services.ports"},
    "services.ports": {"domain", "wire", "scheduling"},
    **{room: {"domain", "wire", "runtime", "services.ports", "scheduling"} for room in ADAPTERS},
    "api": {"domain", "wire", "runtime", "services", "services.ports"},
    "app": PURE | ADAPTERS | {"runtime", "services", "services.ports", "api"},
    "agent": {"domain", "wire", "runtime", "shim.runlog", "shim.runfile", "shim.failpoint"},
    "shim": set(),
    "cli": {"app", "agent", "runtime", "domain", "wire", "db", "shim.failpoint"},
    "__main__": {"cli", "runtime"},
    "": set(),
}

#: Room -> distributions' modules that it may import besides the standard library.
THIRD_PARTIES: dict[str, set[str]] = {
    "domain": {"attrs", "dateutil"},
    "wire": {"attrs", "cattrs", "msgpack"},
    "scheduling": {"attrs"},
    "runtime": {"attrs", "trio", "zmq"},
    "services": {"attrs", "trio"},
    "services.ports": {"attrs"},
    "db": {"attrs", "trio", "trio_asyncio", "asyncpg"},
    "agentlink": {"attrs", "trio", "msgpack", "cattrs"},
    "clients": {"attrs", "trio", "httpx"},
    "settings": {"attrs", "trio", "httpx"},
    # Hypercorn and what it speaks with: the server's protocols are where a connection's bounds are kept.
    "api": {"attrs", "cattrs", "trio", "quart", "quart_trio", "werkzeug", "prometheus_client", "dateutil"}
    | {"hypercorn", "wsproto", "h2", "h11", "hyperframe"},
    "app": {"attrs", "trio", "prometheus_client"},
    "agent": {"attrs", "cattrs", "trio", "msgpack"},
    "agent.backends": {"attrs", "trio", "httpx"},
    "agent.joining": {"httpx"},  # imported only by an agent that joins
    "shim": set(),
    "shim.inside.figures": {"matplotlib"},  # executed only by an import of matplotlib
    "cli": {"attrs", "trio", "click", "rich", "httpx", "trio_websocket"},
    "__main__": {"trio", "click"},
    "": set(),
}

#: Modules of the shim that more than the shim may use.
LENT = {"shim.runlog", "shim.runfile", "shim.failpoint"}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the package as (dotted name below the package, file)."""
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), file


MODULES = dict(modules())


def room_of(module: str) -> str:
    if module in LENT:
        return module
    if module in ("services.ports", "services.agentports"):
        return "services.ports"
    return module.partition(".")[0]


def imports(module: str, file: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute name) of all that a module imports, also within functions and under TYPE_CHECKING."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = [PACKAGE, *filter(None, package.split("."))]
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}"
                # ``from ..domain import ids`` imports a module, ``from .ids import AgentId`` a name of one.
                ours = name.removeprefix(f"{PACKAGE}.")
                yield node.lineno, name if ours in MODULES else base


def edges() -> Iterator[tuple[str, int, str, str]]:
    for module, file in MODULES.items():
        for line, name in imports(module, file):
            yield module, line, name.partition(".")[0], name


def allowed_rooms(module: str) -> set[str]:
    room = room_of(module)
    if room in LENT:
        room = "shim"
    return ROOMS[room] | {room}


def test_every_room_is_in_the_tables() -> None:
    rooms = {room_of(module) for module in MODULES} - LENT
    assert rooms <= ROOMS.keys()
    assert rooms <= THIRD_PARTIES.keys()


def test_rooms_import_only_what_the_design_lets_them() -> None:
    wrong = []
    for module, line, top, name in edges():
        if top != PACKAGE:
            continue
        target = name.removeprefix(PACKAGE).removeprefix(".")
        room = room_of(target)
        inside_shim = room_of(module) in LENT | {"shim"} and target.partition(".")[0] == "shim"
        if room not in allowed_rooms(module) and not inside_shim:
            wrong.append(f"{module}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_third_parties_stay_in_their_rooms() -> None:
    wrong = []
    for module, line, top, name in edges():
        if top == PACKAGE or top in sys.stdlib_module_names:
            continue
        room = "shim" if room_of(module) in LENT else room_of(module)
        parties = THIRD_PARTIES[room]
        if module.startswith("shim.inside."):  # published into one folder, where they find each other
            parties = parties | {
                name.rpartition(".")[2] for name in MODULES if name.startswith("shim.inside.")
            }
        if module.startswith("agent.backends"):
            parties = parties | THIRD_PARTIES["agent.backends"]
        if module in ("shim.inside.figures", "agent.joining"):
            parties = parties | THIRD_PARTIES[module]
        if top not in parties:
            wrong.append(f"{module}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_nobody_imports_the_command_line_but_the_entry_point() -> None:
    importers = {
        module
        for module, _, _, name in edges()
        if name.startswith(f"{PACKAGE}.cli") and room_of(module) != "cli"
    }
    assert importers <= {"__main__"}


def test_only_the_entry_point_runs_trio() -> None:
    runs = set()
    for module, file in MODULES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("trio.run", "trio_asyncio.run"):
                runs.add(module)
    assert runs <= {"__main__"}


def test_pure_rooms_do_no_input_or_output() -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for module, line, top, name in edges()
        if room_of(module) in PURE and top in ("trio", "asyncio", "threading", "subprocess", "socket")
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_modules_stay_short(module: str) -> None:
    # What runs inside of kernels is few files: whatever Python an image has runs them, with nothing beside.
    longest = 500 if module.startswith("shim.inside.") else 400
    assert len(MODULES[module].read_text().splitlines()) <= longest


def test_no_grab_bag_modules() -> None:
    names = {module.rpartition(".")[2] for module in MODULES}
    assert names & {"utils", "util", "common", "base", "helpers", "misc"} == set()
