"""Redis, the app and the proxy are killed at random while jobs are created, updated and deleted.

1. A job is accepted when the client has read its 202, deleted when it has read that 200; requests
   cut short by a kill are neither, and their jobs are left out.
2. A worker writes versions straight into Redis. One is certain once the mirror was following for
   half a second after it, or if Redis did not die since: what Redis took and lost before anybody
   could hear of it cannot be kept by anyone.
3. `JOBS_CHAOS_SECONDS` makes the run longer than the 12 s that a test may take, `JOBS_CHAOS_SEED`
   makes it another one.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from proxy.core.clock import iso_utc
from proxy.demo.redis_server import RedisServer, free_port
from tests.http1 import PATIENCE
from tests.http1.process import wait_until
from tests.jobs_kit import PREFIX
from tests.jobs_site import JobSite, StandIn, client_of, new, routes

SECONDS = float(os.environ.get("JOBS_CHAOS_SECONDS", "12"))
SEED = int(os.environ.get("JOBS_CHAOS_SEED", "11"))
SETTLE = 0.5
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Chaos:
    """One run. `step` until the time is over, then `calm_down` and compare."""

    def __init__(self, seed: int, site: JobSite, app: StandIn, server: RedisServer) -> None:
        self.random = random.Random(seed)
        self.site, self.app, self.server = site, app, server
        self.alive: set[str] = set()
        self.deleted: set[str] = set()
        self.versions: dict[str, list[tuple[float, int]]] = {}  # job: (when written, version)
        self.certain: dict[str, int] = {}
        self.counts = dict.fromkeys(("created", "refused", "cut", "deleted", "kills"), 0)
        self.follows_since: float | None = time.monotonic()
        self.redis_since = time.monotonic()
        self.disturbed = ""
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.worker = threading.Thread(target=self._work, name="chaos-worker")

    # --- what clients and workers do ------------------------------------------------------------

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

    def create(self) -> None:
        status, answer = self.ask("POST", "/download", "query=cats+and+dogs&max_shorts=10")
        assert status in (0, 202, 500, 502, 503), (status, answer)
        self.counts["created" if status == 202 else "refused" if status else "cut"] += 1
        if status == 202:
            with self.lock:
                self.alive.add(answer["job_id"])

    def delete(self) -> None:
        with self.lock:
            job_id = self.random.choice(sorted(self.alive)) if self.alive else None
            if job_id is None:
                return
            self.alive.discard(job_id)
        status, _ = self.ask("DELETE", f"/jobs/{job_id}")
        if status == 200:
            self.counts["deleted"] += 1
            with self.lock:
                self.deleted.add(job_id)

    def read(self) -> None:
        """An accepted job is never unknown, whatever has just been killed."""
        with self.lock:
            job_id = self.random.choice(sorted(self.alive)) if self.alive else None
        if job_id is not None:
            status, answer = self.ask("GET", f"/jobs/{job_id}")
            assert status in (0, 200), (status, answer)

    def _work(self) -> None:
        """50 versions a second; now and then of a job that was deleted meanwhile."""
        chance = random.Random(0)
        client = client_of(self.server)
        number = 0
        while not self.stopping.wait(0.02):
            with self.lock:
                pool = sorted(self.deleted if chance.random() < 0.1 else self.alive)
            if not pool:
                continue
            number += 1
            job_id = chance.choice(pool)
            stages = {"s": {"started_at": time.time()}}
            value = new(job_id, "processing", stages=stages, version=number)
            try:
                client.set(PREFIX + job_id, value, ex=86400)
            except redis.RedisError:
                continue
            with self.lock:
                self.versions.setdefault(job_id, []).append((time.monotonic(), number))
        client.close()

    # --- kills ------------------------------------------------------------------------------------

    def kill_redis(self) -> None:
        with self.lock:
            if self.follows_since is not None:
                self._settle(time.monotonic() - SETTLE, self.follows_since + SETTLE)
            self.follows_since = None
        self.server.kill()
        time.sleep(self.random.uniform(0, 0.6))
        self.server.start()
        self.redis_since = time.monotonic()
        self.disturbed = iso_utc(time.time())

    def kill_app(self) -> None:
        self.app.kill()
        for _ in range(3):
            self.read()
        self.app.start()

    def kill_proxy(self) -> None:
        self.follows_since = None
        self.site.kill_proxy()
        self.site.start_proxy()

    def _settle(self, until: float, after: float) -> None:
        """What this life of Redis took up to `until` is certain, if that is not before `after`."""
        if until < after:
            return
        for job_id, written in self.versions.items():
            for when, version in written:
                if self.redis_since <= when <= until:
                    self.certain[job_id] = max(version, self.certain.get(job_id, 0))

    def step(self) -> None:
        """One action of a client; sometimes a kill in the middle of one."""
        if self.follows_since is None:
            state = self.site.state()
            # A comparison from before the kill says nothing: the loss may not be noticed yet.
            if state["whole"] and (state["last_sync"] or "") > self.disturbed:
                self.follows_since = time.monotonic()
        action = self.random.choices((self.create, self.read, self.delete), (6, 3, 1))[0]
        kills = (self.kill_redis, self.kill_app, self.kill_proxy)
        if self.random.random() < 0.03:
            self._kill_during(action, self.random.choice(kills))
        else:
            action()

    def _kill_during(self, action: Callable[[], None], kill: Callable[[], None]) -> None:
        self.counts["kills"] += 1
        beside = threading.Thread(target=action, name="chaos-client")
        beside.start()
        time.sleep(self.random.uniform(0, 0.01))
        kill()
        beside.join(15)

    def bring_about(self) -> None:
        """What a slow machine did not come to by chance."""
        if not self.counts["cut"]:
            self._kill_during(self.create, self.kill_proxy)
        elif not self.counts["refused"]:
            self._kill_during(self.create, self.kill_app)
        elif not self.counts["deleted"]:
            self.delete()
        else:  # the worker's versions become certain
            self.read()

    # --- the end ----------------------------------------------------------------------------------

    def calm_down(self) -> None:
        """Nothing is killed or written any more."""
        self.stopping.set()
        self.worker.join(PATIENCE)
        self.site.wait_live(20)
        self._settle(time.monotonic(), self.redis_since)

    def enough(self) -> bool:
        """Whether every kind of trouble was there, and jobs enough to lose.

        What the present life of Redis took becomes certain if nothing is killed from here on.
        """
        with self.lock:
            lately = {
                job_id
                for job_id, written in self.versions.items()
                if written[-1][0] >= self.redis_since
            }
        return min(self.counts.values()) > 0 and len(lately | self.certain.keys()) > 10

    def compare(self) -> str:
        """What is wrong; empty when all is well."""
        client = client_of(self.server)
        with sqlite3.connect(f"file:{self.site.sqlite}?mode=ro", uri=True) as store:
            rows = dict(store.execute("SELECT job_id, data FROM jobs"))
        store.close()
        wrong = []
        for job_id in self.alive:
            value = client.get(PREFIX + job_id)
            if value is None or job_id not in rows:
                wrong.append(f"{job_id}: redis {value is not None}, sqlite {job_id in rows}")
                continue
            if json.loads(value) != json.loads(rows[job_id]):
                wrong.append(f"{job_id}: versions differ")
            if json.loads(value).get("version", 0) < self.certain.get(job_id, 0):
                wrong.append(f"{job_id}: {value!r} is older than {self.certain[job_id]}")
        for job_id in self.deleted:
            if client.exists(PREFIX + job_id) or job_id in rows:
                wrong.append(f"{job_id}: deleted, and back")
        client.close()
        return "\n".join(wrong)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [SEED])
def test_no_accepted_job_is_lost_and_no_deleted_one_rises(seed: int, tmp_path: Path) -> None:
    """In the end both stores agree on every accepted job, in its newest certain version."""
    server = RedisServer(tmp_path / "redis", free_port())
    server.start()
    app = StandIn(
        tmp_path / "app", server,
        *("--connection-limit", "0", "--exit-every", "0"),
        *("--breaker-open-for", "1", "--redis-timeout", "1"),
    )  # fmt: skip
    app.start()
    route_list = routes("1s")
    route_list[0]["path"] = "/download"
    try:
        with JobSite(
            tmp_path / "site", server, app.url, route_list=route_list, mirror={"app_breaker": "1s"}
        ) as site:
            chaos = Chaos(seed, site, app, server)
            chaos.worker.start()
            try:
                end = time.monotonic() + SECONDS
                while time.monotonic() < end:
                    chaos.step()
                latest = time.monotonic() + PATIENCE
                while not chaos.enough() and time.monotonic() < latest:
                    chaos.bring_about()
            finally:
                chaos.calm_down()
            wait_until(lambda: not chaos.compare(), f"agreement:\n{chaos.compare()[:3000]}")
            assert chaos.enough(), (chaos.counts, len(chaos.certain))
            site.proxy.assert_sane()
            print(chaos.counts, sum(map(len, chaos.versions.values())), "versions")
    finally:
        app.kill()
        server.kill()
