"""The file of a run's claim and status: what is not complete is not there."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from backendai_mgr.shim import runfile


def test_a_claim_comes_before_a_status(tmp_path: Path) -> None:
    assert runfile.read(tmp_path) == (None, None)
    runfile.write_claim(str(tmp_path), {"run_id": "a"})
    assert runfile.read(tmp_path) == ({"run_id": "a"}, None)
    runfile.write_status(str(tmp_path), {"state": "finished"})
    assert runfile.read(tmp_path) == ({"run_id": "a"}, {"state": "finished"})


@pytest.mark.parametrize("cut", range(1, 22))
def test_a_line_that_was_not_completed_is_not_there_and_can_be_written_again(
    tmp_path: Path, cut: int
) -> None:
    runfile.write_claim(str(tmp_path), {"run_id": "a"})
    runfile.write_status(str(tmp_path), {"state": "finished"})
    file = tmp_path / runfile.NAME
    file.write_bytes(file.read_bytes()[:-cut])
    assert runfile.read(tmp_path) == ({"run_id": "a"}, None)
    runfile.write_status(str(tmp_path), {"state": "lost"})
    assert runfile.read(tmp_path) == ({"run_id": "a"}, {"state": "lost"})


def test_half_a_claim_is_none(tmp_path: Path) -> None:
    (tmp_path / runfile.NAME).write_bytes(b'{"run_id": "a"')
    assert runfile.read(tmp_path) == (None, None)
    (tmp_path / runfile.NAME).write_bytes(b"[]\n7\n")
    assert runfile.read(tmp_path) == (None, None)


def test_a_status_without_room_leaves_the_claim_alone(tmp_path: Path) -> None:
    runfile.write_claim(str(tmp_path), {"run_id": "a"})
    size = (tmp_path / runfile.NAME).stat().st_size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, limit[1]))
    try:
        with pytest.raises(OSError, match="large"):
            runfile.write_status(str(tmp_path), {"state": "finished"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / runfile.NAME).stat().st_size == size


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        runfile.write_status(str(tmp_path / "gone"), {})
