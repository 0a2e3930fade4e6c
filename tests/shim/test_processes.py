"""Which processes are below another one, in both ways of finding out."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from backendai_mgr.shim import processes

#: Starts children from its main thread and from another, one of which has a child of its own in another
#: session; says their pids, and waits.
FAMILY = """
import subprocess, sys, threading
def sleep(*prefix):
    return subprocess.Popen([*prefix, "sleep", "600"]).pid
found = [sleep()]
thread = threading.Thread(target=lambda: (found.append(sleep()), done.set(), leave.wait()))
done, leave = threading.Event(), threading.Event()
thread.start()
done.wait()
nested = subprocess.Popen(["sh", "-c", "setsid sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
found += [nested.pid, int(nested.stdout.readline())]
print(*found, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("find", [processes.descendants, processes._found_among_all])
def test_descendants(find: Callable[[int], list[int]]) -> None:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", FAMILY], text=True, **pipes) as family:  # type: ignore
        assert family.stdout is not None
        below = {int(pid) for pid in family.stdout.readline().split()}
        assert len(below) == 4
        try:
            assert set(find(family.pid)) == below
            assert below < set(find(os.getpid()))
        finally:
            processes.kill([*below, family.pid])
    assert find(family.pid) == []
