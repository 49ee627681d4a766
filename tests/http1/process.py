"""The proxy as an operator runs it: `python -m proxy run --config FILE` in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy.demo.redis_server import free_port
from tests.http1.message import PATIENCE


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Poll another process's state until `condition` holds, or fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain for {what}")
        time.sleep(0.01)


class ProxyProcess:
    """A running proxy. `config` is the file's content; the admin address is added to it.

    `module` is what to run; `HTTP1_MODULE` in the environment says it for all that do not.
    `descriptors` is the most file descriptors that it may have.
    """

    def __init__(
        self,
        directory: Path,
        config: dict[str, Any],
        *,
        ready: bool = True,
        module: str | None = None,
        descriptors: int | None = None,
    ) -> None:
        self.admin_port = free_port()
        self.config = {**config, "admin": {"bind": f"127.0.0.1:{self.admin_port}"}}
        self.file = directory / "proxy.json"
        self.write(self.config)
        self._out = directory / "stdout.log"
        self._err = directory / "stderr.log"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    module or os.environ.get("HTTP1_MODULE", "proxy"),
                    "run",
                    "--config",
                    str(self.file),
                ],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
            )
        if descriptors is not None:  # the interpreter takes longer to start than this
            limits = (descriptors, descriptors)
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, limits)
        if ready:
            try:
                self.wait_ready()
            except BaseException:
                self.stop()
                raise

    def write(self, config: dict[str, Any]) -> None:
        """Replace the config file; a signal makes the proxy read it."""
        self.file.write_text(json.dumps(config, indent=1))

    @property
    def pid(self) -> int:
        """Of the proxy."""
        return self.process.pid

    def admin(self, path: str) -> tuple[int, str]:
        """GET from the admin door: status (0: no answer) and text."""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.admin_port}{path}", timeout=PATIENCE
            ) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except (OSError, urllib.error.URLError):
            return 0, ""

    def admin_post(self, path: str, document: dict[str, Any] | None = None) -> tuple[int, Any]:
        """POST to the admin door: status and the JSON answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.admin_port}{path}",
            json.dumps(document or {}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def breaker(self, name: str) -> dict[str, Any]:
        """One row of `GET /api/breakers`."""
        rows = json.loads(self.admin("/api/breakers")[1])["breakers"]
        return next(row for row in rows if row["name"] == name)

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of a sample with at least these labels; None where there is none."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        for line in self.admin("/metrics")[1].splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(pair in sample for pair in wanted):
                return float(value)
        return None

    def wait_ready(self) -> None:
        """Until `/readyz` is 200; a process that ends before, or does not get there, is shown with
        what it output."""

        def ready() -> bool:
            if self.process.poll() is not None:
                raise AssertionError(f"proxy ended with {self.process.returncode}: {self.output()}")
            return self.admin("/readyz")[0] == 200

        try:
            wait_until(ready, "a ready proxy")
        except AssertionError as error:
            raise AssertionError(f"{error}; it output: {self.output()}") from None

    def output(self) -> str:
        """Everything on stdout and stderr so far."""
        return self._out.read_text(errors="replace") + self._err.read_text(errors="replace")

    def log(self) -> list[dict[str, Any]]:
        """The JSON lines so far."""
        lines = self._out.read_text(errors="replace").split("\n")[:-1]
        return [json.loads(line) for line in lines if line.startswith("{")]

    def access_line(self, correlation_id: str) -> dict[str, Any]:
        """The access line of one exchange, waited for (lines are written in batches)."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [
                line
                for line in self.log()
                if line.get("correlation_id") == correlation_id and "duration_ms" in line
            ]
            return bool(found)

        wait_until(there, f"the access line of {correlation_id}")
        assert len(found) == 1, found
        return found[0]

    def descriptors(self) -> int:
        """Open file descriptors."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def take_descriptors(self) -> tuple[int, int]:
        """Let the proxy open no more from now on; the limits it had. The three that the limit
        leaves are the standard streams; what is open beyond stays."""
        hard = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)[1]
        return resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (3, hard))

    def give_descriptors(self, limits: tuple[int, int]) -> None:
        """Set the limits of descriptors."""
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, limits)

    def threads(self) -> int:
        """Operating system threads."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def memory(self) -> int:
        """Resident memory in bytes."""
        fields = Path(f"/proc/{self.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the proxy alone."""
        self.process.send_signal(number)

    def assert_sane(self) -> None:
        """Alive, and never a traceback, a warning of Python's or a 500 of its own making."""
        assert self.process.poll() is None, f"proxy ended: {self.output()[-3000:]}"
        output = self.output()
        for mark in ("Traceback (most recent call last)", "internal_error", "was never awaited",
                     "never retrieved", "unclosed transport"):  # fmt: skip
            assert mark not in output, output[max(0, output.find(mark) - 500) :][:4000]

    def stop(self, patience: float = PATIENCE) -> int:
        """SIGTERM, then SIGKILL after `patience` seconds; the exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(patience)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait(PATIENCE)
