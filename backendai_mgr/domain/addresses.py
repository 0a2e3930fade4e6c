"""Whether an address is on this machine alone, or on the network."""

import ipaddress


def is_local_host(host: str | None) -> bool:
    """Whether *host*, a peer's or a server's, is this machine itself, by the loopback interface.

    Of names only ``localhost`` is: what others mean somebody else says.
    """
    if host is None:
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def leads_off_loopback(addr: str) -> bool:
    """Whether *addr*, of an agent, is on the network, where everything must be encrypted."""
    if not addr.startswith("tcp://"):
        return False
    host = addr.removeprefix("tcp://").rpartition(":")[0]
    return not is_local_host(host.removeprefix("[").removesuffix("]"))
