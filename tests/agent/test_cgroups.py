import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from backendai_mgr.agent import cgroupfiles
from backendai_mgr.agent.cgroups import PARENT, CgroupError, find_cgroups
from backendai_mgr.agent.cgroups1 import V1Driver
from backendai_mgr.agent.cgroups2 import V2Driver, find_v2

PATIENCE = 60
PREFIX = f"test-{os.getpid()}-"
MIB = 1 << 20
DRIVER = find_cgroups() if os.geteuid() == 0 else "not root"

with_groups = pytest.mark.skipif(
    isinstance(DRIVER, str), reason="needs root and control groups that can be written"
)
JOIN = """
import sys
for path in sys.argv[1:]:
    with open(path, "w") as file:
        file.write("0")
"""


@pytest.fixture
async def group():
    group = DRIVER.create(f"{PREFIX}group")
    yield group
    await group.remove()
    assert group.name not in DRIVER.names(PREFIX)


def start(group, snippet):
    return subprocess.Popen(
        [sys.executable, "-c", JOIN + snippet, *group.join_files()], stdout=subprocess.PIPE, text=True
    )


def finish(process):
    output, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, output


def counted(group):
    path, key = group.oom_counter()
    return cgroupfiles.read_number(Path(path), key)


@with_groups
async def test_too_much_memory_is_deadly_and_counted(group):
    group.set_limits(memory=32 * MIB, pids=None, cpu=None)
    before = counted(group)
    assert finish(start(group, "print(len(bytearray(8 << 20)))")) == (0, f"{8 * MIB}\n")
    assert counted(group) == before == 0
    assert finish(start(group, "bytes(bytearray(b'x') * (128 << 20))"))[0] == -9
    assert counted(group) == 1


@with_groups
async def test_forks_are_limited(group):
    group.set_limits(memory=None, pids=10, cpu=None)
    snippet = """
import errno, os, signal
made = 0
try:
    while made < 50:
        if os.fork() == 0:
            signal.pause()
        made += 1
except OSError as error:
    print(made, errno.errorcode[error.errno], flush=True)
signal.pause()
"""
    process = start(group, snippet)
    assert process.stdout.readline() == "9 EAGAIN\n"
    assert group.usage().pids == 10
    assert len(group.pids()) == 10
    await group.remove()
    assert finish(process)[0] == -9


@with_groups
async def test_processors_are_limited(group):
    group.set_limits(memory=None, pids=None, cpu=0.25)
    snippet = """
import time
began = time.monotonic()
while time.monotonic() < began + 1: pass
print(time.process_time())
"""
    used = float(finish(start(group, snippet))[1])
    assert used < 0.5  # a quarter, and what a period and the start may add
    assert 0 < group.usage().cpu < 1


@with_groups
async def test_limits_can_be_set_again_with_processes_inside(group):
    group.set_limits(memory=512 * MIB, pids=100, cpu=1)
    process = start(group, "import signal; print('in', flush=True); signal.pause()")
    assert process.stdout.readline() == "in\n"
    assert process.pid in group.pids()
    for limits in (
        {"memory": 64 * MIB, "pids": 5, "cpu": 0.5},
        {"memory": 256 * MIB, "pids": 50, "cpu": 2},
        {"memory": None, "pids": None, "cpu": None},
        {"memory": 128 * MIB, "pids": 1, "cpu": None},
    ):
        group.set_limits(**limits)
    usage = group.usage()
    assert 0 < usage.memory <= 128 * MIB
    assert usage.pids == 1
    process.kill()
    finish(process)


@with_groups
async def test_a_running_process_can_be_moved_in(group):
    process = subprocess.Popen(["/bin/sleep", str(PATIENCE)])  # noqa: ASYNC220
    group.add(process.pid)
    assert group.pids() == {process.pid}
    await group.remove()
    assert process.wait(PATIENCE) == -9
    with pytest.raises(CgroupError, match=r"cgroup\.procs does not take"):
        group.add(process.pid)


@with_groups
async def test_leftovers_of_one_agent_are_swept_and_no_others():
    mine, kept, other = (DRIVER.create(PREFIX + name) for name in ("a-1", "a-2", "b-1"))
    process = start(mine, "import signal; print('in', flush=True); signal.pause()")
    assert process.stdout.readline() == "in\n"
    assert DRIVER.names(f"{PREFIX}a-") == [mine.name, kept.name]
    assert await DRIVER.sweep(f"{PREFIX}a-", frozenset({kept.name})) == [mine.name]
    assert finish(process)[0] == -9
    assert DRIVER.names(PREFIX) == [kept.name, other.name]
    assert await DRIVER.sweep(PREFIX) == [kept.name, other.name]
    await other.remove()  # it is gone: nothing


@with_groups
async def test_a_fork_bomb_is_ended(group):
    group.set_limits(memory=256 * MIB, pids=40, cpu=1)
    process = start(
        group, "import os\nprint('in', flush=True)\nwhile True:\n try: os.fork()\n except OSError: pass"
    )
    assert process.stdout.readline() == "in\n"
    with trio.fail_after(PATIENCE):
        await group.remove()
    assert finish(process)[0] == -9


@with_groups
@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 200])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="control group"):
        DRIVER.create(name)


@with_groups
def test_kernels_weigh_little_together():
    if isinstance(DRIVER, V1Driver):
        assert int((DRIVER.parents["cpu"] / "cpu.shares").read_text()) == 64
        assert DRIVER.limits == {"memory", "pids", "cpu"}


# -- version 2, as files

FILES = {
    "cgroup.procs": "",
    "cgroup.controllers": "cpu memory pids",
    "cgroup.subtree_control": "cpu memory pids",
    "cgroup.kill": "",
    "cpu.weight": "100",
    "cpu.max": "max 100000",
    "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
    "memory.max": "max",
    "memory.swap.max": "max",
    "memory.current": "4096",
    "memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n",
    "pids.max": "max",
    "pids.current": "7",
}


def fill(folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in FILES.items():
        (folder / name).write_text(changes.get(name, content))
    return folder


@pytest.fixture
def root(tmp_path):
    fill(tmp_path / "cg")
    fill(tmp_path / "cg" / PARENT)
    fill(tmp_path / "cg" / PARENT / "k")
    return tmp_path / "cg"


async def test_version_2_writes_these_files(root):
    driver = find_v2(root, "")
    assert driver == V2Driver(root / PARENT, frozenset({"memory", "pids", "cpu"}))
    assert (root / PARENT / "cpu.weight").read_text().startswith("6")
    group = driver.create("k")
    group.set_limits(memory=1024, pids=5, cpu=1.5)
    read = {name: (root / PARENT / "k" / name).read_text() for name in FILES}
    assert read["memory.max"].startswith("1024")
    assert read["memory.swap.max"].startswith("0")
    assert read["pids.max"].startswith("5")
    assert read["cpu.max"].startswith("150000 100000")
    assert (group.usage().memory, group.usage().cpu, group.usage().pids) == (4096, 2.5, 7)
    assert group.join_files() == [f"{root}/{PARENT}/k/cgroup.procs"]
    assert group.oom_counter() == (f"{root}/{PARENT}/k/memory.events", "oom_kill")
    assert counted(group) == 2
    assert driver.names("") == ["k"]
    group.set_limits(memory=None, pids=None, cpu=None)
    assert (root / PARENT / "k" / "cpu.max").read_text().startswith("max 100000")
    driver.create("new")
    assert driver.names("n") == ["new"]
    assert await driver.sweep("n") == ["new"]


def test_version_2_passes_controllers_on(root):
    for folder in (root, root / PARENT):
        (folder / "cgroup.subtree_control").write_text("")
    assert isinstance(find_v2(root, ""), V2Driver)
    for folder in (root, root / PARENT):
        assert (folder / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert not (root / "agent").exists()


def test_version_2_in_a_delegated_group_steps_aside(root, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    own = fill(root / "user" / "service", **{"cgroup.subtree_control": ""})
    fill(own / PARENT)
    fill(own / "agent")
    assert find_v2(root, "user/service").parent == own / PARENT
    assert (own / "agent" / "cgroup.procs").read_text() == "0"
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    # Started again from where it stepped to.
    assert find_v2(root, "user/service/agent").parent == own / PARENT


def test_version_2_without_controllers(root):
    (root / "cgroup.controllers").write_text("hugetlb pids")
    assert find_v2(root, "") == f"{root} has no memory controller"


def test_what_is_missing_is_said(tmp_path):
    mounts = tmp_path / "mountinfo"
    mounts.write_text("25 1 0:1 / /proc rw - proc proc rw\n")
    reason = find_cgroups(mounts=mounts, own=tmp_path / "none")
    assert reason == (
        "control groups cannot be used: version 1: no memory and pids controller is mounted; "
        "version 2: none is mounted"
    )
    read_only = tmp_path / "nowhere"
    mounts.write_text(
        f"26 25 0:2 / {read_only}/a rw - cgroup cgroup rw,cpu,cpuacct\n"
        f"27 25 0:3 / {read_only}/b rw - cgroup cgroup rw,memory\n"
        f"28 25 0:4 / {read_only}/c rw - cgroup cgroup rw,pids\n"
        f"29 25 0:5 / {tmp_path} rw - cgroup2 cgroup2 rw\n"
    )
    reason = find_cgroups(mounts=mounts, own=tmp_path / "none")
    assert "cannot be made: No such file or directory" in reason
    assert f"{tmp_path} cannot be read" in reason


@given(st.floats(0, 10_000))
def test_quotas_are_never_below_what_the_system_takes(cpu):
    quota = cgroupfiles.cpu_quota(cpu)
    assert quota >= 1000
    assert cpu < 0.01 or abs(quota - cpu * 100_000) <= 0.5
