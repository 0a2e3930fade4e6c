"""The results file: when and where, and the rows."""

import json
import os
import platform
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import attrs

from .figures import Row

FORMAT = 1


class ResultsError(Exception):
    """The file holds no results; the message is for whoever named it."""


@attrs.frozen
class Results:
    machine: dict[str, Any]
    rows: list[Row]

    def write(self, path: Path) -> None:
        found = {"format": FORMAT, "machine": self.machine, "rows": [attrs.asdict(row) for row in self.rows]}
        path.write_text(json.dumps(found, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Results":
        try:
            found = json.loads(path.read_text())
            if found["format"] != FORMAT:
                raise ResultsError(f"{path} has the format {found['format']}, not {FORMAT}.")
            return cls(found["machine"], [Row.load_from(row) for row in found["rows"]])
        except OSError as error:
            raise ResultsError(f"{path} cannot be read: {error.strerror}.") from None
        except (ValueError, LookupError, TypeError):
            raise ResultsError(f"{path} holds no results of a benchmark.") from None


def this_machine() -> dict[str, Any]:
    """What figures depend on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpus": len(os.sched_getaffinity(0)),
        "cpu": _cpu_model(),
        "memory_gib": round(memory / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1) if found else platform.machine()


def select(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names in which one of the patterns (as of file names) occurs; all when there is no pattern."""
    return [name for name in names if not patterns or any(fnmatchcase(name, f"*{p}*") for p in patterns)]
