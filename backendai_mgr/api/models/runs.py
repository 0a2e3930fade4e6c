"""Parameters and replies of runs, of the legacy execute call too (api-sessions §5.5, §5.8)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import attrs

from ...domain.errors import InvalidParameters
from ...services.runs import ExecuteResult, legacy_outcome
from ...wire.records import Record, to_json
from ...wire.rpc import RunSpec, RunStatus
from ..decoding import INVALID, Param, clean_text, printable

NOT_SUPPORTED = "is not supported by this version"
LONGEST_TIMEOUT = 100_000_000.0
LARGEST_OFFSET = 2**62
LONGEST_WAIT = 30.0
MOST_BYTES = 1 << 20

#: Modes of the original; those that cannot be used yet are refused by name.
LEGACY_MODES = ("query", "batch", "complete", "continue", "input")


def _timeout(seconds: float) -> None:
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise ValueError(f"value is not a number of seconds between 0 and {LONGEST_TIMEOUT:.0f}")


def _query_mode(mode: str) -> None:
    if mode != "query":
        raise ValueError(f"{printable(mode)!r} {NOT_SUPPORTED}")


def _not_supported(_: Any) -> None:
    raise ValueError(NOT_SUPPORTED)


@attrs.frozen(kw_only=True)
class PutRun:
    """The body of ``PUT …/runs/{run_id}``; ``timeout`` in seconds."""

    mode: Annotated[str, Param("mode", check=_query_mode)] = "query"
    code: str
    timeout: Annotated[float | None, Param("timeout", check=_timeout)] = None
    stdin: Annotated[Any, Param("stdin", check=_not_supported)] = None

    def spec(self, longest: int) -> RunSpec:
        """The run to start; its code has at most *longest* bytes."""
        return RunSpec(code=bounded_code(self.code, longest), timeout=self.timeout)


def bounded_code(code: str, longest: int) -> str:
    """*code*, unless it has more than *longest* bytes."""
    if len(code.encode()) > longest:
        raise InvalidParameters(INVALID, {"code": f"is larger than {longest} bytes"})
    return code


def _offset(offset: int) -> None:
    if not 0 <= offset <= LARGEST_OFFSET:
        raise ValueError("value is not an offset")


def _wait(seconds: float) -> None:
    if seconds > LONGEST_WAIT:
        raise ValueError(f"value is not between 0 and {LONGEST_WAIT:.0f}")


def _max_bytes(count: int) -> None:
    if not 1 <= count <= MOST_BYTES:
        raise ValueError(f"value is not between 1 and {MOST_BYTES}")


@attrs.frozen(kw_only=True)
class ReadOutput:
    """The query of ``GET …/output``: bytes and seconds."""

    offset: Annotated[int, Param("offset", check=_offset)] = 0
    wait: Annotated[float, Param("wait", check=_wait)] = 0.0
    max_bytes: Annotated[int, Param("max_bytes", check=_max_bytes)] = MOST_BYTES


@attrs.frozen(kw_only=True)
class FollowOutput:
    """The query of the output websocket."""

    offset: Annotated[int, Param("offset", check=_offset)] = 0


def check_within(run: RunStatus, offset: int) -> None:
    """Refuse to read past the end of a run that has ended."""
    if run.ended and offset > run.end_offset:
        raise InvalidParameters(INVALID, {"offset": "past the end of the finished run"})


def run_reply(run: RunStatus) -> dict[str, Any]:
    return attrs.asdict(run)


def records_reply(records: Sequence[Record], next_offset: int) -> dict[str, Any]:
    return {"records": [to_json(record) for record in records], "next_offset": next_offset}


def end_reply(run: RunStatus) -> dict[str, Any]:
    """The last frame of the output websocket."""
    return {
        "finished": True,
        "state": str(run.state),
        "exit_code": run.exit_code,
        "reason": run.reason,
    }


# ---------------------------------------------------------------- legacy


@attrs.frozen(kw_only=True)
class Execute:
    """The body of the legacy execute call."""

    mode: str
    run_id: str | None
    code: str


def parse_execute(given: Mapping[str, Any], longest: int) -> Execute:
    """Check the body by hand, as the original does, with its messages; ``options`` say nothing to a query."""
    if "runId" not in given:
        raise InvalidParameters("runId is missing!", {"runId": "is required"})
    mode, code = parse_code(given, longest)
    run_id = given["runId"]
    if run_id is None and mode in ("continue", "input"):
        raise InvalidParameters("continuation requires explicit run ID", {"runId": f"is required to {mode}"})
    if run_id is not None:
        run_id = _text(given, "runId")
    return Execute(mode=mode, run_id=run_id, code=code)


def parse_code(given: Mapping[str, Any], longest: int) -> tuple[str, str]:
    """Mode and code, which the legacy call and the first frame of the legacy websocket share."""
    if not given.get("mode"):
        raise InvalidParameters("mode is missing or empty!", {"mode": "is required"})
    mode = _text(given, "mode")
    if mode not in LEGACY_MODES:
        raise InvalidParameters("mode has an invalid value.", {"mode": f"{printable(mode)!r} is no mode"})
    if mode not in ("query", "continue"):
        raise InvalidParameters(f"mode {mode} {NOT_SUPPORTED}", {"mode": f"{mode!r} {NOT_SUPPORTED}"})
    code = "" if given.get("code") is None else _text(given, "code")
    if not isinstance(given.get("options"), dict | None):
        raise InvalidParameters(INVALID, {"options": "value is not an object"})
    return mode, bounded_code(code, longest)


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given[name]
    if not isinstance(value, str):
        raise InvalidParameters(INVALID, {name: "value is not a string"})
    try:
        return clean_text(value)
    except ValueError as error:
        raise InvalidParameters(INVALID, {name: str(error)}) from None


def execute_reply(result: ExecuteResult) -> dict[str, Any]:
    """The answer of the legacy execute call."""
    return {
        "result": {
            "runId": result.run_id,
            "status": result.status,
            "exitCode": result.exit_code,
            "options": result.options,
            "files": [],
            "console": result.console,
        }
    }


def execute_frame(console: list[list[Any]], ended: RunStatus | None = None) -> dict[str, Any]:
    """A frame of the legacy websocket: a step of a run that goes on, or its end."""
    status, exit_code = ("continued", None) if ended is None else legacy_outcome(ended)
    return {
        "status": status,
        "console": console,
        "exitCode": exit_code,
        "options": None,
        "files": [],
    }
