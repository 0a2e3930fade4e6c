"""Log output: one record per line on standard error or in a file, with the ids of what the record is about.

Code logs with ``logging.getLogger(__name__)`` and gives ids as ``extra={"session": …, "run": …}``; they show
as ``session=… run=…`` in text and as members in JSON. A record's line breaks are escaped, so nothing that a
user's program or a peer says can forge a line.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TextIO

import attrs

from .config import ByteSize, ConfigError, Problem
from .logfile import SharedFileHandler

#: Members of ``extra`` that are shown, in this order.
IDS = ("worker", "request", "session", "run", "kernel", "agent")


Level = Literal["NOTSET", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
_ROTATION_SIZE = ByteSize(10 << 20)
_MOST_BACKUPS = 100

#: In files of Backend.AI the name of its own loggers; here it stands for ours.
_ORIGINAL = "ai.backend"
_OURS = "backendai_mgr"

#: They tell of each request and connection; our own records say what matters.
_CHATTY = ("hypercorn", "httpx", "httpcore", "asyncio", "quart")


@attrs.frozen(kw_only=True)
class ConsoleLogConfig:
    """Lines for people on standard error. ``simple`` leaves out the time, which journals know themselves;
    ``colored``: levels have colours where a terminal shows them."""

    colored: bool = True
    format: Literal["simple", "verbose"] = "verbose"


@attrs.frozen(kw_only=True)
class FileLogConfig:
    """One JSON object per line in ``path/filename``. The folder is made if absent. A file that would grow
    over ``rotation_size`` bytes is renamed to ``.1``, and ``backup_count`` such are kept."""

    path: Path
    filename: str
    backup_count: int = 5
    rotation_size: ByteSize = _ROTATION_SIZE

    def __attrs_post_init__(self) -> None:
        if not self.filename or "/" in self.filename:
            raise ValueError(f"filename must be the name of a file in `path`, not {self.filename!r}")
        if not 1 <= self.backup_count <= _MOST_BACKUPS:
            raise ValueError(f"backup-count must be from 1 to {_MOST_BACKUPS}, not {self.backup_count}")
        if self.rotation_size <= 0:
            raise ValueError("rotation-size must be more than 0")


@attrs.frozen(kw_only=True)
class LoggingConfig:
    """What is logged, where and how; a table of both TOML files.

    ``format`` is that of standard error: lines for people, or one JSON object per line. ``drivers``: where
    records go. ``pkg_ns``: levels of single loggers, by name, which count for those below it as well.
    """

    level: Level = "INFO"
    format: Literal["text", "json"] = "text"
    drivers: tuple[Literal["console", "file", "logstash"], ...] = ("console",)
    pkg_ns: Mapping[str, Level] = attrs.Factory(dict)
    console: ConsoleLogConfig = ConsoleLogConfig()
    file: FileLogConfig | None = None


def logging_contradictions(config: LoggingConfig) -> Iterator[Problem]:
    """What does not go together."""
    if "file" in config.drivers and config.file is None:
        yield Problem(("logging", "file"), ' is missing; the driver "file" needs it')


def logging_cautions(config: LoggingConfig) -> Iterator[Problem]:
    """What may not be meant."""
    if "logstash" in config.drivers:
        yield Problem(
            ("logging", "drivers"),
            ': "logstash" has no effect here; have the file or standard error collected',
        )
    if config.file is not None and "file" not in config.drivers:
        yield Problem(("logging", "file"), ' has no effect while `logging.drivers` does not hold "file"')


def setup_logging(config: LoggingConfig, *, worker: str | None = None, stream: TextIO | None = None) -> None:
    """Send this process's records of that level and above where *config* says, and only there.

    Those of a *worker* that is one of several carry its name. *stream* is taken for standard error.
    `ConfigError` when the log file cannot be had.
    """
    handlers: list[logging.Handler] = []
    if "file" in config.drivers and config.file is not None:
        handlers.append(_file_handler(config.file))
    if "console" in config.drivers or not handlers:
        handlers.append(_console_handler(config, sys.stderr if stream is None else stream))
    if worker is not None:
        for handler in handlers:
            handler.addFilter(_Names(worker))
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, SharedFileHandler):
            handler.close()
    root.handlers[:] = handlers
    # Levels of an earlier call are not those of this one.
    for known in root.manager.loggerDict.values():
        if isinstance(known, logging.Logger):
            known.setLevel(logging.NOTSET)
    root.setLevel(config.pkg_ns.get("", config.level))
    for chatty in _CHATTY:
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
    for name, level in config.pkg_ns.items():
        logging.getLogger(_local_name(name)).setLevel(level)


def _local_name(logger: str) -> str:
    return _OURS if logger == _ORIGINAL or logger.startswith(f"{_ORIGINAL}.") else logger


def _console_handler(config: LoggingConfig, stream: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    colored = config.console.colored and stream.isatty()
    text = TextFormatter(timed=config.console.format == "verbose", colored=colored)
    handler.setFormatter(JsonFormatter() if config.format == "json" else text)
    return handler


def _file_handler(config: FileLogConfig) -> logging.Handler:
    path = config.path / config.filename
    try:
        config.path.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise ConfigError(f"The log file {path} cannot be written: {error.strerror}.") from error
    handler = SharedFileHandler(path, size=config.rotation_size, backups=config.backup_count)
    handler.setFormatter(JsonFormatter())
    return handler


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


_COLORS = {"DEBUG": 36, "INFO": 32, "WARNING": 33, "ERROR": 31, "CRITICAL": 35}


class TextFormatter(logging.Formatter):
    """``TIME LEVEL logger: message [id=value …]``, a traceback after the message, its line breaks escaped.

    The time may be left out, and the level may have a terminal's colour.
    """

    def __init__(self, *, timed: bool = True, colored: bool = False) -> None:
        super().__init__()
        self._timed = timed
        self._colored = colored

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        ids = "".join(f" {name}={value}" for name, value in _ids(record).items())
        line = f"{record.name}: {text}{ids}".replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
        when = f"{_time(record)} " if self._timed else ""
        return f"{when}{self._level(record.levelname)} {line}"

    def _level(self, name: str) -> str:
        return f"\033[{_COLORS[name]}m{name}\033[0m" if self._colored and name in _COLORS else name


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
