"""Logging of the whole process: one JSON object per line, written by one thread.

Rules:
1. Every line has the basic fields (`FIELDS`), so that jq and ELK see one schema. Extra fields never
   replace them.
2. Every line has a correlation ID: that of its exchange (`extra={"correlation_id": ...}`), or else
   the ID of this run of the process.
3. Lines are ASCII: control characters that a peer sent reach a terminal only as `\\uXXXX`.
4. Logging never raises or blocks. A line that cannot be formatted or kept is counted.
5. The level applies to our own loggers. Libraries stay at INFO, because some (aiosqlite) log every
   statement at DEBUG. uvloop's warnings about writes to a client that has just left are dropped:
   the access line has status 499.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Protocol

from pythonjsonlogger.json import JsonFormatter

from proxy.core.clock import iso_utc
from proxy.core.headers import new_correlation_id
from proxy.telemetry.logs import access
from proxy.telemetry.logs.access import AccessLog
from proxy.telemetry.logs.outputs import Output, open_output
from proxy.telemetry.logs.writer import LogWriter

FIELDS = (
    "timestamp",
    "level",
    "logger",
    "message",
    "module",
    "function",
    "line",
    "correlation_id",
)
OPTIONAL_FIELDS = ("exception", "stack")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
FLUSH_TIMEOUT = 2.0  # seconds that a shutdown waits for a slow reader

_OWN_LOGGERS = ("proxy", access.LOGGER)
_CLIENT_LEFT = frozenset({"SSL connection is closed", "socket.send() raised exception"})
_RENAMED = {"exc_info": "exception", "stack_info": "stack"}

logger = logging.getLogger(__name__)


class LineFormatter(JsonFormatter):
    """python-json-logger with our field names. Times are UTC, ISO 8601, milliseconds."""

    def __init__(self, run_id: str) -> None:
        super().__init__(json_serializer=_serialize)
        self._run_id = run_id

    def add_fields(
        self,
        log_data: dict[str, Any],
        record: logging.LogRecord,
        message_dict: dict[str, Any],
    ) -> None:
        extras: dict[str, Any] = {}
        super().add_fields(extras, record, message_dict)
        extras.pop("message", None)  # set below, in its place; a dict message has none
        log_data.update(
            timestamp=iso_utc(record.created),
            level=record.levelname,
            logger=record.name,
            message=record.getMessage(),
            module=record.module,
            function=record.funcName,
            line=record.lineno,
            correlation_id=str(getattr(record, "correlation_id", None) or self._run_id),
        )
        for name, value in extras.items():
            log_data.setdefault(_RENAMED.get(name, name), value)


def _serialize(data: dict[str, Any], **options: Any) -> str:
    """Strict JSON: ASCII, no NaN. Values that JSON cannot represent become their `repr`."""
    options.update(ensure_ascii=True, allow_nan=False)
    try:
        line = json.dumps(data, **options)
    except (TypeError, ValueError, RecursionError):
        line = json.dumps({str(k): v if k in FIELDS else repr(v) for k, v in data.items()})
    return line.replace("\x7f", "\\u007f")


def _is_worth_logging(record: logging.LogRecord) -> bool:
    return record.msg not in _CLIENT_LEFT


class WriterHandler(logging.Handler):
    """Passes log records to the writer thread."""

    def __init__(self, writer: LogWriter, run_id: str) -> None:
        super().__init__()
        self._writer = writer
        self.setFormatter(LineFormatter(run_id))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # an argument's __str__ may raise; the caller must not notice
            self._writer.count_drop()
            return
        self._writer.put(line.encode("ascii", "backslashreplace") + b"\n")


class LogControl(Protocol):
    """What a proxy needs of its logging."""

    access: AccessLog

    @property
    def level(self) -> str: ...
    @property
    def lines_dropped(self) -> int: ...
    def set_level(self, level: str) -> None: ...
    def redirect(self, output: Output) -> None: ...


class Logs:
    """The logging of the process until `close`. Replaces the handlers of the root logger.

    `output` is `stdout` or a file name; raises `OSError` if the file cannot be opened. `run_id` is
    the correlation ID of every line outside an exchange.
    """

    def __init__(
        self, level: str = "INFO", output: str = "stdout", *, run_id: str | None = None
    ) -> None:
        self.run_id = run_id or new_correlation_id()
        self.writer = LogWriter(open_output(output), on_gap=_report_gap)
        self.access = AccessLog(self.writer)
        self._handler = WriterHandler(self.writer, self.run_id)
        root = logging.getLogger()
        self._before = (root.handlers[:], root.level)
        root.handlers[:] = [self._handler]
        logging.captureWarnings(True)
        logging.getLogger("asyncio").addFilter(_is_worth_logging)
        self.set_level(level)

    @property
    def level(self) -> str:
        """One of `LEVELS`."""
        return self._level

    def set_level(self, level: str) -> None:
        """Change the level of all our loggers, access lines (INFO) included, at once.

        Raises `ValueError` for a level that is not in `LEVELS`.
        """
        if level not in LEVELS:
            raise ValueError(f"expected one of {', '.join(LEVELS)}, found {level!r}")
        self._level = level
        number = logging.getLevelNamesMapping()[level]
        for name in _OWN_LOGGERS:
            logging.getLogger(name).setLevel(number)
        logging.getLogger().setLevel(max(number, logging.INFO))
        self.access.enabled = number <= logging.INFO

    @property
    def lines_dropped(self) -> int:
        """Lines lost since the start, because the buffer was full or the output broken."""
        return self.writer.dropped

    def reopen(self) -> None:
        """Reopen the log file before the next line (SIGUSR1); does nothing for standard output."""
        self.writer.reopen()

    def redirect(self, output: Output) -> None:
        """Write to another output (see `outputs.open_output`) from the next line on."""
        self.writer.redirect(output)

    def close(self, timeout: float = FLUSH_TIMEOUT) -> bool:
        """Write what is left within `timeout` seconds, and restore the root logger. False if lines
        were lost."""
        in_time = self.writer.close(timeout)
        logging.captureWarnings(False)
        logging.getLogger("asyncio").removeFilter(_is_worth_logging)
        root = logging.getLogger()
        root.handlers[:] = self._before[0]
        root.setLevel(self._before[1])
        for name in _OWN_LOGGERS:
            logging.getLogger(name).setLevel(logging.NOTSET)
        return in_time


def _report_gap(lost: int) -> None:
    logger.warning("log lines were dropped", extra={"lines_dropped": lost})
