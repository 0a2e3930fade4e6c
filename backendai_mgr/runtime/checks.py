"""What can be said of addresses and folders of a configuration without starting anything.

Most functions give what goes on after the key's name (`Problem.says`), None when all is well.
"""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .config import Problem
from .logging import LoggingConfig

_REASONS = {
    errno.EADDRNOTAVAIL: "is not an address of this machine",
    errno.EACCES: "may not be used by this account: the port is privileged",
}


def address_problem(host: str, port: int) -> str | None:
    """Whether this account can listen there; that somebody does already is no problem of a configuration."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # Beside a server that listens there, and for no longer than this takes.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            reason = _REASONS.get(error.errno or 0) or f"cannot be listened on: {error.strerror or error}"
            return f": {host}, port {port}, {reason}"
    return None


def folder_problem(path: Path) -> str | None:
    """Whether there is a folder that this account can look into."""
    if not path.is_dir():
        return f": {path} is not a folder" if path.exists() else f": the folder {path} does not exist"
    if not os.access(path, os.R_OK | os.X_OK):
        return f": the folder {path} may not be read by this account"
    return None


def file_problem(path: Path) -> str | None:
    """Whether there is a file that this account can read."""
    if not path.is_file():
        return f": {path} is not a file" if path.exists() else f": the file {path} does not exist"
    if not os.access(path, os.R_OK):
        return f": {path} may not be read by this account"
    return None


def writable_problem(folder: Path, *, made: bool) -> str | None:
    """Whether this account can write into the folder; *made*: it is made, with its parents, if absent."""
    existing = folder.absolute()
    while made and not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.exists():
        return f": the folder {folder} does not exist"
    if not existing.is_dir():
        return f": {existing} is not a folder"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f": this account may not write into {existing}"
    return None


def written_problem(file: Path, *, made: bool = False) -> str | None:
    """Whether this account can write the file, or make it; *made* as for `writable_problem`."""
    if not file.exists():
        return writable_problem(file.parent, made=made)
    if file.is_dir():
        return f": {file} is a folder"
    return None if os.access(file, os.W_OK) else f": {file} may not be written by this account"


def logging_problems(config: LoggingConfig) -> Iterator[Problem]:
    """Whether the log file can be had."""
    if config.file is None or "file" not in config.drivers:
        return
    if wrong := written_problem(config.file.path / config.file.filename, made=True):
        yield Problem(("logging", "file", "path"), wrong)
