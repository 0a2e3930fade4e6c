"""Log lines: one per record, with ids."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from backendai_mgr.runtime.logging import JsonFormatter, LoggingConfig, TextFormatter, setup_logging


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
    """The root logger as it was, afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
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
