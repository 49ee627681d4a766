"""Starts and kills real Celery workers, and sends them jobs as the app does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from proxy.demo.redis_server import RedisServer
from tests.http1.message import PATIENCE

QUEUE = "make_video_queue"
TASK = "app.infrastructure.celery_tasks.process_make_video"


class CeleryWorker:
    """A worker process of pool solo. `environment` sets steps, pauses and the breaker's time."""

    def __init__(
        self, directory: Path, server: RedisServer, node: str = "one", **environment: str
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.runs = directory / "runs"
        self.runs.touch()
        self._log = directory / f"worker-{node}.log"
        self._node = node
        self._environment = {
            **os.environ,
            "REDIS_URL": server.url,
            "RUNS": str(self.runs),
            **environment,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process while it runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start; returns at once."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "celery", "-A", "tests.celery_worker.tasks", "worker"),
                    *("--pool=solo", "--concurrency=1", f"--queues={QUEUE}", "--loglevel=info"),
                    *("--without-mingle", "-n", f"{self._node}@test"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )

    def kill(self) -> None:
        """kill -9. Does nothing when not running."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it finishes what it works on."""
        self._end(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP, as a process that hangs."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(PATIENCE)

    def tail(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-3000:]


def runs(path: Path) -> list[tuple[str, str, int, float]]:
    """(begins | ends | missed, job, pid, time) of every run so far."""
    found = []
    for line in path.read_text().splitlines():
        what, job_id, pid, at = line.split()
        found.append((what, job_id, int(pid), float(at)))
    return found


def ran_twice_at_once(path: Path, killed: dict[int, float]) -> list[str]:
    """Jobs of which two runs overlap. `killed`: process to when it was killed, which ends its
    run."""
    spans: dict[str, list[tuple[float, float]]] = {}
    open_runs: dict[tuple[str, int], float] = {}
    for what, job_id, pid, at in runs(path):
        if what == "begins":
            open_runs[job_id, pid] = at
        elif what == "ends" and (job_id, pid) in open_runs:
            spans.setdefault(job_id, []).append((open_runs.pop((job_id, pid)), at))
    for (job_id, pid), began in open_runs.items():
        spans.setdefault(job_id, []).append((began, killed.get(pid, float("inf"))))
    wrong = []
    for job_id, found in spans.items():
        found.sort()
        if any(later[0] < earlier[1] for earlier, later in pairwise(found)):
            wrong.append(f"{job_id}: {found}")
    return wrong


class Producer:
    """The app's end of the queue, by Celery itself."""

    def __init__(self, server: RedisServer, prefix: str = "") -> None:
        celery = pytest.importorskip("celery")
        self.app: Any = celery.Celery("app", broker=server.url, backend=server.url)
        self.app.conf.update(
            task_default_queue=QUEUE,
            broker_transport_options={"global_keyprefix": prefix},
            broker_connection_timeout=1,
        )

    def send(self, job_id: str) -> str:
        """The message of one job; its task id."""
        return str(self.app.send_task(TASK, kwargs={"job_id": job_id}, queue=QUEUE).id)

    def close(self) -> None:
        """Let go of its connections."""
        self.app.close()


@contextmanager
def producing(server: RedisServer, prefix: str = "") -> Iterator[Producer]:
    """A producer that is closed at the end."""
    producer = Producer(server, prefix)
    try:
        yield producer
    finally:
        producer.close()
