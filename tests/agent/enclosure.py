"""A sandbox to run snippets of Python in, as root's kernels and as an ordinary user's."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from backendai_mgr.agent.accounts import Account
from backendai_mgr.agent.sandbox import SECCOMP_FD, Sandbox

SYSTEM_PYTHON = "/usr/bin/python3"
ACCOUNT = Account(20777, 20777)
NOBODY = 65534
PATIENCE = 60
CLEAN = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
# As the guest does: change to the kernel's account, then run the snippet in a process that is not number 1.
_CHANGE = f"""
import os, sys
if os.getuid() == 0:
    os.setgroups([]); os.setresgid(*[{ACCOUNT.gid}] * 3); os.setresuid(*[{ACCOUNT.uid}] * 3)
pid = os.fork()
if pid == 0:
    os.setsid()
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) % 256)
"""


@attrs.frozen
class Enclosure:
    sandbox: Sandbox
    folder: Path
    as_user: bool

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def command(
        self, command: Sequence[str], *, network: bool = False, readable: Sequence[Path] = (), **options: int
    ) -> list[str]:
        files = self.folder / "files"
        prefix = self.sandbox.argv(work=self.work, network=network, readable=readable, files=files, **options)
        opening = f'exec {SECCOMP_FD}<"$0" && exec "$@"'
        return ["/bin/sh", "-c", opening, self.sandbox.descriptors(files)[SECCOMP_FD], *prefix, *command]

    def start(self, command: Sequence[str], **popen: object) -> subprocess.Popen[str]:
        # An ordinary user's bubblewrap runs as nobody where we are root, else as ourselves.
        account = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
            command,
            env=CLEAN,
            cwd="/",
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **(account if self.as_user and os.geteuid() == 0 else {}),
            **popen,
        )

    def execute(self, command: Sequence[str], **options: object) -> str:
        """Run it as the first process; what it wrote. It must end with 0."""
        with self.start(self.command(command, **options)) as process:  # type: ignore[arg-type]
            try:
                output, _ = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
        assert process.returncode == 0, output
        return output

    def python(self, snippet: str, *, python: str = SYSTEM_PYTHON, **options: object) -> str:
        return self.execute([python, "-c", _CHANGE, snippet], **options)


@contextlib.contextmanager
def enclosure(*, as_root: bool) -> Iterator[Enclosure]:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="enclosure-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        sandbox = Sandbox("/usr/bin/bwrap", as_root)
        sandbox.write_files(folder / "files", ACCOUNT if as_root else None)
        made = Enclosure(sandbox, folder, as_user=not as_root)
        made.work.mkdir(0o700)
        sandbox.prepare(made.work)
        if os.geteuid() == 0:
            owner = ACCOUNT.uid if as_root else NOBODY
            os.chown(made.work, owner, owner)
        yield made
