"""Log output: one record per line on standard error, with the ids of what the record is about.

Code logs with ``logging.getLogger(__name__)`` and gives ids as ``extra={"session": …, "run": …}``; they show
as ``session=… run=…`` in text and as members in JSON. A record's line breaks are escaped, so nothing that a
user's program or a peer says can forge a line.
"""

import json
import logging
import sys
import time
from typing import Any, Literal, TextIO

import attrs

#: Members of ``extra`` that are shown, in this order.
IDS = ("worker", "request", "session", "run", "kernel", "agent")


@attrs.frozen(kw_only=True)
class LoggingConfig:
    """What is logged, and how: lines for people, or one JSON object per line. A table of both TOML files."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    format: Literal["text", "json"] = "text"


def setup_logging(config: LoggingConfig, *, worker: str | None = None, stream: TextIO | None = None) -> None:
    """Send this process's records of that level and above to *stream* (standard error), and only there.

    Those of a *worker* that is one of several carry its name.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    if worker is not None:
        handler.addFilter(_Names(worker))
    handler.setFormatter(JsonFormatter() if config.format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level)
    # They tell of each request and connection; our own records say what matters.
    for chatty in ("hypercorn", "httpx", "httpcore", "asyncio", "quart"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))


class _Names(logging.Filter):
    def __init__(self, worker: str) -> None:
        super().__init__()
        self._worker = worker

    def filter(self, record: logging.LogRecord) -> bool:
        record.worker = self._worker
        return True


def _ids(record: logging.LogRecord) -> dict[str, str]:
    found = ((name, getattr(record, name, None)) for name in IDS)
    return {name: str(value) for name, value in found if value is not None}


def _time(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """``TIME LEVEL logger: message [id=value …]``, a traceback after the message, its line breaks escaped."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        ids = "".join(f" {name}={value}" for name, value in _ids(record).items())
        line = f"{_time(record)} {record.levelname} {record.name}: {text}{ids}"
        return line.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


class JsonFormatter(logging.Formatter):
    """One JSON object: ``time``, ``level``, ``logger``, ``message``, the ids, and ``exception`` if any."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_ids(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
