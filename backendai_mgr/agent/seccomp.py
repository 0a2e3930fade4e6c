"""The system calls that a kernel may not make, as a classic BPF program for ``bwrap --seccomp``.

A list of what is refused, not of what is allowed: kernels run any program.  It takes away what namespaces do
not cover (keyrings, BPF, perf, vsock), what would make new namespaces, and every way into another process.
"""

import errno
import struct
from collections.abc import Iterator, Mapping

_ALLOW = 0x7FFF0000
_KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000

# struct seccomp_data: nr at 0, arch at 4, instruction pointer at 8, six arguments of 8 bytes from 16 on. Only
# the lower half of an argument is looked at: the calls concerned take ints and ignore the upper one.
_NR, _ARCH = 0, 4
_LOAD, _JEQ, _JGE, _JSET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

# NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. NEWTIME is a signal number to clone(2).
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # put input into a terminal
# Not vsock, which reaches the hypervisor from any network namespace; the rest is old or rare code.
_FAMILIES = (1, 2, 10, 16)  # unix, inet, inet6, netlink

#: Refused with EPERM: name -> number on x86_64, on aarch64; None where there is no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # into other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    # not divided by namespaces
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "syslog": (103, 116),
    # large or risky parts of the operating system
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "uselib": (134, None),
    "_sysctl": (156, None),
    # the machine
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
    "vhangup": (153, 58),
}

#: Looked at more closely: clone, ioctl, socket, clone3.
_SPECIAL = {"x86_64": (56, 16, 41, 435), "aarch64": (220, 29, 198, 435)}


def refused(machine: str) -> Mapping[str, int]:
    """Name and number of the calls that fail with EPERM whatever their arguments."""
    column = list(_AUDIT_ARCH).index(machine)
    return {name: nr for name, numbers in _REFUSED.items() if (nr := numbers[column]) is not None}


def program(machine: str) -> bytes:
    """The filter for *machine*, as `os.uname` names it: an array of struct sock_filter.

    Raises ValueError for a machine that it cannot be made for.
    """
    if machine not in _AUDIT_ARCH:
        raise ValueError(f"there is no system-call filter for {machine}")
    lines = list(_lines(machine))
    places = {label: place for place, (label, *_) in enumerate(lines) if label}
    code = b""
    for place, (_, operation, operand, then, otherwise) in enumerate(lines):
        jumps = [places[label] - place - 1 if label else 0 for label in (then, otherwise)]
        code += struct.pack("=HBBI", operation, *jumps, operand)
    return code


_Line = tuple[str, int, int, str, str]  # label, operation, operand, where to go if so, if not ("": on)


def _lines(machine: str) -> Iterator[_Line]:
    clone, ioctl, socket, clone3 = _SPECIAL[machine]
    yield ("", _LOAD, _ARCH, "", "")
    yield ("", _JEQ, _AUDIT_ARCH[machine], "", "kill")
    yield ("", _LOAD, _NR, "", "")
    if machine == "x86_64":  # the same calls under other numbers
        yield ("", _JGE, _X32_BIT, "missing", "")
    # Its flags are in memory, which a filter cannot read; without it the C library takes clone.
    yield ("", _JEQ, clone3, "missing", "")
    yield ("", _JEQ, clone, "clone", "")
    yield ("", _JEQ, ioctl, "ioctl", "")
    yield ("", _JEQ, socket, "socket", "")
    for nr in refused(machine).values():
        yield ("", _JEQ, nr, "refuse", "")
    yield ("", _RETURN, _ALLOW, "", "")
    yield ("clone", _LOAD, _argument(0), "", "")
    yield ("", _JSET, _NEW_NAMESPACES, "refuse", "allowed")
    yield ("ioctl", _LOAD, _argument(1), "", "")
    yield ("", _JEQ, _TIOCSTI, "refuse", "")
    yield ("", _JEQ, _TIOCLINUX, "refuse", "allowed")
    yield ("socket", _LOAD, _argument(0), "", "")
    for family in _FAMILIES:
        yield ("", _JEQ, family, "allowed", "")
    yield ("", _RETURN, _ERRNO | errno.EAFNOSUPPORT, "", "")
    yield ("allowed", _RETURN, _ALLOW, "", "")
    yield ("refuse", _RETURN, _ERRNO | errno.EPERM, "", "")
    yield ("missing", _RETURN, _ERRNO | errno.ENOSYS, "", "")
    yield ("kill", _RETURN, _KILL_PROCESS, "", "")


def _argument(number: int) -> int:
    return 16 + 8 * number
