"""Kernels as attackers: what a snippet in a sandbox can see, reach and change."""

import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from backendai_mgr.agent import sandbox as sandbox_module
from backendai_mgr.agent.sandbox import Sandbox, find_sandbox, rlimits

from .enclosure import ACCOUNT, NOBODY, PATIENCE, enclosure

KINDS = [pytest.param(True, id="root"), pytest.param(False, id="user")] if os.geteuid() == 0 else [False]


@pytest.fixture(params=KINDS)
def inside(request):
    with enclosure(as_root=request.param) as made:
        yield made


def test_who_and_where_a_kernel_is(inside):
    snippet = """
import os, pwd, socket
me = pwd.getpwuid(os.getuid())
print(me.pw_name, me.pw_dir, os.getcwd(), socket.gethostname())
status = open("/proc/self/status").read().splitlines()
fields = dict(line.split(":\\t", 1) for line in status if ":\\t" in line)
print(*(int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")), end=" ")
print(fields["NoNewPrivs"], fields["Seccomp"])
open("mine", "w").write("x")
"""
    first, second = inside.python(snippet).splitlines()
    assert first.split() == ["work", "/home/work", "/home/work", "main1"]
    assert second == "0 0 0 1 2"
    if os.geteuid() == 0:
        assert (inside.work / "mine").stat().st_uid == (NOBODY if inside.as_user else ACCOUNT.uid)


def test_a_user_may_close_the_home_to_others(inside):
    inside.python("import os; os.chmod('/home/work', 0o700)")
    inside.sandbox.prepare(inside.work)
    inside.python("open('/home/work/more', 'w').close()")


def test_there_is_little_of_the_host(inside):
    snippet = """
import os
print(*sorted(os.listdir("/")))
print(*sorted(os.listdir("/home")))
print(*sorted(os.listdir("/tmp")), *sorted(os.listdir("/dev/shm")), "empty")
for path in "/root", "/var", "/run", "/sys", "/srv", "/opt", "/boot", "/mnt":
    assert not os.path.exists(path), path
for path in "/etc/shadow", "/etc/ssh", "/etc/machine-id", "/etc/hostname", "/etc/sudoers":
    assert not os.path.exists(path), path
for path in "/etc/resolv.conf", "/etc/ssl/private", "/proc/sys/fs/binfmt_misc/register":
    assert not os.path.exists(path), path
"""
    root, home, empty = inside.python(snippet).splitlines()
    assert set(root.split()) <= {
        "bin",
        "sbin",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "dev",
        "etc",
        "home",
        "proc",
        "tmp",
        "usr",
    }
    assert (home, empty) == ("work", "empty")


def test_only_its_own_folders_can_be_written(inside):
    snippet = """
import os
wrong = []
def attempt(path):
    try:
        open(path, "a").close()
    except OSError:
        return
    wrong.append(path)
places = ["/", "/usr", "/usr/bin", "/etc", "/dev", "/home", "/proc", "/proc/sys/kernel", "/usr/local/lib"]
for place in places:
    attempt(place + "/new")
for path in "/etc/passwd", "/etc/hosts", "/etc/ld.so.cache", "/usr/bin/env", "/proc/mtrr", \\
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/sysrq-trigger", "/proc/sys/vm/drop_caches":
    attempt(path)
for path in "/tmp/new", "/dev/shm/new", "/home/work/new":
    open(path, "w").close()
print(wrong)
"""
    assert inside.python(snippet) == "[]\n"


def test_even_its_first_process_cannot_set_the_machine(inside):
    snippet = """
import os
for path in "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/usr/x", "/etc/x", "/x":
    try:
        os.open(path, os.O_WRONLY | os.O_CREAT)
    except OSError as error:
        print(error.errno in (1, 2, 13, 30), end=" ")
"""
    assert inside.execute(["/usr/bin/python3", "-c", snippet]) == "True " * 5


def test_memory_folders_have_a_limit(inside):
    snippet = """
for path in "/tmp/big", "/dev/shm/big":
    try:
        with open(path, "wb") as file:
            for _ in range(64): file.write(bytes(1 << 20))
    except OSError as error:
        print(error.errno)
"""
    assert inside.python(snippet, tmp_bytes=8 << 20) == "28\n28\n"


def test_no_process_but_its_own_can_be_seen_or_signalled(inside):
    victim = subprocess.Popen(["/bin/sleep", str(PATIENCE)])
    try:
        snippet = f"""
import os
print(sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) in ([1, 2], [1, 2, 3]))
for pid in {victim.pid}, {os.getpid()}:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        print("none")
try:
    os.kill(-1, 9)
except OSError:
    pass
"""
        with inside.start(inside.command(["/usr/bin/python3", "-c", snippet])) as process:
            output, _ = process.communicate(timeout=PATIENCE)
        assert output.splitlines()[1:] == ["none", "none"]
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_system_calls_that_lead_out_are_refused(inside):
    snippet = """
import ctypes, os, errno
libc = ctypes.CDLL(None, use_errno=True)
def name(result):
    return errno.errorcode[ctypes.get_errno()] if result == -1 else "done"
print(name(libc.unshare(0x10000000)), name(libc.unshare(0x20000)), name(libc.ptrace(16, 1, 0, 0)), end=" ")
print(name(libc.mount(b"none", b"/tmp", b"tmpfs", 0, 0)), name(libc.umount2(b"/proc", 2)), end=" ")
print(name(libc.chroot(b"/tmp")), name(libc.setns(os.open("/proc/self/ns/net", 0), 0)))
for path in "/dev/mem", "/dev/vda", "/dev/sda", "/dev/kvm", "/dev/vsock", "/dev/fuse":
    assert not os.path.exists(path), path
try:
    os.mknod("/tmp/disk", 0o60600, os.makedev(254, 0))
except PermissionError:
    print("no device")
for path in "/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/timer_list":
    try:
        open(path, "rb").read(1)
    except OSError:
        continue
    print("read", path)
"""
    assert inside.python(snippet) == "EPERM " * 6 + "EPERM\nno device\n"


def test_setuid_programs_give_nothing(inside):
    found = [path for path in ("/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount") if os.path.exists(path)]
    assert any(os.stat(path).st_mode & stat.S_ISUID for path in found)
    snippet = f"""
import os, subprocess
for path in {found}:
    assert os.statvfs(path).f_flag & os.ST_NOSUID
for change in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try:
        change()
    except OSError:
        continue
    print("changed")
"""
    assert inside.python(snippet) == ""


def test_no_network_but_its_own(inside):
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        port, name = server.getsockname()[1], f"sandbox-test-{os.getpid()}"
        abstract.bind(f"\0{name}")
        abstract.listen()
        snippet = f"""
import socket
print(*(name for _, name in socket.if_nameindex()))
for family, address in ((socket.AF_INET, ("127.0.0.1", {port})), (socket.AF_UNIX, "\\0{name}"),
        (socket.AF_INET, ("192.0.2.1", 80))):
    try:
        socket.socket(family).connect(address)
    except OSError:
        continue
    print("connected", address)
own = socket.create_server(("127.0.0.1", 0))
socket.create_connection(own.getsockname()).close()
"""
        assert [word for word in inside.python(snippet).split() if word not in ("tunl0", "sit0")][:1] == [
            "lo"
        ]
        assert "connected" not in inside.python(snippet)
        reached = inside.python(snippet, network=True)
        assert f"127.0.0.1', {port}" in reached


def test_there_is_no_terminal(inside):
    snippet = """
import errno, os
try:
    os.open("/dev/tty", os.O_RDWR)
except OSError as error:
    print(errno.errorcode[error.errno], os.listdir("/dev/pts"), os.path.exists("/dev/console"))
"""
    assert inside.python(snippet) == "ENXIO ['ptmx'] False\n"


def test_kernels_do_not_see_each_other(inside):
    snippet = "import signal; open('/tmp/secret', 'w').close(); print('ready', flush=True); signal.pause()"
    with enclosure(as_root=inside.sandbox.as_root) as other:
        process = other.start(other.command(["/usr/bin/python3", "-c", snippet]))
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            look = (
                "import os; print(os.listdir('/tmp'), len([p for p in os.listdir('/proc') if p.isdigit()]))"
            )
            assert inside.python(look) == "[] 2\n"
        finally:
            process.kill()
            process.communicate()


def test_it_dies_with_who_started_it(inside):
    snippet = "import time; print('ready', flush=True); time.sleep(600)"
    process = inside.start(inside.command(["/usr/bin/python3", "-c", snippet]))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()  # bubblewrap; what it started must let go of the pipe
    reader = threading.Thread(target=process.stdout.read, daemon=True)
    reader.start()
    reader.join(PATIENCE)
    assert not reader.is_alive()
    process.communicate()


def test_an_interpreter_in_a_closed_folder_can_be_shown(inside):
    if inside.as_user and os.geteuid() == 0:
        return  # nobody's bubblewrap sees no more than nobody
    prefix = Path(sys.base_prefix)
    python = prefix / "bin" / f"python3.{sys.version_info.minor}"
    assert (
        inside.python("import sys; print(sys.prefix)", python=str(python), readable=[prefix]) == f"{prefix}\n"
    )


def test_below_a_folder_that_only_root_can_pass(inside):
    closed = inside.folder / "closed"
    closed.mkdir()
    (closed / "open").mkdir(0o755)
    (closed / "open" / "file").write_text("seen")
    (closed / "other").write_text("secret")
    closed.chmod(0o700)
    if inside.as_user and os.geteuid() == 0:
        os.chown(closed, NOBODY, NOBODY)
    readable = [closed / "open"]
    snippet = f"import os; print(open('{closed}/open/file').read(), os.listdir('{closed}'))"
    assert inside.python(snippet, readable=readable) == "seen ['open']\n"


@pytest.mark.parametrize("path", ["/", "relative", "/proc/1", "/dev", "/usr/../root"])
def test_paths_that_cannot_be_shown(path):
    with pytest.raises(ValueError, match="readable path"):
        Sandbox("bwrap", as_root=True).argv(
            work=Path("/w"), network=False, readable=[Path(path)], files=Path("/f")
        )


async def test_it_is_found_here():
    account = ACCOUNT if os.geteuid() == 0 else None
    found = await find_sandbox(account, readable=[Path(sys.base_prefix)])
    assert found == Sandbox(shutil.which("bwrap"), as_root=account is not None)


def _in_a_child_as_nobody(check):
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            os._exit(0 if trio.run(check) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(pid, 0)[1] == 0


def test_an_ordinary_user_finds_it_too():
    async def check():
        return isinstance(await find_sandbox(None, readable=[]), Sandbox)

    _in_a_child_as_nobody(check)


async def test_why_it_is_not_there(monkeypatch, tmp_path):
    account = ACCOUNT if os.geteuid() == 0 else None
    missing = await find_sandbox(account, readable=[tmp_path / "nothing"])
    assert missing == f"{tmp_path / 'nothing'}, which kernels need, does not exist"
    for output, expected in (
        ("bwrap: Unknown option --size", "bubblewrap is too old"),
        ("bwrap: Creating new namespace failed: Operation not permitted", "not permitted"),
        ("strange", "bubblewrap does not work here: strange"),
    ):
        script = tmp_path / "bwrap"
        script.write_text(f"#!/bin/sh\necho '{output}' >&2\nexit 1\n")
        script.chmod(0o755)
        monkeypatch.setattr(sandbox_module.shutil, "which", lambda name: str(script))  # noqa: B023
        assert expected in await find_sandbox(account, readable=[])
    script.write_text("#!/bin/sh\ncat /proc/self/status\n")  # encloses nothing
    assert "does not make" in await find_sandbox(account, readable=[])
    monkeypatch.setattr(sandbox_module.shutil, "which", lambda name: None)
    assert "apt-get install bubblewrap" in await find_sandbox(account, readable=[])


def test_limits_of_processes_stand_in_for_groups(inside):
    limits = rlimits(64 << 20, 20)
    snippet = f"""
import errno, os, resource, signal
for name, most in {limits}.items():
    resource.setrlimit(getattr(resource, name), (most, most))
try:
    bytearray(128 << 20)
except MemoryError:
    print("memory")
children = []
try:
    for _ in range(40):
        if (pid := os.fork()) == 0:
            signal.pause()
        children.append(pid)
except OSError as error:
    print(errno.errorcode[error.errno], 10 < len(children) < 20)
"""
    assert inside.python(snippet) == "memory\nEAGAIN True\n"
