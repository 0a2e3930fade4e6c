"""What is wrong with a manager's configuration on this machine, found without starting it."""

from collections.abc import Iterator

from ..api.server.tls import CertificateError, server_context
from ..runtime.checks import address_problem, file_problem, folder_problem, logging_problems, written_problem
from ..runtime.config import Problem
from .config import ManagerConfig


def manager_problems(config: ManagerConfig) -> Iterator[Problem]:
    """Problems of addresses, folders and files. The database is not contacted."""
    if wrong := address_problem(config.service_addr.host, config.service_addr.port):
        yield Problem(("manager", "service-addr"), wrong)
    if config.pid_file is not None and (wrong := written_problem(config.pid_file)):
        yield Problem(("manager", "pid-file"), wrong)
    yield from _tls_problems(config)
    if config.db.socket_dir is not None and (wrong := folder_problem(config.db.socket_dir)):
        yield Problem(("db", "socket-dir"), wrong)
    yield from logging_problems(config.logging)


def _tls_problems(config: ManagerConfig) -> Iterator[Problem]:
    if config.tls is None:
        return
    found = False
    for key, path in zip(("ssl-cert", "ssl-privkey"), config.tls, strict=True):
        if wrong := file_problem(path):
            found = True
            yield Problem(("manager", key), wrong)
    if found:
        return
    try:
        server_context(*config.tls)
    except CertificateError as error:
        said = str(error).removesuffix(".")
        yield Problem(("manager", "ssl-cert"), f": {said[0].lower()}{said[1:]}")
