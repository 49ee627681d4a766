"""Redis, app, worker and proxy are killed at random under a stream of uploads: every job that got
a 202 is worked on to its end, and never by two at once.

1. The worker is a real Celery worker, the app the demo's stand-in, each with the service's own
   Redis breaker, its time shortened to `BREAKER`.
2. Redis comes back in one of three ways: empty, with everything, or with a snapshot taken earlier.
3. `CHAOS_SECONDS` makes a run longer, `CHAOS_SEEDS` (comma-separated) makes others.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from proxy.demo.redis_server import RedisServer, free_port
from tests.celery_worker.kit import CeleryWorker, ran_twice_at_once, runs
from tests.http1 import PATIENCE
from tests.jobs_kit import PREFIX
from tests.jobs_site import JobSite, StandIn, client_of, routes

pytest.importorskip("celery")

SECONDS = float(os.environ.get("CHAOS_SECONDS", "10"))
SEEDS = [int(one) for one in os.environ.get("CHAOS_SEEDS", "3,34").split(",")]
BREAKER = 2
FINISH_WITHIN = 90.0  # seconds after the last kill, on a busy machine
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Chaos:
    """One run."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.server = RedisServer(directory / "redis", free_port())
        self.server.start()
        self.app = StandIn(
            directory / "app", self.server,
            *("--connection-limit", "0", "--exit-every", "0"),
            *("--breaker-open-for", str(BREAKER), "--redis-timeout", "1"),
        )  # fmt: skip
        self.worker = CeleryWorker(
            directory, self.server, BREAKER_OPEN_FOR=str(BREAKER), STEP="0.1"
        )
        self.app.start()
        self.worker.start()
        route_list = routes("1s")
        route_list[0]["path"] = "/download"
        self.site = JobSite(
            directory / "site", self.server, self.app.url, route_list=route_list,
            mirror={
                "app_breaker": f"{BREAKER}s",
                "requeue": {"settle": "1s", "spacing": "1s", "attempts": 10},
            },
        )  # fmt: skip
        self.accepted: list[str] = []
        self.killed: dict[int, float] = {}
        self.kills: list[str] = []
        self.stopping = threading.Event()
        self.clients = threading.Thread(target=self._upload, name="chaos-clients")

    # --- clients ---------------------------------------------------------------------------------

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, Any]:
        """Status (0: cut short) and JSON."""
        link = http.client.HTTPConnection(*self.site.address, timeout=PATIENCE)
        try:
            link.request(method, path, body, FORM if body else {})
            answer = link.getresponse()
            return answer.status, json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            return 0, None
        finally:
            link.close()

    def _upload(self) -> None:
        while not self.stopping.wait(0.4):
            status, answer = self.ask("POST", "/download", "query=cats+and+dogs&max_shorts=10")
            assert status in (0, 202, 500, 502, 503), (status, answer)
            if status == 202:
                self.accepted.append(answer["job_id"])

    # --- kills -----------------------------------------------------------------------------------

    def kill_redis_empty(self) -> None:
        self._restart_redis(None)

    def kill_redis_whole(self) -> None:
        """As with an append-only file: what was taken is there again."""
        self._save()
        self._restart_redis(self.server.directory / "dump.rdb")

    def kill_redis_old(self) -> None:
        """With the last snapshot, some kills ago."""
        snapshot = self.directory / "old.rdb"
        self._restart_redis(snapshot if snapshot.exists() else None)
        self._save()
        shutil.copy(self.server.directory / "dump.rdb", snapshot)

    def _save(self) -> None:
        client = client_of(self.server)
        client.save()
        client.close()

    def _restart_redis(self, snapshot: Path | None) -> None:
        kept = self.directory / "kept.rdb"
        if snapshot is not None:
            shutil.copy(snapshot, kept)
        self.server.kill()
        (self.server.directory / "dump.rdb").unlink(missing_ok=True)
        if snapshot is not None:
            shutil.copy(kept, self.server.directory / "dump.rdb")
        time.sleep(self.random.uniform(0, 1.5))
        self.server.start()

    def kill_app(self) -> None:
        self.app.kill()
        self.app.start()

    def kill_worker(self) -> None:
        if self.worker.pid is not None:
            self.killed[self.worker.pid] = time.time()
        self.worker.kill()
        time.sleep(self.random.uniform(0, 1))
        self.worker.start()

    def kill_proxy(self) -> None:
        self.site.kill_proxy()
        self.site.start_proxy()

    def run(self) -> None:
        """Kills until the time is over: each kind at least once, in an order of the seed's."""
        self.clients.start()
        every = [
            *(self.kill_redis_empty, self.kill_redis_whole, self.kill_redis_old),
            *(self.kill_app, self.kill_worker, self.kill_proxy),
        ]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for kill in self.random.sample(every, len(every)):
                time.sleep(self.random.uniform(0.3, 2))
                kill()
                self.kills.append(kill.__name__)
        self.stopping.set()
        self.clients.join(PATIENCE)

    # --- the end ---------------------------------------------------------------------------------

    def unfinished(self) -> dict[str, Any]:
        """Accepted jobs that are not completed, by what the proxy says of them."""
        found = {}
        for job_id in self.accepted:
            status, answer = self.ask("GET", f"/jobs/{job_id}")
            if status != 200 or answer["status"] != "completed":
                found[job_id] = (status, answer)
        return found

    def stop(self) -> None:
        self.stopping.set()
        self.worker.kill()
        self.app.kill()
        self.site.proxy.stop()
        self.site.redis.close()
        self.server.kill()

    def timeline(self, job_id: str) -> str:
        """What the log and the worker say of a job, for a failed test."""
        lines = [
            line
            for line in self.site.proxy.output().splitlines()
            if job_id in line and '"logger":"access"' not in line
        ]
        ran = [str(one) for one in runs(self.worker.runs) if one[1] == job_id]
        state = self.site.state()["requeue"]
        client = client_of(self.server)
        broker = [client.llen("make_video_queue"), client.hgetall("unacked")]
        connections = [(one["cmd"], one["flags"]) for one in client.client_list()]
        client.close()
        shown = self.site.shown(job_id).get("work") if job_id else None
        return "\n".join([*ran, *lines[-12:], f"{state} {shown} {broker} {connections}"])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_every_accepted_job_finishes_once(seed: int, tmp_path: Path) -> None:
    """0 unknown, 0 that never finish, 0 that ran twice at the same time, every 202 true."""
    chaos = Chaos(seed, tmp_path)
    try:
        chaos.run()
        deadline = time.monotonic() + FINISH_WITHIN
        while (left := chaos.unfinished()) and time.monotonic() < deadline:
            time.sleep(0.5)
        first = next(iter(left), "")
        assert left == {}, f"{chaos.kills}\n{left}\n{chaos.timeline(first)}"
        assert ran_twice_at_once(chaos.worker.runs, chaos.killed) == []
        assert len(chaos.accepted) > 5
        client = client_of(chaos.server)
        statuses = [json.loads(client.get(PREFIX + one))["status"] for one in chaos.accepted]
        client.close()
        assert set(statuses) == {"completed"}
        begun = [job_id for what, job_id, _, _ in runs(chaos.worker.runs) if what == "begins"]
        print(len(chaos.accepted), "accepted,", len(begun), "runs,", chaos.kills)
    finally:
        chaos.stop()
