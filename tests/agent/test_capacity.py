import os

import pytest

from backendai_mgr.agent.capacity import measure, occupied, offered
from backendai_mgr.domain.slots import Slots


@pytest.fixture
def meminfo(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:        2048 kB\nMemFree:         1024 kB\n")
    return path


def test_the_machine_has_its_processors_and_all_its_memory(meminfo):
    machine = measure(meminfo)
    assert machine.to_text() == {"cpu": str(len(os.sched_getaffinity(0))), "mem": "2097152"}


def test_this_machine_can_be_measured():
    assert Slots.parse({"cpu": 1, "mem": "64m"}) <= measure()


def test_a_memory_file_without_a_total_is_an_error(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemFree: 1 kB\n")
    with pytest.raises(OSError, match="MemTotal"):
        measure(path)


@pytest.mark.parametrize(
    ("overcommit", "reserved", "cpu", "mem"),
    [(1.0, 0, "2", "1000"), (2.5, 100, "5", "900"), (0.1, 1000, "0.2", "0"), (1.0, 2000, "2", "0")],
)
def test_processors_are_multiplied_and_memory_is_reserved(overcommit, reserved, cpu, mem):
    machine = Slots.parse({"cpu": 2, "mem": 1000})
    assert offered(machine, cpu_overcommit=overcommit, reserved_mem=reserved).to_text() == {
        "cpu": cpu,
        "mem": mem,
    }


def test_occupied_is_the_exact_sum():
    kernels = [{"cpu": "0.1", "mem": "1k"}, {"cpu": "0.2", "mem": "24"}, {"cuda.device": "1"}]
    assert occupied(kernels).to_text() == {"cpu": "0.3", "mem": "1048", "cuda.device": "1"}
    assert occupied([]).to_text() == {}
