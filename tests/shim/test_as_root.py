"""What only root can try: another account, and a disk that is full."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backendai_mgr.shim import runfile
from tests.shim.client import INSIDE, Shim, processes_marked, read_all, scratch_directory, start, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: changes account, mounts a tmpfs")

UID = 20001
SYSTEM_PYTHON = "/usr/bin/python3"


@pytest.fixture
def other_account(make_shim: Callable[..., Shim]) -> Iterator[Shim]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        # As the agent does: the package itself may lie where the account cannot go.
        os.chmod(folder, 0o755)
        for file in INSIDE.glob("*.py"):
            shutil.copy(file, folder)
        shim = make_shim([SYSTEM_PYTHON, f"{folder}/guest.py", "python", "."], uid=UID, gid=UID + 1)
        os.chown(shim.work, UID, UID + 1)
        os.chmod(shim.scratch, 0o700)
        shim.running()
        yield shim


def test_the_interpreter_runs_as_the_kernel_s_account(other_account: Shim) -> None:
    shim = other_account
    shim.run("import os; print(os.getresuid(), os.getresgid(), os.getgroups())", "ids")
    assert shim.output("ids") == f"{(UID,) * 3} {(UID + 1,) * 3} []\n"
    shim.run("open('mine', 'w').write('x'); print(open('mine').read())", "own")
    assert shim.output("own") == "x\n"
    assert (shim.work / "mine").stat().st_uid == UID
    shim.run("print('again', file=open('/dev/stdout', 'w'))", "reopened")
    assert shim.output("reopened") == "again\n"
    assert shim.run("os.setuid(0)", "back")["exit_code"] == 1
    assert "PermissionError" in shim.output("back")


def test_the_kernel_cannot_touch_the_shim_s_files(other_account: Shim) -> None:
    shim = other_account
    shim.run(f"import os; os.listdir({str(shim.scratch / 'runs')!r})", "list")
    shim.run(f"import socket; socket.socket(socket.AF_UNIX).connect({shim.socket!r})", "connect")
    assert shim.process is not None
    shim.run(f"import os; os.kill({shim.process.pid}, 9)", "kill")
    for run_id in "list", "connect", "kill":
        assert "PermissionError" in shim.output(run_id)


def test_another_account_is_interrupted_and_dies_with_its_shim(other_account: Shim) -> None:
    shim = other_account
    status = shim.run("while True: pass", timeout=0.1)
    assert (status["state"], status["exit_code"]) == ("timeout", 130)
    assert shim.client is not None
    start(shim.client, "busy", "print('in', flush=True)\nwhile True: pass")
    shim.client.ask("watch", run_id="busy", offset=0)
    shim.client.note("more", run_id="busy")
    shim.kill()
    until(lambda: not processes_marked(shim.spec["kernel_id"]))


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 2 MiB."""
    with scratch_directory() as root:
        point = Path(root) / "disk"
        point.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(point)], capture_output=True
        )
        if done.returncode != 0:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode().strip()}")
        try:
            yield point
        finally:
            subprocess.run(["umount", str(point)], check=True)


def test_a_full_disk_never_holds_up_the_program(small_disk: Path) -> None:
    shim = Shim(small_disk / "a")
    with contextlib.closing(shim):
        client = shim.running()
        flood = "import os\nfor i in range(3000): os.write(1, b'%08d' % i * 8192)\nprint('end')"
        status = shim.run(flood, "a")
        assert (status["state"], status["exit_code"]) == ("finished", 0)
        assert status["end_offset"] == 3000 * 65536 + 4
        records = read_all(shim.folder("a"))
        gap = sum(record.gap for record in records)
        assert gap > 0
        assert sum(len(record.data) for record in records) + gap == status["end_offset"]
        assert records[0].data.startswith(b"00000000")
        # The status found room in the reserve: another shim will read the same.
        assert runfile.read(shim.folder("a"))[1] is not None

        # A run that cannot be recorded is refused, not run without a record.
        filler = small_disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        with pytest.raises(Exception, match="cannot be recorded"):
            shim.run("open('witness', 'w')", "b")

        # Room comes back: everything works again, and the refused id is free.
        filler.unlink()
        for path in shim.folder("a").glob("*.seg"):
            path.unlink()
        assert shim.run("6*7", "b")["state"] == "finished"
        assert shim.output("b") == "42\n"
        assert client.ask("status", run_id="a")["run"] == status
