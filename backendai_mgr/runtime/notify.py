"""What systemd is told of a service, and the socket that it may hand over (sd_notify(3), sd_listen_fds(3)).

Without systemd the variables are absent, and nothing is told to anybody.
"""

import logging
import os
import socket
import time
from collections.abc import MutableMapping

import attrs

log = logging.getLogger(__name__)

NOTIFY_SOCKET = "NOTIFY_SOCKET"
#: The first descriptor that is handed over.
FIRST_FD = 3


@attrs.frozen
class Notifier:
    """Tells a service manager how this process does. ``address``: a path, ``@name``, or None for nobody."""

    address: str | None = None

    @classmethod
    def taken(cls, environ: MutableMapping[str, str] = os.environ) -> "Notifier":
        """The one of the environment, which is taken out of it: child processes have nothing to tell."""
        return cls(environ.pop(NOTIFY_SOCKET, None))

    def ready(self, status: str) -> None:
        """The service serves, for the first time or again after `reloading`."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The configuration is being read anew; `ready` follows."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The service is on its way out."""
        self._tell("STOPPING=1", "STATUS=Stopping")

    def _tell(self, *fields: str) -> None:
        """Never waits and never fails: nobody's service depends on who watches it."""
        if self.address is None:
            return
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        message = "\n".join(field.replace("\n", " ") for field in fields)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(message.encode(), address)
            except OSError as error:
                log.warning("the service manager could not be told %s: %s", fields[0], error)


def take_listeners(environ: MutableMapping[str, str] = os.environ) -> list[int]:
    """Descriptors of the sockets that the service manager opened for this process; not inheritable any more.

    The variables that tell of them are taken out of the environment.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    found = list(range(FIRST_FD, FIRST_FD + int(count)))
    for fd in found:
        os.set_inheritable(fd, False)
    return found
