"""The log of a running proxy, and what happens when nobody takes it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from tests.http1 import PATIENCE
from tests.http1.process import free_port, wait_until


class Running:
    """A proxy before an upstream that is not there: every request is a quick 502."""

    def __init__(self, directory: Path, output: str, stdout: int | IO[bytes], *before: str) -> None:
        self.port, self.admin = free_port(), free_port()
        config: dict[str, Any] = {
            "listeners": {
                "front": {
                    "bind": f"127.0.0.1:{self.port}",
                    "routes": [{"name": "all", "path": "/{rest:*}", "upstream": "app"}],
                }
            },
            "upstreams": {"app": {"targets": [f"http://127.0.0.1:{free_port()}"]}},
            "admin": {"bind": f"127.0.0.1:{self.admin}"},
            "logging": {"output": output},
        }
        file = directory / "proxy.json"
        file.write_text(json.dumps(config))
        command = [sys.executable, "-m", "proxy", "run", "--config", str(file)]
        self.process = subprocess.Popen([*before, *command], stdout=stdout)

    def get(self, path: str, port: int = 0, data: bytes | None = None) -> tuple[int, str]:
        """Status and correlation ID, or 0."""
        url = f"http://127.0.0.1:{port or self.port}{path}"
        try:
            with urllib.request.urlopen(url, data, timeout=PATIENCE) as reply:
                return reply.status, reply.headers["X-Correlation-ID"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["X-Correlation-ID"]
        except OSError:
            return 0, ""

    def dropped(self) -> int:
        """The count of lost lines."""
        url = f"http://127.0.0.1:{self.admin}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith("proxy_log_lines_dropped_total "):
                    return int(float(line.split()[1]))
        raise AssertionError("no such metric")


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a proxy, which is ended after the test."""
    started: list[Running] = []

    def begin(
        output: str = "stdout", stdout: int | IO[bytes] = subprocess.DEVNULL, *before: str
    ) -> Running:
        running = Running(tmp_path, output, stdout, *before)
        started.append(running)
        wait_until(lambda: running.get("/readyz", running.admin)[0] == 200, "a ready proxy")
        return running

    yield begin
    for running in started:
        running.process.kill()
        running.process.wait(PATIENCE)


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    """Two ends; the test closes what it likes."""
    reading, writing = os.pipe()
    try:
        yield reading, writing
    finally:
        for fd in (reading, writing):
            with suppress(OSError):
                os.close(fd)


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log file, which must all be whole."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_rotated_file_loses_no_line(start: Start, tmp_path: Path) -> None:
    """Rename, SIGUSR1, rename without a signal, SIGTERM: each exchange has one line somewhere."""
    path = tmp_path / "proxy.log"
    running = start(str(path))
    sent = []
    for number in range(3):
        if number:
            path.rename(tmp_path / f"proxy.log.{number}")
        if number == 1:
            running.process.send_signal(signal.SIGUSR1)
            wait_until(path.exists, "a new file after SIGUSR1")
        for _ in range(20):
            status, correlation_id = running.get(f"/x?token=abc{number}")
            assert status == 502
            sent.append(correlation_id)
        wait_until(lambda: path.exists() and sent[-1] in path.read_text(), "the last line")
    running.process.terminate()
    assert running.process.wait(PATIENCE) == 0
    found = [line for file in tmp_path.glob("proxy.log*") for line in lines(file)]
    access = [line for line in found if line["logger"] == "access"]
    assert sorted(line["correlation_id"] for line in access) == sorted(sent)
    assert {line["path"] for line in access} == {"/x?token=***"}
    assert {line["code"] for line in access} == {"upstream_unreachable"}
    others = {line["correlation_id"] for line in found if line["logger"].startswith("proxy.app.")}
    assert len(others) == 1


def test_a_reader_that_went_away_does_not_matter(start: Start) -> None:
    """A closed pipe: requests are answered, lines counted, the end is orderly."""
    with pipe() as (reading, writing):
        running = start("stdout", writing)
        os.close(writing)
        os.close(reading)
        for _ in range(5):
            assert running.get("/x")[0] == 502
        wait_until(lambda: running.dropped() >= 5, "counted lines")
        running.process.terminate()
        assert running.process.wait(PATIENCE) == 0


def test_a_reader_that_does_not_read_does_not_matter(start: Start) -> None:
    """A full pipe: requests are answered as before, and SIGTERM still ends the process."""
    with pipe() as (_, writing):
        os.set_blocking(writing, False)
        try:
            while True:
                os.write(writing, b"\n" * 65536)
        except BlockingIOError:
            os.set_blocking(writing, True)
        running = start("stdout", writing)
        for _ in range(20):
            assert running.get("/x")[0] == 502
        running.process.terminate()
        assert running.process.wait(PATIENCE) == 0


def test_no_standard_output_at_all(start: Start) -> None:
    """Started with descriptor 1 closed: the sockets that get low numbers see no log line."""
    running = start("stdout", subprocess.DEVNULL, "/bin/sh", "-c", 'exec "$@" >&- 2>&-', "sh")
    for _ in range(5):
        assert running.get("/x")[0] == 502


def test_the_level_changes_while_running(start: Start, tmp_path: Path) -> None:
    """Through the admin API: WARNING ends the access lines at once, INFO brings them back."""
    path = tmp_path / "proxy.log"
    running = start(str(path))
    seen = []
    for level in ("WARNING", "INFO"):
        data = json.dumps({"level": level}).encode()
        assert running.get("/api/log-level", running.admin, data)[0] == 200
        seen.append(running.get("/x")[1])
    wait_until(lambda: seen[1] in path.read_text(), "the second line")
    assert seen[0] not in path.read_text()
