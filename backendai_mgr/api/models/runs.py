"""Parameters and replies of runs, of the legacy execute call too (api-sessions §5.5, §5.8)."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import attrs

from ...domain.errors import InvalidParameters
from ...services.runs import ExecuteResult
from ...wire.records import TEXT_STREAMS, Record, to_json
from ...wire.rpc import RunSpec, RunStatus
from ..decoding import INVALID, Param, clean_text, printable

LONGEST_TIMEOUT = 100_000_000.0
LARGEST_OFFSET = 2**62
LONGEST_WAIT = 30.0
MOST_BYTES = 1 << 20

#: Bytes of an answer or of a run's whole input, and of a command line.
LARGEST_INPUT = 1 << 20
LONGEST_LINE = 100_000
MOST_RUNS = 100

LEGACY_MODES = ("query", "batch", "complete", "continue", "input")


def _timeout(seconds: float) -> None:
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise ValueError(f"value is not a number of seconds between 0 and {LONGEST_TIMEOUT:.0f}")


def _short_input(text: str) -> None:
    if len(text.encode()) > LARGEST_INPUT:
        raise ValueError(f"value is larger than {LARGEST_INPUT} bytes")


def _line(line: str) -> None:
    if len(line.encode()) > LONGEST_LINE:
        raise ValueError(f"value is larger than {LONGEST_LINE} bytes")


@attrs.frozen(kw_only=True)
class PutRun:
    """The body of ``PUT …/runs/{run_id}``; ``timeout`` in seconds.

    A query has ``code``; a batch run has command lines for its steps. ``stdin`` is all the input there is.
    """

    mode: Literal["query", "batch"] = "query"
    code: str | None = None
    timeout: Annotated[float | None, Param("timeout", check=_timeout)] = None
    clean: Annotated[str | None, Param("clean", check=_line)] = None
    build: Annotated[str | None, Param("build", check=_line)] = None
    exec: Annotated[str | None, Param("exec", check=_line)] = None
    stdin: Annotated[str | None, Param("stdin", check=_short_input)] = None

    def spec(self, longest: int) -> RunSpec:
        """The run to start; its code has at most *longest* bytes."""
        steps = {"clean": self.clean, "build": self.build, "exec": self.exec}
        if self.mode == "query":
            faults = {step: "is for batch runs" for step, line in steps.items() if line is not None}
            if self.code is None:
                faults["code"] = "is required"
        elif self.code is not None:
            faults = {"code": "is for query runs"}
        else:
            faults = {} if any(steps.values()) else {"exec": "is required unless there is another step"}
        if faults:
            raise InvalidParameters(INVALID, faults)
        return RunSpec(
            mode=self.mode,
            code=bounded_code(self.code or "", longest),
            timeout=self.timeout,
            clean=self.clean or None,
            build=self.build or None,
            exec=self.exec or None,
            stdin=self.stdin,
        )


def _offset(offset: int) -> None:
    if not 0 <= offset <= LARGEST_OFFSET:
        raise ValueError("value is not an offset")


@attrs.frozen(kw_only=True)
class AnswerRun:
    """The body of ``POST …/runs/{run_id}/input``; ``text`` null is the end of all input."""

    text: Annotated[str | None, Param("text", check=_short_input)]
    offset: Annotated[int | None, Param("offset", check=_offset)] = None


def _limit(count: int) -> None:
    if not 1 <= count <= MOST_RUNS:
        raise ValueError(f"value is not between 1 and {MOST_RUNS}")


@attrs.frozen(kw_only=True)
class ListRuns:
    """The query of ``GET …/runs``."""

    limit: Annotated[int, Param("limit", check=_limit)] = 20
    after: str | None = None


def bounded_code(code: str, longest: int) -> str:
    """*code*, unless it has more than *longest* bytes."""
    if len(code.encode()) > longest:
        raise InvalidParameters(INVALID, {"code": f"is larger than {longest} bytes"})
    return code


def _wait(seconds: float) -> None:
    if seconds > LONGEST_WAIT:
        raise ValueError(f"value is not between 0 and {LONGEST_WAIT:.0f}")


def _max_bytes(count: int) -> None:
    if not 1 <= count <= MOST_BYTES:
        raise ValueError(f"value is not between 1 and {MOST_BYTES}")


def _streams(text: str) -> None:
    if unknown := [word for word in text.split(",") if word not in TEXT_STREAMS]:
        raise ValueError(f"{printable(unknown[0])!r} is not a stream")


@attrs.frozen(kw_only=True)
class FollowOutput:
    """The query of the output websocket: ``stream`` is a comma-separated list, none for all."""

    offset: Annotated[int, Param("offset", check=_offset)] = 0
    stream: Annotated[str | None, Param("stream", check=_streams)] = None

    @property
    def streams(self) -> Sequence[str]:
        return self.stream.split(",") if self.stream else ()


@attrs.frozen(kw_only=True)
class ReadOutput(FollowOutput):
    """The query of ``GET …/output``: bytes and seconds."""

    wait: Annotated[float, Param("wait", check=_wait)] = 0.0
    max_bytes: Annotated[int, Param("max_bytes", check=_max_bytes)] = MOST_BYTES


@attrs.frozen(kw_only=True)
class ResumeOutput:
    """What a client of server-sent events says that comes back."""

    offset: Annotated[int, Param("Last-Event-ID", check=_offset)]


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
    spec: RunSpec


def parse_execute(given: Mapping[str, Any], longest: int) -> Execute:
    """Check the body by hand, as the original does, with its messages."""
    if "runId" not in given:
        raise InvalidParameters("runId is missing!", {"runId": "is required"})
    mode, spec = parse_code(given, longest)
    run_id = given["runId"]
    if run_id is None and mode in ("continue", "input"):
        raise InvalidParameters("continuation requires explicit run ID", {"runId": f"is required to {mode}"})
    if run_id is not None:
        run_id = _text(given, "runId")
    return Execute(mode=mode, run_id=run_id, spec=spec)


def parse_code(given: Mapping[str, Any], longest: int) -> tuple[str, RunSpec]:
    """Mode and what to run (or, in its code, the answer): of the legacy call, and of its websocket's first
    frame."""
    if not given.get("mode"):
        raise InvalidParameters("mode is missing or empty!", {"mode": "is required"})
    mode = _text(given, "mode")
    if mode not in LEGACY_MODES:
        raise InvalidParameters("mode has an invalid value.", {"mode": f"{printable(mode)!r} is no mode"})
    code = "" if given.get("code") is None else _text(given, "code")
    options = given.get("options")
    if not isinstance(options, dict | None):
        raise InvalidParameters(INVALID, {"options": "value is not an object"})
    if mode == "batch":
        return mode, _batch(options or {})
    if mode == "input":
        longest = min(longest, LARGEST_INPUT)
    return mode, RunSpec(code=bounded_code(code, longest))


def _batch(options: Mapping[str, Any]) -> RunSpec:
    steps: dict[str, str | None] = {}
    faults: dict[str, str] = {}
    for step in ("clean", "build", "exec"):
        try:
            line = options.get(step)
            if not isinstance(line, str | None):
                raise ValueError("value is not a string")
            if line:
                _line(clean_text(line))
            steps[step] = line or None
        except ValueError as error:
            faults[f"options.{step}"] = str(error)
    if faults:
        raise InvalidParameters(INVALID, faults)
    return RunSpec(mode="batch", clean=steps["clean"], build=steps["build"], exec=steps["exec"])


def parse_completion(given: Mapping[str, Any], longest: int) -> tuple[str, int]:
    """Code, and the cursor in it: what the legacy options ``row``, ``col``, ``line`` and ``post`` tell.

    The official client sends a text whose line number ``row`` the cursor is in, at column ``col``.
    """
    code = "" if given.get("code") is None else _text(given, "code")
    options = given.get("options")
    if not isinstance(options, dict | None):
        raise InvalidParameters(INVALID, {"options": "value is not an object"})
    bounded_code(code, longest)
    row, column = (_place(options or {}, name) for name in ("row", "col"))
    if column is None:
        return code, len(code)
    lines = code.split("\n")
    row = min(len(lines) - 1 if row is None else row, len(lines) - 1)
    return code, sum(len(line) + 1 for line in lines[:row]) + min(column, len(lines[row]))


def _place(options: Mapping[str, Any], name: str) -> int | None:
    value = options.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidParameters(INVALID, {f"options.{name}": "value is not an integer from 0"})
    return value


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


def execute_frame(
    console: list[list[Any]], status: str, exit_code: int | None, options: Mapping[str, Any] | None
) -> dict[str, Any]:
    """A frame of the legacy websocket: a step of a run that goes on, or its end."""
    return {
        "status": status,
        "console": console,
        "exitCode": exit_code,
        "options": options,
        "files": [],
    }
