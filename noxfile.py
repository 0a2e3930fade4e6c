"""What is checked. `nox` takes less than ten minutes; CI runs `nox -s faults deployment compat` as well."""

import os

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = True
nox.options.default_venv_backend = "virtualenv"

PYTHON_FILES = ("backendai_mgr", "bench", "tests", "noxfile.py")

#: The official client, unmodified, with the versions of its dependencies that it was made for: its request
#: signer reads a private attribute that newer yarl no longer has, and its PyYAML builds only with Cython < 3.
OFFICIAL_CLIENT = ("backend.ai-client==22.3.2", "yarl==1.9.4", "aiohttp==3.8.6", "blessed==1.20.0")

#: What `nox -s bench -- --rivals` measures beside us.
RIVALS = ("jupyter_server>=2.17,<3", "ipykernel>=7,<8")


def dependency_group(name: str) -> list[str]:
    """The requirements of a group in pyproject.toml."""
    return nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), name)


@nox.session
def lint(session: nox.Session) -> None:
    """Style and formatting."""
    session.install(*dependency_group("lint"))
    session.run("ruff", "check", "--no-cache", *PYTHON_FILES)
    session.run("ruff", "format", "--check", "--no-cache", *PYTHON_FILES)


@nox.session
def types(session: nox.Session) -> None:
    """Static types of the package and of the benchmark."""
    session.install(".", *dependency_group("types"))
    session.run("mypy", "backendai_mgr", "bench", "--cache-dir", os.path.join(session.create_tmp(), "mypy"))


@nox.session
def tests(session: nox.Session) -> None:
    """Everything but what takes long or needs more, against the installed package, not the checkout."""
    session.install(".", *dependency_group("test"))
    chosen = ("-m", "not compat and not faults and not deployment")
    run_tests(session, *side_by_side(4), *chosen, *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """Processes are killed and stopped, through the whole program; as root and as an ordinary user."""
    session.install(".", *dependency_group("test"))
    run_tests(session, *side_by_side(2), "-m", "faults", *session.posargs)


@nox.session
def deployment(session: nox.Session) -> None:
    """Several workers, machines in namespaces of their own, units, other accounts."""
    session.install(".", *dependency_group("test"))
    run_tests(session, "-m", "deployment", "tests/system", *session.posargs)


@nox.session
def compat(session: nox.Session) -> None:
    """The unmodified official client against a running system."""
    session.install(".", *dependency_group("test"))
    client = os.path.join(session.create_tmp(), "client")
    if not os.path.exists(os.path.join(client, "ok")):
        install_official_client(session, client)
    run_tests(session, "-m", "compat", "tests/compat", *session.posargs, env={"OFFICIAL_CLIENT": client})


@nox.session
def bench(session: nox.Session) -> None:
    """Figures of the installed program (bench/README.md); for people, not for CI."""
    session.install(".")
    arguments = list(session.posargs)
    if "--rivals" in arguments:
        arguments[arguments.index("--rivals")] = f"--rivals={install_rivals(session)}"
    # Only this package of the checkout is on the path: the rest of it would hide what is installed.
    path = os.path.join(session.create_tmp(), "path")
    os.makedirs(path, exist_ok=True)
    if not os.path.lexists(os.path.join(path, "bench")):
        os.symlink(os.path.abspath("bench"), os.path.join(path, "bench"))
    session.run("python", "-m", "bench", *arguments, env={"PYTHONPATH": path, "PYTHONSAFEPATH": "1"})


def install_rivals(session: nox.Session) -> str:
    """The interpreter of an environment of its own, with what we are measured beside."""
    folder = os.path.join(session.create_tmp(), "rivals")
    python = f"{folder}/bin/python"
    session.run("python", "-m", "venv", folder)
    session.run(python, "-m", "pip", "install", "--quiet", *RIVALS, external=True)
    return os.path.abspath(python)


def install_official_client(session: nox.Session, folder: str) -> None:
    """An environment of its own: its dependencies and ours do not agree."""
    session.run("python", "-m", "venv", "--clear", folder)
    constraints = f"{folder}/constraints.txt"
    with open(constraints, "w") as file:
        file.write("Cython<3\n")
    python = f"{folder}/bin/python"
    session.run(
        *(python, "-m", "pip", "install", "--quiet", *OFFICIAL_CLIENT),
        env={"PIP_CONSTRAINT": constraints},
        external=True,
    )
    # Where byte code may not be written at import, each start of the client would compile all of it.
    session.run(python, "-m", "compileall", "-q", f"{folder}/lib", external=True, success_codes=[0, 1])
    with open(f"{folder}/ok", "w"):
        pass


def side_by_side(most: int) -> tuple[str, ...]:
    """Options of pytest-xdist: so many files at once, as far as there are processors."""
    return ("--numprocesses", "auto", "--maxprocesses", str(most), "--dist", "loadfile")


def run_tests(session: nox.Session, *arguments: str, env: dict[str, str] | None = None) -> None:
    """pytest on the installed package: the checkout is kept off the path, in child processes too."""
    options = ("-p", "no:cacheprovider", "--import-mode=importlib")
    session.run("python", "-m", "pytest", *options, *arguments, env={"PYTHONSAFEPATH": "1", **(env or {})})
