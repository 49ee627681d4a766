"""Log lines: their fields, their correlation, and that nothing a peer sends can bend them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.telemetry.logs.access import FIELDS as ACCESS_FIELDS
from proxy.telemetry.logs.setup import FIELDS, LineFormatter, Logs, WriterHandler
from tests.telemetry_facts import Facts

TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Log:
    """The process's logging, into a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = Logs(output=str(path), run_id="run-1")

    def lines(self) -> list[dict[str, Any]]:
        """All lines so far."""
        assert self.logs.writer.flush(5)
        raw = self.path.read_bytes()
        assert raw.isascii()
        return [json.loads(line) for line in raw.decode().splitlines()]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """Logging set up, and put back afterwards."""
    log = Log(tmp_path / "log")
    yield log
    log.logs.close()


def test_an_ordinary_line_has_all_basic_fields_in_order(log: Log) -> None:
    """The fields of the contract come first, then the extras."""
    logging.getLogger("proxy.x").info("hello %s", "world", extra={"mirror": "make_video"})
    (line,) = log.lines()
    assert list(line) == [*FIELDS, "mirror"]
    assert TIMESTAMP.fullmatch(line["timestamp"])
    assert line["level"] == "INFO"
    assert line["logger"] == "proxy.x"
    assert line["message"] == "hello world"
    assert line["module"] == "test_telemetry_logs"
    assert line["function"] == "test_an_ordinary_line_has_all_basic_fields_in_order"
    assert isinstance(line["line"], int)
    assert line["mirror"] == "make_video"


def test_lines_outside_an_exchange_carry_the_run_id(log: Log) -> None:
    """Every line has a correlation ID: the given one, else that of the run."""
    logger = logging.getLogger("proxy.x")
    logger.info("started")
    logger.info("exchange", extra={"correlation_id": "c-9"})
    assert [line["correlation_id"] for line in log.lines()] == ["run-1", "c-9"]


def test_an_exception_is_one_field(log: Log) -> None:
    """A traceback stays within its line."""
    try:
        raise ValueError("multi\nline")
    except ValueError:
        logging.getLogger("proxy.x").exception("failed")
    (line,) = log.lines()
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: multi\nline")


def test_extras_never_replace_basic_fields(log: Log) -> None:
    """Not even when they have the same names."""
    extra = {"level": "X", "timestamp": "X", "logger": "X", "function": "X", "line": "X"}
    logging.getLogger("proxy.x").info({"message": "X", "level": "Y"}, extra=extra)
    (line,) = log.lines()
    assert line["level"] == "INFO"
    assert line["logger"] == "proxy.x"
    assert TIMESTAMP.fullmatch(line["timestamp"])


class Unspeakable:
    """Its string form fails."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_values_that_json_cannot_say_do_not_cost_the_line(log: Log) -> None:
    """NaN, bytes, sets, cycles and surrogates become text."""
    cycle: list[Any] = []
    cycle.append(cycle)
    logger = logging.getLogger("proxy.x")
    for value in (float("nan"), b"\xff", {1}, cycle, "\ud800\x7f\x1b", object()):
        logger.info("odd", extra={"value": value})
    assert [line["message"] for line in log.lines()] == ["odd"] * 6


def test_a_line_that_cannot_be_made_is_counted(log: Log) -> None:
    """Wrong arguments and failing string forms are the log's problem, not the caller's."""
    handler = WriterHandler(log.logs.writer, "run-1")
    for message, argument in (("%s", Unspeakable()), ("%d", "x")):
        handler.handle(
            logging.LogRecord("proxy.x", logging.INFO, "x.py", 1, message, (argument,), None)
        )
    assert log.lines() == []
    assert log.logs.lines_dropped == 2


def test_the_level_changes_at_run_time(log: Log) -> None:
    """Ordinary and access lines follow at once; libraries stay at INFO."""
    ours, theirs = logging.getLogger("proxy.x"), logging.getLogger("aiosqlite")
    access = log.logs.access.bind("ingress", "job-status")
    for level in ("INFO", "DEBUG", "WARNING"):
        log.logs.set_level(level)
        assert log.logs.level == level
        ours.debug(f"{level} ours debug")
        ours.info(f"{level} ours info")
        theirs.debug(f"{level} theirs debug")
        access(Facts(method=level))
    assert [line["message"] for line in log.lines()] == [
        "INFO ours info",
        "INFO job-status 200",
        "DEBUG ours debug",
        "DEBUG ours info",
        "DEBUG job-status 200",
    ]


def test_an_unknown_level_is_refused(log: Log) -> None:
    """And changes nothing."""
    with pytest.raises(ValueError, match="found 'LOUD'"):
        log.logs.set_level("LOUD")
    assert log.logs.level == "INFO"


def test_closing_gives_the_root_logger_back(tmp_path: Path) -> None:
    """Nothing of ours stays behind."""
    before = logging.getLogger().handlers[:]
    Log(tmp_path / "log").logs.close()
    assert logging.getLogger().handlers == before


# --- access lines -------------------------------------------------------------------------------


def test_an_access_line_has_the_whole_exchange(log: Log) -> None:
    """All fields of the contract, with the time at which the exchange ended."""
    log.logs.access.bind("ingress", "job-status")(Facts(connect_time=0.001, path="/j?key=abc"))
    (line,) = log.lines()
    assert list(line) == list(ACCESS_FIELDS)
    assert {*FIELDS} <= {*line}
    del line["line"]
    assert line == {
        "timestamp": "2026-11-23T16:19:17.250Z",
        "level": "INFO",
        "logger": "access",
        "message": "GET job-status 200",
        "module": "access",
        "function": "access",
        "correlation_id": "c-1",
        "listener": "ingress",
        "route": "job-status",
        "method": "GET",
        "path": "/j?key=***",
        "status": 200,
        "code": None,
        "duration_ms": 250.0,
        "upstream": "make-video",
        "target": "http://127.0.0.1:8005",
        "upstream_ms": 125.0,
        "connect_ms": 1.0,
        "attempts": 1,
        "bytes_in": 3,
        "bytes_out": 512,
        "client": "127.0.0.1:50000",
    }


def test_an_error_of_ours_is_explained(log: Log) -> None:
    """Code, reason, detail, the refused correlation ID and the facts of stages are in the line."""
    facts = Facts(
        status=502,
        code="upstream_reset",
        reason="eof",
        detail="broke\noff",
        upstream_time=None,
        client_correlation_id="bad id\x00" + "x" * 200,
        extra={"job_id": "mv_1", "status": 1, "verdict": {"odd": "é\x7f"}, "ratio": float("nan")},
    )
    log.logs.access.bind("ingress", "job-status")(facts)
    (line,) = log.lines()
    assert line["status"] == 502
    assert line["code"] == "upstream_reset"
    assert line["reason"] == "eof"
    assert line["detail"] == "broke\\noff"
    assert line["upstream_ms"] is None
    assert line["client_correlation_id"] == "bad id\\x00" + "x" * 121 + "..."
    assert line["job_id"] == "mv_1"
    assert line["verdict"] == {"odd": "é\x7f"}
    assert line["ratio"] is None


def test_the_second_of_a_line_is_its_own(log: Log) -> None:
    """The date that lines share is made anew in each second, forwards and back."""
    access = log.logs.access.bind("ingress", "job-status")
    for started_at in (1_795_450_757.999, 1_795_450_758.0004, 1_795_450_757.0):
        access(Facts(started_at=started_at, duration=0.0))
    assert [line["timestamp"][17:] for line in log.lines()] == [
        "17.999Z",
        "18.000Z",
        "17.000Z",
    ]


def test_facts_that_cannot_be_written_cost_their_line_only(log: Log) -> None:
    """A stage's mistake does not end the connection."""
    log.logs.access.bind("ingress", "job-status")(Facts(extra={"x": Unspeakable()}))
    assert log.lines() == []
    assert log.logs.lines_dropped == 1


@given(
    st.builds(
        Facts,
        method=st.text(),
        path=st.text(),
        client_correlation_id=st.none() | st.text(),
        code=st.none() | st.text(),
        detail=st.none() | st.text(),
        extra=st.none() | st.dictionaries(st.text(), st.text() | st.floats() | st.binary()),
    )
)
def test_hostile_facts_make_one_json_line_or_none(facts: Facts) -> None:
    """Whatever the strings hold: one line of ASCII, valid JSON, the fixed fields untouched."""
    from proxy.telemetry.logs.access import AccessLog

    lines: list[bytes] = []

    class Writer:
        put = staticmethod(lines.append)
        count_drop = staticmethod(lambda: lines.append(b""))

    AccessLog(Writer()).bind('in"gress', "job-status")(facts)  # type: ignore[arg-type]
    (raw,) = lines
    if raw:
        assert raw.count(b"\n") == 1
        assert raw.endswith(b"}\n")
        line = json.loads(raw)
        assert line["listener"] == 'in"gress'
        assert line["status"] == 200
        assert line["level"] == "INFO"


@given(st.text(), st.text())
def test_hostile_messages_make_one_ascii_line(message: str, extra: str) -> None:
    """Ordinary records likewise."""
    record = logging.LogRecord("proxy.x", logging.INFO, "x.py", 1, "%s", (message,), None)
    record.value = extra
    line = LineFormatter("run-1").format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == message
