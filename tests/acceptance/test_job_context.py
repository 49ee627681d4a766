"""The worker's calls carry the correlation ID of the job that they are made for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.demo.redis_server import RedisServer, free_port
from tests.http1.client import RawClient
from tests.http1.message import Response
from tests.http1.process import wait_until
from tests.http1.site import get, post
from tests.http1.upstream import Upstream
from tests.jobs_kit import PREFIX
from tests.jobs_site import App, JobSite, new


class Sites:
    """Two sidecars on one Redis: one at the app, one at the worker."""

    def __init__(self, path: Path, server: RedisServer, app: App) -> None:
        self.search = Upstream()
        self.port = free_port()
        egress = {
            "bind": f"127.0.0.1:{self.port}",
            "direction": "egress",
            "routes": [{"name": "search", "path": "/{rest:*}", "upstream": "search"}],
        }
        more = {
            "listeners": {"search": egress},
            "upstreams": {"search": {"targets": [self.search.url]}},
        }
        self.app = JobSite(path / "app", server, app.upstream.url)
        self.worker = JobSite(path / "worker", server, app.upstream.url, more=more)

    def call(self, *fields: str) -> Response:
        """A worker's poll, twice on one connection: the second may go the short way."""
        with RawClient(("127.0.0.1", self.port)) as client:
            for _ in range(2):
                client.send(get("/jobs/7", *fields))
                response = client.response("GET")
        return response

    def logged(self, correlation_id: str, job_id: str) -> None:
        """Every access line of that ID at the worker names the job."""

        def lines() -> list[object]:
            log = self.worker.proxy.log()
            return [
                one.get("job_id")
                for one in log
                if one.get("correlation_id") == correlation_id and "duration_ms" in one
            ]

        wait_until(lambda: len(lines()) >= 2, f"two access lines of {correlation_id}")
        assert set(lines()) == {job_id}

    def create(self, correlation_id: str) -> str:
        """A job of that creation, on its way."""
        made = self.app.ask(post(b"x", "/make-video", f"X-Correlation-ID: {correlation_id}"))
        return str(json.loads(made.body)["job_id"])

    def work_on(self, job_id: str, status: str = "processing") -> None:
        """The worker has written that status, and the sidecar there has seen it."""
        self.worker.redis.set(PREFIX + job_id, new(job_id, status), ex=600)
        self.worker.wait_known(job_id, status)


@pytest.fixture
def sites(tmp_path: Path, redis_server: RedisServer) -> Iterator[Sites]:
    """Both sidecars, the app and a microservice."""
    app = App(redis_server)
    sites = Sites(tmp_path, redis_server, app)
    with sites.app, sites.worker:
        yield sites
    sites.search.stop()
    app.stop()


def test_a_call_carries_its_job(sites: Sites) -> None:
    """The creation's ID goes upstream and into the log, with the job's beside it, across sidecars
    and across a restart of the one at the worker; in doubt, and over the caller's own, it does
    not."""
    job_id = sites.create("creation-1")
    sites.work_on(job_id)
    wait_until(
        lambda: sites.call().get("X-Correlation-ID") == "creation-1", "a call of the creation's"
    )
    received = sites.search.requests[-1]
    assert received.get("X-Correlation-ID") == "creation-1"
    sites.logged("creation-1", job_id)

    assert sites.call("X-Correlation-ID: my-own").get("X-Correlation-ID") == "my-own"
    sites.logged("my-own", job_id)

    sites.worker.kill_proxy()
    sites.worker.start_proxy()
    wait_until(
        lambda: sites.call().get("X-Correlation-ID") == "creation-1", "the same after a restart"
    )

    sites.work_on(sites.create("creation-2"))
    assert sites.call().get("X-Correlation-ID") not in ("creation-1", "creation-2")
    sites.work_on(job_id, "completed")
    wait_until(
        lambda: sites.call().get("X-Correlation-ID") == "creation-2", "a call of the other job's"
    )
    sites.worker.delete(job_id)
