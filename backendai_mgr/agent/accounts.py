"""Host accounts of kernels: as root each kernel has one of its own, otherwise all have the agent's."""

import fcntl
import os
import pwd
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs
import trio

#: Kernels' accounts are this number plus n; their group has the same number. None has a name in passwd.
FIRST_UID = 20000
_LAST_UID = 60000
#: Shared by all agents of this machine; empty after a reboot, when no kernel is left either.
_BOOK = Path("/run/backendai-mgr/accounts")


@attrs.frozen
class Account:
    """A user id and a group id of the host; no further groups."""

    uid: int
    gid: int


class NoAccountLeft(Exception):
    """All accounts for kernels are in use."""


def separate_accounts() -> bool:
    """Whether kernels can be given accounts of their own: only root can change to another."""
    return os.geteuid() == 0


class AccountBook:
    """Who has which account, over all agents of this machine. An account goes to one holder at a time.

    A holder is the path of a folder; where that does not exist any more, its account is free again. The book
    is a folder of symbolic links, from each uid to its holder.
    """

    def __init__(self, folder: Path = _BOOK) -> None:
        self._folder = folder
        folder.mkdir(0o700, parents=True, exist_ok=True)

    def take(self, holder: Path) -> Account:
        """A free account, from now on of *holder*. Raises `NoAccountLeft`."""
        with self._locked():
            for uid in range(FIRST_UID, _LAST_UID):
                if self._holder(uid) is None and not _is_named(uid):
                    self._link(uid).unlink(missing_ok=True)
                    self._link(uid).symlink_to(holder)
                    return Account(uid, uid)
        raise NoAccountLeft(f"all accounts from {FIRST_UID} to {_LAST_UID - 1} are in use")

    def keep(self, uid: int, holder: Path) -> Account | None:
        """The account that *holder* had before; None when it went to another meanwhile."""
        with self._locked():
            if (present := self._holder(uid)) is None:
                self._link(uid).unlink(missing_ok=True)
                self._link(uid).symlink_to(holder)
            return Account(uid, uid) if present in (None, holder) else None

    def move(self, account: Account, holder: Path, to: Path) -> None:
        """Rename the folder that holds *account*, which is never free meanwhile."""
        with self._locked():
            holder.rename(to)
            draft = self._folder / f".{account.uid}"
            draft.unlink(missing_ok=True)
            draft.symlink_to(to)
            draft.replace(self._link(account.uid))

    def give_back(self, account: Account, holder: Path) -> None:
        """The account is free; nothing when it is not *holder*'s."""
        with self._locked():
            if self._link(account.uid).is_symlink() and self._link(account.uid).readlink() == holder:
                self._link(account.uid).unlink()

    def _holder(self, uid: int) -> Path | None:
        link = self._link(uid)
        return link.readlink() if link.exists() else None

    def _link(self, uid: int) -> Path:
        return self._folder / str(uid)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)  # held for some file operations only
            yield
        finally:
            os.close(fd)


def _is_named(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


async def run_as(
    account: Account | None, argv: Sequence[str], *, environ: Mapping[str, str], timeout: float
) -> "subprocess.CompletedProcess[bytes] | None":
    """Run a short command as *account* (None: as ourselves) in ``/``, with its standard output captured.

    None when it cannot be executed by that account, or did not end within *timeout* seconds.
    """
    with trio.move_on_after(timeout):
        try:
            return await trio.run_process(
                argv,
                cwd="/",
                env=environ,
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
            )
        except OSError:
            return None
    return None


async def kill_all_of(account: Account) -> None:
    """SIGKILL every process of *account*, which must be a kernel's own. Needs root."""
    if account.uid < FIRST_UID:
        raise ValueError(f"account {account.uid} is not a kernel's")
    # kill -1 reaches all that the caller may signal, which for this account is all of its own and no other.
    await run_as(account, ["/bin/sh", "-c", "kill -9 -1"], environ={}, timeout=5)
