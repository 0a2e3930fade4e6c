"""Where things live on disk: the data directory, and sockets whose paths stay short wherever that is."""

import hashlib
import os
import stat
from pathlib import Path

#: A unix socket's path is limited to 107 bytes; we stay below this.
MAX_SOCKET_PATH = 100
#: The longest file name that `socket_dir` leaves room for.
MAX_SOCKET_NAME = 48

_PRIVATE = 0o700


class PathRefused(Exception):
    """A path cannot be used as it is; the message says which and why, for the operator."""


def default_data_dir() -> Path:
    """``/var/lib/backendai-mgr`` as root, else ``backendai-mgr`` in the user's data folder."""
    if os.geteuid() == 0:
        return Path("/var/lib/backendai-mgr")
    base = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification has relative values ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "share") / "backendai-mgr"


def socket_dir(data_dir: Path) -> Path:
    """A private (0700) folder of this account for the sockets that belong to *data_dir*, made if absent.

    It is ``data_dir/run``, or a folder in ``/tmp`` with a name derived from *data_dir* where that would make
    socket paths too long. The same *data_dir* (absolute) always gives the same folder. Raises `PathRefused`
    when it exists and is not ours alone.
    """
    near = data_dir / "run"
    if len(os.fsencode(near)) + 1 + MAX_SOCKET_NAME < MAX_SOCKET_PATH:
        return make_private_dir(near)
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:8]
    return make_private_dir(Path("/tmp") / f"backendai-mgr-{os.geteuid()}-{digest}")


def make_private_dir(path: Path) -> Path:
    """Make *path* with mode 0700 (its parent must exist), or check that it is ours alone."""
    try:
        path.mkdir(_PRIVATE)
    except FileExistsError:
        pass
    else:
        path.chmod(_PRIVATE)  # whatever the umask took away
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise PathRefused(f"{path} is not a folder")
    if found.st_uid != os.geteuid():
        raise PathRefused(f"{path} belongs to account {found.st_uid}, not to account {os.geteuid()}")
    if stat.S_IMODE(found.st_mode) != _PRIVATE:
        mode = stat.S_IMODE(found.st_mode)
        raise PathRefused(f"{path} has mode {mode:04o}; it must have 0700, so that only its owner reaches it")
    return path


def check_traversable(path: Path, uid: int) -> Path | None:
    """The first folder on the way to *path* (itself included) that account *uid* cannot traverse, or None.

    The account is taken to be in the one group with its own number. What does not exist yet counts as
    traversable. Symbolic links are followed.
    """
    if uid == 0:
        return None
    resolved = path.resolve()
    for folder in (*reversed(resolved.parents), resolved):
        try:
            found = folder.stat()
        except FileNotFoundError:
            return None
        if found.st_uid == uid:
            needed = stat.S_IXUSR
        elif found.st_gid == uid:
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            return folder
    return None
