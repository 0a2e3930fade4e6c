"""The listening socket that the workers of one server share."""

import socket
from collections.abc import Sequence

import attrs

from ..api.server.serving import BACKLOG, open_listener
from ..domain.addresses import is_local_host
from ..runtime.config import HostPort, ListenAddress
from .config import ManagerConfig

_INTERNET = (socket.AF_INET, socket.AF_INET6)


class ListenError(Exception):
    """The address cannot be listened on; the message is one sentence for the operator."""


@attrs.frozen
class Listener:
    """A socket that listens, and the setting that it serves."""

    socket: socket.socket
    address: ListenAddress
    #: The service manager made it; it stays whatever the configuration says.
    inherited: bool = False

    @classmethod
    def open(cls, address: ListenAddress) -> "Listener":
        """Listen at *address*. `ListenError` says why that cannot be."""
        try:
            return cls(open_listener(address.host, address.port), address)
        except OSError as error:
            raise ListenError(f"The address {address} cannot be listened on: {error.strerror}.") from error

    @classmethod
    def take(cls, fds: Sequence[int], config: ManagerConfig) -> "Listener | None":
        """The socket that a service manager has opened for us; None when there is none.

        `ListenError` for more than one, for what is no TCP socket, and for one that others than this machine
        reach although the configuration, by which the example keys are judged, says that they do not.
        """
        if not fds:
            return None
        if len(fds) > 1:
            raise ListenError(f"{len(fds)} sockets were handed over; one is needed.")
        listening = socket.socket(fileno=fds[0])
        try:
            if listening.family not in _INTERNET or listening.type != socket.SOCK_STREAM:
                raise ListenError("The socket that was handed over is not one of TCP.")
            found = cls(listening, config.service_addr, inherited=True)
            found.check(config)
            listening.listen(BACKLOG)
        except BaseException:
            listening.close()
            raise
        return found

    @property
    def where(self) -> str:
        """``host:port`` that it listens on."""
        return str(HostPort(*self.socket.getsockname()[:2]))

    def check(self, config: ManagerConfig) -> None:
        """`ListenError` if *config* takes it for a loopback socket and it is none."""
        host = self.socket.getsockname()[0]
        if config.on_loopback and not is_local_host(host):
            raise ListenError(
                f"The socket that was handed over listens on {self.where}, but `manager.service-addr` is"
                f" {config.service_addr}: set that to the socket's address."
            )
