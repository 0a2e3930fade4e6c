"""What a manager.toml of Backend.AI 22.03 holds, and its variables, where these are not keys of ours.

Nobody who brings such a file is refused for what has no meaning here; it is told, once each. What would be
missed if it were left out silently (another account, another database) is refused.
"""

import grp
import os
import pwd
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from ..runtime.config import KeyPath, ListenAddress
from ..runtime.configfile import Foreign, Setting, environment_value


def _without_effect(instead: str) -> Foreign:
    return Foreign(f" has no effect here: {instead}")


def _other_database(kind: Any) -> str | None:
    return None if kind == "postgresql" else f': only "postgresql" is known, not {kind!r}'


def _other_user(user: Any) -> str | None:
    """Naming the account that runs anyway asks for nothing."""
    number, names = os.geteuid(), set[str]()
    with suppress(KeyError):
        names.add(pwd.getpwuid(number).pw_name)
    return None if str(user) in {str(number), *names} else _start_as(user, "User")


def _other_group(group: Any) -> str | None:
    number, names = os.getegid(), set[str]()
    with suppress(KeyError):
        names.add(grp.getgrgid(number).gr_name)
    return None if str(group) in {str(number), *names} else _start_as(group, "Group")


def _start_as(name: Any, directive: str) -> str:
    return (
        f": a manager keeps the account that it is started as; have systemd start it with {directive}={name}"
    )


KEYS: Mapping[KeyPath, Foreign] = {
    ("etcd",): _without_effect("shared settings are in the database"),
    ("docker-registry",): _without_effect("images are what agents report"),
    ("debug",): _without_effect("`logging.level` and `logging.pkg-ns` say what is logged"),
    ("db", "type"): Foreign("", refuses=_other_database),
    ("manager", "user"): Foreign("", refuses=_other_user),
    ("manager", "group"): Foreign("", refuses=_other_group),
    ("manager", "ipc-base-path"): _without_effect("workers have pipes and an inherited socket"),
    ("manager", "secret"): _without_effect("nothing is signed with it"),
    ("manager", "event-loop"): _without_effect("Trio has one loop"),
    ("manager", "distributed-lock"): _without_effect("locks are PostgreSQL's"),
    ("manager", "hide-agents"): _without_effect("no setting hides the ids of agents"),
    ("manager", "importer-image"): _without_effect("images are not imported"),
    ("manager", "aiomonitor-port"): _without_effect(
        "there is no console; `/metrics` and logs tell what happens"
    ),
    ("manager", "disabled-plugins"): _without_effect("there are no plug-ins"),
    ("manager", "event-listen-addr"): _without_effect("agents are connected to, and connect to nobody"),
    ("manager", "api-listen-addr"): _without_effect("`manager.service-addr` says where the API listens"),
    ("logging", "logstash"): _without_effect("have the log file or standard error collected"),
    ("logging", "file", "format"): _without_effect("the file has one JSON object per line"),
}

#: Keys of the original whose meaning another key has here.
MOVED: Mapping[KeyPath, KeyPath] = {
    ("manager", "max-wsmsg-size"): ("limits", "message-bytes"),
}

#: Variable -> key.
VARIABLES: Mapping[str, tuple[KeyPath, type]] = {
    "BACKEND_DB_ADDR": (("db", "addr"), str),
    "BACKEND_DB_NAME": (("db", "name"), str),
    "BACKEND_DB_USER": (("db", "user"), str),
    "BACKEND_DB_PASSWORD": (("db", "password"), str),
    "BACKEND_MANAGER_NPROC": (("manager", "num-proc"), int),
    "BACKEND_PID_FILE": (("manager", "pid-file"), str),
    "BACKEND_SSL_CERT": (("manager", "ssl-cert"), str),
    "BACKEND_SSL_KEY": (("manager", "ssl-privkey"), str),
}

_NO_ETCD = " has no effect here: shared settings are in the database"
_NO_EVENTS = " has no effect here: agents are connected to, and connect to nobody"
VARIABLES_WITHOUT_EFFECT: Mapping[str, str] = {
    "BACKEND_NAMESPACE": _NO_ETCD,
    "BACKEND_ETCD_ADDR": _NO_ETCD,
    "BACKEND_ETCD_USER": _NO_ETCD,
    "BACKEND_ETCD_PASSWORD": _NO_ETCD,
    "BACKEND_ADVERTISED_MANAGER_HOST": _NO_EVENTS,
    "BACKEND_EVENTS_PORT": _NO_EVENTS,
    "BACKEND_SKIP_SSLCERT_VALIDATION": " has no effect here: images are what agents report",
}

_IP, _PORT = "BACKEND_SERVICE_IP", "BACKEND_SERVICE_PORT"
_LOG_FILE = "BACKEND_LOG_FILE"


def settings(
    environ: Mapping[str, str], document: Mapping[str, Any], *, default_addr: tuple[str, int]
) -> Iterator[Setting]:
    """What the original's variables set. *default_addr* is where the API listens when nothing says so."""
    for name, (path, kind) in VARIABLES.items():
        if name in environ:
            text = environ[name]
            yield Setting(path, text if kind is str else environment_value(kind, text), name)
    yield from _address(environ, document, default_addr)
    yield from _log_file(environ, document)


def _address(
    environ: Mapping[str, str], document: Mapping[str, Any], default: tuple[str, int]
) -> Iterator[Setting]:
    """One of the two may be given; the other half stays."""
    host: Any
    host, port = _parts(_member(document, "manager", "service-addr")) or default
    if _IP in environ:
        host = environ[_IP].removeprefix("[").removesuffix("]")
        yield Setting(("manager", "service-addr"), [host, port], _IP)
    if _PORT in environ:
        given = environ[_PORT]
        number = int(given) if given.isascii() and given.isdecimal() else None
        value: Any = f"{host}:{given}" if number is None else [host, number]
        yield Setting(("manager", "service-addr"), value, _PORT)


def _parts(value: Any) -> tuple[str, int] | None:
    try:
        parsed = ListenAddress.parse(value)
    except ValueError:
        return None
    return parsed.host, parsed.port


def _log_file(environ: Mapping[str, str], document: Mapping[str, Any]) -> Iterator[Setting]:
    if _LOG_FILE in environ:
        folder, name = os.path.split(environ[_LOG_FILE])
        yield Setting(("logging", "file", "path"), folder or ".", _LOG_FILE)
        yield Setting(("logging", "file", "filename"), name, _LOG_FILE)
        drivers = _member(document, "logging", "drivers")
        if drivers is None or isinstance(drivers, list):
            drivers = ["console"] if drivers is None else drivers
            if "file" not in drivers:
                yield Setting(("logging", "drivers"), [*drivers, "file"], _LOG_FILE)
    elif _member(document, "logging", "file") is None:
        return
    if (count := environ.get(f"{_LOG_FILE}_COUNT")) is not None:
        value = environment_value(int, count)
        yield Setting(("logging", "file", "backup-count"), value, f"{_LOG_FILE}_COUNT")
    if (size := environ.get(f"{_LOG_FILE}_SIZE")) is not None:
        megabytes = f"{size}m" if size.isascii() and size.isdecimal() else size
        yield Setting(("logging", "file", "rotation-size"), megabytes, f"{_LOG_FILE}_SIZE")


def _member(document: Mapping[str, Any], table: str, key: str) -> Any:
    found = document.get(table)
    return found.get(key) if isinstance(found, Mapping) else None
