import errno
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.agent import seccomp

from .enclosure import enclosure

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS, EAFNOSUPPORT = (0x50000 | n for n in (errno.EPERM, errno.ENOSYS, errno.EAFNOSUPPORT))
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
CLONE_NEWUSER, CLONE_VM_THREAD, SIGCHLD = 0x10000000, 0x3D0F00, 17
MACHINES = sorted(ARCH)


def verdict(code: bytes, nr: int, args: tuple[int, ...] = (), arch: int = ARCH["x86_64"]) -> int:
    """What the filter returns: an interpreter for the instructions that filters of calls may have."""
    data = struct.pack("=IIQ6Q", nr & 0xFFFFFFFF, arch, 0, *(*args, 0, 0, 0, 0, 0, 0)[:6])
    lines = list(struct.iter_unpack("=HBBI", code))
    place, accumulator = 0, 0
    while True:
        operation, then, otherwise, operand = lines[place]
        place += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x15:
                place += then if accumulator == operand else otherwise
            case 0x35:
                place += then if accumulator >= operand else otherwise
            case 0x45:
                place += then if accumulator & operand else otherwise
            case 0x06:
                return operand
            case _:
                raise AssertionError(f"operation {operation:#x}")


TABLE = [
    # x86_64, aarch64, arguments, verdict
    (0, 63, (), ALLOW),  # read
    (59, 221, (), ALLOW),  # execve
    (105, 146, (0,), ALLOW),  # setuid: the guest needs it
    (56, 220, (SIGCHLD,), ALLOW),  # clone: fork
    (56, 220, (CLONE_VM_THREAD,), ALLOW),  # clone: thread
    (56, 220, (CLONE_NEWUSER | SIGCHLD,), EPERM),
    (56, 220, (0x20000,), EPERM),  # NEWNS
    (56, 220, (0x40000000,), EPERM),  # NEWNET
    (56, 220, (CLONE_NEWUSER << 32,), ALLOW),  # what the operating system ignores
    (435, 435, (), ENOSYS),  # clone3
    (16, 29, (0, 0x5401), ALLOW),  # ioctl: TCGETS
    (16, 29, (0, 0x5412), EPERM),  # TIOCSTI
    (16, 29, (0, 0x5412 | 1 << 40), EPERM),  # the same to the operating system
    (16, 29, (0, 0x541C), EPERM),  # TIOCLINUX
    (41, 198, (1,), ALLOW),  # socket: unix
    (41, 198, (2,), ALLOW),
    (41, 198, (10,), ALLOW),
    (41, 198, (16,), ALLOW),  # netlink: lists of interfaces
    (41, 198, (40,), EAFNOSUPPORT),  # vsock
    (41, 198, (38,), EAFNOSUPPORT),  # alg
    (101, 117, (), EPERM),  # ptrace
    (272, 97, (0,), EPERM),  # unshare
    (308, 268, (), EPERM),  # setns
    (165, 40, (), EPERM),  # mount
    (321, 280, (), EPERM),  # bpf
    (250, 219, (), EPERM),  # keyctl
    (425, 425, (), EPERM),  # io_uring_setup
    (438, 438, (), EPERM),  # pidfd_getfd
    (434, 434, (), ALLOW),  # pidfd_open
    (169, 142, (), EPERM),  # reboot
]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("row", TABLE)
def test_verdicts(machine, row):
    nr = row[MACHINES[::-1].index(machine)]
    assert verdict(seccomp.program(machine), nr, row[2], ARCH[machine]) == row[3]


@pytest.mark.parametrize("machine", MACHINES)
@given(nr=st.integers(0, 1000), args=st.tuples(*[st.integers(0, 2**64 - 1)] * 3))
def test_every_call_of_the_list_is_refused_and_no_other(machine, nr, args):
    answer = verdict(seccomp.program(machine), nr, args, ARCH[machine])
    if nr in seccomp.refused(machine).values():
        assert answer == EPERM
    elif nr not in (56, 16, 41, 435, 220, 29, 198):
        assert answer == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
@given(nr=st.integers(0, 2**32 - 1), arch=st.integers(0, 2**32 - 1))
def test_the_calls_of_another_machine_are_deadly(machine, nr, arch):
    expected = KILL if arch != ARCH[machine] else None
    answer = verdict(seccomp.program(machine), nr, (), arch)
    assert answer == expected or (expected is None and answer != KILL)


@given(nr=st.integers(0x40000000, 2**32 - 1))
def test_x32_numbers_are_unknown(nr):
    assert verdict(seccomp.program("x86_64"), nr) == ENOSYS
    assert verdict(seccomp.program("x86_64"), 1, (), I386) == KILL


def test_there_is_none_for_other_machines():
    with pytest.raises(ValueError, match="riscv64"):
        seccomp.program("riscv64")


@pytest.mark.parametrize("as_root", [os.geteuid() == 0, False])
def test_in_earnest(as_root):
    snippet = """
import ctypes, errno, os, platform
libc = ctypes.CDLL(None, use_errno=True)
def error(nr, *args):
    # Pointers that lead nowhere: what is let through fails with something else.
    result = libc.syscall(nr, *(ctypes.c_ulong(a) for a in (*args, 0, 0, 0)))
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "no error"
x86 = platform.machine() == "x86_64"
refused = (101, 117), (310, 270), (438, 438), (165, 40), (272, 97), (308, 268), (250, 219), (321, 280)
for one, other in refused:
    print(error(one if x86 else other), end=" ")
print()
print(error(435), error(56 if x86 else 220, 0x10000011), error(16 if x86 else 29, 0, 0x5412))
print(error(41 if x86 else 198, 40, 1), error(41 if x86 else 198, 38, 5))
if x86:
    print(error(0x40000000 + 39))
"""
    with enclosure(as_root=as_root) as inside:
        refused, special, *rest = inside.python(snippet).splitlines()
    assert refused.split() == ["EPERM"] * 8
    assert special.split() == ["ENOSYS", "EPERM", "EPERM"]
    assert rest in (["EAFNOSUPPORT EAFNOSUPPORT", "ENOSYS"], ["EAFNOSUPPORT EAFNOSUPPORT"])


def test_what_programs_need_works():
    snippet = """
import multiprocessing, os, pty, subprocess, threading
from concurrent.futures import ProcessPoolExecutor
done = []
threads = [threading.Thread(target=done.append, args=(n,)) for n in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(done), subprocess.check_output(["echo", "sub"], text=True).strip(), end=" ")
print(multiprocessing.get_context("fork").Pool(2).map(abs, [-1, -2]), end=" ")
pid, fd = pty.fork()
if pid == 0:
    os.execlp("tty", "tty")
print(os.read(fd, 100).decode().strip(), os.waitpid(pid, 0)[1])
"""
    for as_root in {os.geteuid() == 0, False}:
        with enclosure(as_root=as_root) as inside:
            assert inside.python(snippet).split() == ["4", "sub", "[1,", "2]", "/dev/pts/0", "0"]
