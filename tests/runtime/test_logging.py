"""Log lines: one per record, with ids."""

import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backendai_mgr.runtime.config import ByteSize, ConfigError
from backendai_mgr.runtime.logging import (
    ConsoleLogConfig,
    FileLogConfig,
    JsonFormatter,
    LoggingConfig,
    TextFormatter,
    setup_logging,
)


def record(message: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("backendai_mgr.test", logging.WARNING, __file__, 1, message, (), None)
    made.__dict__.update(extra)
    return made


def failure() -> logging.LogRecord:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        made = record("it broke")
        made.exc_info = (ValueError, error, error.__traceback__)
    return made


def test_text_has_time_level_logger_message_and_the_ids_given() -> None:
    line = TextFormatter().format(record("hello", session="s1", run="r1", unrelated="x"))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING backendai_mgr.test: hello session=s1 run=r1", line
    )


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_a_record_is_one_line_whatever_it_says(formatter: logging.Formatter) -> None:
    for made in (record("a\nforged line\r\n"), failure()):
        assert not set("\r\n") & set(formatter.format(made))


def test_json_has_the_same_as_members() -> None:
    line = json.loads(JsonFormatter().format(record("hello", agent="i-1", kernel=None)))
    assert line == {
        "time": line["time"],
        "level": "WARNING",
        "logger": "backendai_mgr.test",
        "message": "hello",
        "agent": "i-1",
    }


def test_json_keeps_the_traceback_apart() -> None:
    line = json.loads(JsonFormatter().format(failure()))
    assert line["message"] == "it broke"
    assert "ValueError: first\nsecond" in line["exception"]


@pytest.fixture
def own_root() -> Iterator[None]:
    """The root logger as it was, afterwards, and no other with a level of its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    setup_logging(LoggingConfig())
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("own_root")
def test_setting_up_replaces_what_was_set_up_before() -> None:
    first, second = io.StringIO(), io.StringIO()
    setup_logging(LoggingConfig(level="DEBUG"), stream=first)
    setup_logging(LoggingConfig(level="WARNING", format="json"), stream=second)
    logging.getLogger("x").info("too low")
    logging.getLogger("x").error("seen")
    assert first.getvalue() == ""
    assert [json.loads(line)["message"] for line in second.getvalue().splitlines()] == ["seen"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.usefixtures("own_root")
@pytest.mark.parametrize(
    ("stream", "config", "line"),
    [
        (Terminal(), LoggingConfig(), r"\d{4}-\S+Z \x1b\[31mERROR\x1b\[0m x: seen\n"),
        (io.StringIO(), LoggingConfig(), r"\d{4}-\S+Z ERROR x: seen\n"),
        (Terminal(), LoggingConfig(console=ConsoleLogConfig(colored=False)), r"\d{4}-\S+Z ERROR x: seen\n"),
        (io.StringIO(), LoggingConfig(console=ConsoleLogConfig(format="simple")), r"ERROR x: seen\n"),
        (io.StringIO(), LoggingConfig(drivers=("logstash",)), r"\d{4}-\S+Z ERROR x: seen\n"),
        (Terminal(), LoggingConfig(format="json"), r"\{.*\}\n"),
    ],
)
def test_the_console_as_it_is_wished(stream: io.StringIO, config: LoggingConfig, line: str) -> None:
    setup_logging(config, stream=stream)
    logging.getLogger("x").error("seen")
    assert re.fullmatch(line, stream.getvalue())


@pytest.mark.usefixtures("own_root")
def test_loggers_may_have_levels_of_their_own() -> None:
    levels: dict[str, Any] = {"": "WARNING", "ai.backend": "INFO", "asyncpg": "DEBUG", "httpx": "NOTSET"}
    stream = io.StringIO()
    setup_logging(LoggingConfig(level="ERROR", pkg_ns=levels), stream=stream)
    for name in ("other", "backendai_mgr.api", "asyncpg.pool", "hypercorn"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING):
            logging.getLogger(name).log(level, "seen")
    assert [line.split()[1:3] for line in stream.getvalue().splitlines()] == [
        ["WARNING", "other:"],
        ["INFO", "backendai_mgr.api:"],
        ["WARNING", "backendai_mgr.api:"],
        *(["DEBUG", "asyncpg.pool:"], ["INFO", "asyncpg.pool:"], ["WARNING", "asyncpg.pool:"]),
        ["WARNING", "hypercorn:"],
    ]
    again = io.StringIO()
    setup_logging(LoggingConfig(level="ERROR"), stream=again)
    logging.getLogger("asyncpg").warning("unseen: an earlier setting")
    assert again.getvalue() == ""


@pytest.mark.usefixtures("own_root")
def test_a_file_has_json_lines_beside_the_console_or_alone(tmp_path: Path) -> None:
    file = FileLogConfig(path=tmp_path / "new" / "folder", filename="x.log")
    stream = io.StringIO()
    setup_logging(LoggingConfig(drivers=("console", "file"), file=file), stream=stream)
    logging.getLogger("x").error("both", extra={"session": "s"})
    setup_logging(LoggingConfig(drivers=("file",), file=file), stream=stream)
    logging.getLogger("x").error("file")
    lines = [json.loads(line) for line in (file.path / "x.log").read_text().splitlines()]
    assert [(line["message"], line.get("session")) for line in lines] == [("both", "s"), ("file", None)]
    assert stream.getvalue().count("\n") == 1


@pytest.mark.usefixtures("own_root")
def test_a_log_file_that_cannot_be_had_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = FileLogConfig(path=tmp_path / "file" / "folder", filename="x.log")
    with pytest.raises(ConfigError, match=r"^The log file \S+x.log cannot be written: Not a directory\.$"):
        setup_logging(LoggingConfig(drivers=("file",), file=file))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"filename": "a/b"}, "filename must be"),
        ({"filename": ""}, "filename must be"),
        ({"backup_count": 0}, "backup-count must be from 1 to 100"),
        ({"backup_count": 101}, "backup-count must be from 1 to 100"),
        ({"rotation_size": ByteSize(0)}, "rotation-size must be more than 0"),
    ],
)
def test_a_wrong_setting_of_the_file_begins_with_its_key(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        FileLogConfig(**{"path": Path("/x"), "filename": "x.log", **values})
