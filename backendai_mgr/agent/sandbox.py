"""How kernels are enclosed on this machine: bubblewrap, with a filter of system calls.

Inside there are: the host's ``/usr``, read-only; an ``/etc`` of few files; `readable` paths at their own
places; ``/home/work``; an own ``/tmp``, ``/dev``, ``/proc``; own process ids, host name, System V objects
and, unless asked otherwise, an own network with nothing but ``lo``.  The kernel's account is `work` there.
"""

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import trio

from . import seccomp
from .accounts import Account

#: The command finds the filter's file opened here; `Sandbox.descriptors` says which file that is.
SECCOMP_FD = 9
#: Account of an ordinary user's kernels as seen from inside.
USER_UID = 1000
HOME = "/home/work"
#: For a Python that is the first process: else it would read, and as root obey, what the user left in HOME
#: (``~/.local/lib/python3.x/site-packages/*.pth``) before it changes its account.
PYTHON_OPTIONS = ("-s", "-E")
_TMP_BYTES = 1 << 30
_PROBE_SECONDS = 15.0
_FILTER, _PASSWD, _GROUP, _NSSWITCH, _HOSTS = "seccomp.bpf", "passwd", "group", "nsswitch.conf", "hosts"

#: What is shown of the host's /etc, where it exists: nothing that is secret or private to the machine.
_ETC = (
    "alternatives",
    "bash.bashrc",
    "bash_completion.d",
    "ca-certificates",
    "crypto-policies",
    "fonts",
    "gai.conf",
    "host.conf",
    "inputrc",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "magic",
    "mime.types",
    "os-release",
    "pki/ca-trust",
    "pki/java",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "pki/tls/openssl.cnf",
    "protocols",
    "rpc",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "terminfo",
    "timezone",
)
_ETC_PATTERNS = ("java-*", "java", "R", "julia", "ghostscript", "ImageMagick-*")
_PROC_READ_ONLY = ("sys", "sysrq-trigger", "mtrr")
_PROC_HIDDEN = ("kcore", "keys", "key-users", "kmsg", "latency_stats", "sched_debug", "timer_list")
#: Links of the root folder on systems with a merged /usr; elsewhere they are folders of their own.
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@attrs.frozen
class Sandbox:
    """A way to enclose kernels that was seen to work here. `find_sandbox` makes one.

    With `as_root` the command starts as uid 0 with the right to change its account and none other. It must
    do so before it reads anything in `HOME` (see `PYTHON_OPTIONS`). Else it has the only account inside.
    """

    bwrap: str
    as_root: bool
    machine: str = attrs.field(factory=lambda: os.uname().machine)

    def write_files(self, folder: Path, account: Account | None) -> None:
        """Write what `argv` shows of *folder*, which it makes: the filter, and an /etc for *account*.

        They are the same for all kernels of one account, and hold nothing secret.
        """
        uid, gid = (account.uid, account.gid) if account is not None else (USER_UID, USER_UID)
        folder.mkdir(0o755, parents=True, exist_ok=True)
        contents = {
            _FILTER: seccomp.program(self.machine),
            _PASSWD: (
                "root:x:0:0:root:/root:/usr/sbin/nologin\n"
                f"work:x:{uid}:{gid}:work:{HOME}:{_shell()}\n"
                "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ).encode(),
            _GROUP: f"root:x:0:\nwork:x:{gid}:\nnogroup:x:65534:\n".encode(),
            # Not the host's: its services may sit behind sockets that are not there.
            _NSSWITCH: b"passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
            _HOSTS: b"127.0.0.1 localhost\n::1 localhost\n",
        }
        for name, content in contents.items():
            path = folder / name
            path.write_bytes(content)
            path.chmod(0o644)

    def descriptors(self, files: Path) -> Mapping[int, str]:
        """Which files of *files* the command is to find open for reading, by descriptor."""
        return {SECCOMP_FD: str(files / _FILTER)}

    def argv(
        self,
        *,
        work: Path,
        network: bool,
        readable: Sequence[Path],
        files: Path,
        hostname: str = "main1",
        tmp_bytes: int = _TMP_BYTES,
    ) -> list[str]:
        """What to put before a command so that it runs enclosed, as process 1, in ``/home/work``.

        *work* becomes `HOME`; the command starts in ``/`` and goes there itself, once it has the kernel's
        account. *files* was filled by `write_files`. /tmp and /dev/shm hold *tmp_bytes* each; what they hold
        counts as the kernel's memory. With *network* the kernel has the host's network, its loopback services
        and abstract sockets included. The environment and the open descriptors go in as they are: the caller
        passes none but those meant for inside. Raises ValueError for a readable path that is not absolute, or
        would show all of the host.
        """
        return [
            self.bwrap,
            *self._account(),
            *self._namespaces(network, hostname),
            *_system(),
            *_etc(files, network),
            *_proc(),
            "--dev",
            "/dev",
            *_memory_folder("/dev/shm", tmp_bytes),
            *_memory_folder("/tmp", tmp_bytes),
            *_readable(readable),
            *_folders([Path(HOME)]),
            "--bind",
            str(work),
            HOME,
            # These two are memory file systems without a limit, and an ordinary user's kernel owns them.
            "--remount-ro",
            "/dev",
            "--remount-ro",
            "/",
            "--chdir",
            "/",
            "--seccomp",
            str(SECCOMP_FD),
            "--",
        ]

    def _account(self) -> list[str]:
        if self.as_root:
            # No user namespace: uid 0 in there would be the host's. The capabilities go with the uid.
            return ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        # A namespace for each kernel also makes RLIMIT_NPROC count for each kernel.
        return ["--unshare-user", "--uid", str(USER_UID), "--gid", str(USER_UID), "--cap-drop", "ALL"]

    def _namespaces(self, network: bool, hostname: str) -> Iterator[str]:
        yield from ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
        if not network:
            yield "--unshare-net"
        yield from ("--hostname", hostname, "--die-with-parent", "--as-pid-1")
        # No --new-session: it would keep the kernel's own terminals from job control. None of the host's can
        # be reached: whoever starts us leads a session without one and passes none open, devpts is the
        # kernel's own, and the filter refuses to put input into any.


def _shell() -> str:
    return "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"


def _system() -> Iterator[str]:
    yield from ("--ro-bind", "/usr", "/usr")
    for name in _SYSTEM:
        path = f"/{name}"
        if os.path.islink(path):
            yield from ("--symlink", os.readlink(path), path)
        elif os.path.isdir(path):
            yield from ("--ro-bind", path, path)


def _etc(files: Path, network: bool) -> Iterator[str]:
    etc = Path("/etc")
    paths = [etc / name for name in _ETC]
    paths += sorted(path for pattern in _ETC_PATTERNS for path in etc.glob(pattern))
    paths = [path for path in paths if path.exists()]
    yield from _folders([*paths, etc / _PASSWD])
    for path in paths:
        yield from ("--ro-bind", str(path), str(path))
    for name in (_PASSWD, _GROUP, _NSSWITCH):
        yield from ("--ro-bind", str(files / name), f"/etc/{name}")
    if network and (etc / "resolv.conf").exists():
        yield from ("--ro-bind", str((etc / "resolv.conf").resolve()), "/etc/resolv.conf")
    shown = network and (etc / _HOSTS).exists()
    yield from ("--ro-bind", str(etc / _HOSTS if shown else files / _HOSTS), "/etc/hosts")


def _proc() -> Iterator[str]:
    """Settings of the machine are not to be written, not even by uid 0, and its secrets not to be read."""
    yield from ("--proc", "/proc")
    for name in _PROC_READ_ONLY:
        if os.path.exists(f"/proc/{name}"):
            yield from ("--ro-bind", f"/proc/{name}", f"/proc/{name}")
    for name in _PROC_HIDDEN:
        if os.path.exists(f"/proc/{name}"):
            # Bound without devices: it cannot even be opened.
            yield from ("--ro-bind", "/dev/null", f"/proc/{name}")


def _folders(paths: Sequence[Path]) -> Iterator[str]:
    """The folders above *paths*. bubblewrap would make them itself, but closed to the kernel's account."""
    for folder in sorted({parent for path in paths for parent in path.parents if parent.parent != parent}):
        yield from ("--perms", "0755", "--dir", str(folder))


def _memory_folder(path: str, limit: int) -> list[str]:
    return ["--perms", "1777", "--size", str(limit), "--tmpfs", path]


def _readable(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        if not path.is_absolute() or ".." in path.parts:
            raise ValueError(f"readable path {path} is not absolute")
        if path.parent == path or path.parts[1] in ("proc", "dev", "sys"):
            raise ValueError(f"readable path {path} would show what is the host's own")
    missing = sorted(path for path in set(paths) if path.parts[1] not in ("usr", *_SYSTEM))
    yield from _folders(missing)
    for path in missing:
        yield from ("--ro-bind", str(path), str(path))


# -- does it work here?


async def find_sandbox(account: Account | None, *, readable: Sequence[Path]) -> Sandbox | str:
    """How to enclose kernels here, tried for real; or why that is impossible, as a sentence.

    *account* is one that a kernel may get, or None where all have ours. *readable* are paths that kernels
    will need to see.
    """
    if (bwrap := shutil.which("bwrap")) is None:
        return "bubblewrap is not installed (apt-get install bubblewrap)"
    as_root = os.geteuid() == 0
    if as_root != (account is not None):
        return "as root each kernel needs an account of its own, and only root can give it one"
    sandbox = Sandbox(bwrap, as_root)
    try:
        seccomp.program(sandbox.machine)
    except ValueError as error:
        return f"{error}, so kernels could not be enclosed"
    for path in readable:
        if not path.exists():
            return f"{path}, which kernels need, does not exist"
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder:
        return await _try(sandbox, Path(folder), account, readable)


async def _try(
    sandbox: Sandbox, folder: Path, account: Account | None, readable: Sequence[Path]
) -> Sandbox | str:
    command = ["cat", "/proc/self/status"]
    with trio.move_on_after(_PROBE_SECONDS):
        try:
            done = await _execute(sandbox, folder, account, readable, command)
        except OSError as error:
            return f"bubblewrap cannot be executed: {error}"
        if done.returncode != 0:
            return _explain(done.stderr.decode(errors="replace"), sandbox.as_root)
        return _judge(sandbox, done.stdout.decode(errors="replace"))
    return f"bubblewrap did not start anything within {_PROBE_SECONDS:g} s"


async def run_enclosed(
    sandbox: Sandbox, account: Account | None, *, readable: Sequence[Path], command: Sequence[str]
) -> bytes | None:
    """What *command* prints when a kernel's *account* runs it; None when it fails or takes too long."""
    if account is not None:
        change = [f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
        command = ["setpriv", *change, *command]
    with tempfile.TemporaryDirectory(prefix="sandbox-") as folder, trio.move_on_after(_PROBE_SECONDS):
        try:
            done = await _execute(sandbox, Path(folder), account, readable, command)
        except OSError:
            return None
        return done.stdout if done.returncode == 0 else None
    return None


async def _execute(
    sandbox: Sandbox, folder: Path, account: Account | None, readable: Sequence[Path], command: Sequence[str]
) -> "subprocess.CompletedProcess[bytes]":
    """Run *command* in a sandbox whose files are in *folder*."""
    work, files = folder / "work", folder / "files"
    work.mkdir(0o700)
    sandbox.write_files(files, account)
    prefix = sandbox.argv(work=work, network=False, readable=readable, files=files)
    # bubblewrap is given the filter at the descriptor that it has with a kernel, too.
    shell = f'exec {SECCOMP_FD}<"$0" && exec "$@"'
    return await trio.run_process(
        ["/bin/sh", "-c", shell, sandbox.descriptors(files)[SECCOMP_FD], *prefix, *command],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        start_new_session=True,
    )


def _judge(sandbox: Sandbox, status: str) -> Sandbox | str:
    """Look at /proc/self/status as it was inside."""
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    allowed = (1 << 6 | 1 << 7) if sandbox.as_root else 0  # CAP_SETGID, CAP_SETUID
    if fields.get("Pid") != "1":
        return "bubblewrap does not make a space of process ids here"
    if int(fields.get("CapEff", "f"), 16) & ~allowed:
        return f"bubblewrap leaves capabilities {fields['CapEff']} to what it starts"
    if (fields.get("NoNewPrivs"), fields.get("Seccomp")) != ("1", "2"):
        return "bubblewrap does not apply the system-call filter here"
    return sandbox


def _explain(stderr: str, as_root: bool) -> str:
    words = " ".join(stderr.split())[:300] or "it said nothing"
    if "Unknown option" in words:
        return f"bubblewrap is too old, 0.8 or later is needed: {words}"
    if not as_root and ("namespace" in words or "uid map" in words or "RTM_NEWADDR" in words):
        return (
            "unprivileged user namespaces are not permitted here (see kernel.unprivileged_userns_clone, "
            f"kernel.apparmor_restrict_unprivileged_userns and user.max_user_namespaces): {words}"
        )
    if "Operation not permitted" in words or "Permission denied" in words:
        return f"bubblewrap is not permitted to make namespaces here: {words}"
    return f"bubblewrap does not work here: {words}"


# -- where there are no control groups


def rlimits(memory: int, pids: int) -> dict[str, int]:
    """Limits of a single process that stand in for a kernel's, by names of the resource module.

    *memory* in bytes. Not RLIMIT_AS: stacks of threads and arenas reserve address space that they never use.
    RLIMIT_NPROC counts threads, all of an account, within one user namespace: of a kernel only where each has
    a namespace or an account of its own, and of root none.
    """
    slack = max(16 << 20, math.ceil(memory / 16))
    return {"RLIMIT_DATA": memory + slack, "RLIMIT_NPROC": pids, "RLIMIT_CORE": 0}
