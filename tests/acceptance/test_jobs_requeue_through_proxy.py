"""A job without a message, as an operator meets it: readyz, list, show, trace, requeue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import main
from proxy.demo.redis_server import RedisServer
from tests.http1.process import wait_until
from tests.jobs_kit import PREFIX
from tests.jobs_site import App, JobSite, new
from tests.unit.test_requeue_messages import OLD, message

QUEUE = "make_video_queue"


@pytest.fixture
def site(redis_server: RedisServer, tmp_path: Path) -> Iterator[JobSite]:
    """An app that makes jobs and sends no messages, and no worker."""
    app = App(redis_server)
    requeue = {"queues": [QUEUE], "settle": "200ms"}
    mirror = {"requeue": requeue, "app_breaker": "1h"}
    with JobSite(tmp_path, redis_server, app.upstream.url, mirror=mirror) as one:
        one.proxy.config["trace"] = {"sqlite": str(tmp_path / "trace.db")}
        one.proxy.stop()
        one.config["trace"] = one.proxy.config["trace"]
        one.start_proxy()
        one.wait_live()
        yield one
    app.stop()


def test_an_operator_finds_the_job_and_starts_it_again(
    site: JobSite, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing proves that nobody works on it, so it takes force; then its message is there."""
    job_id = site.created()

    def unattended() -> bool:
        return bool((site.shown(job_id).get("work") or {}).get("unattended"))

    wait_until(unattended, "what is known of the job")
    assert site.shown(job_id)["work"]["reason"] == "message_missing"

    def checked() -> bool:
        check = site.admin("/readyz")[1]["checks"]["mirror:make_video:workers"]
        return not check["ok"] and "nobody works on 1 jobs" in check["detail"]

    wait_until(checked, "a check that informs")
    assert site.admin("/readyz")[1]["ready"]

    def cause() -> Any:
        return (site.admin(f"/api/trace/{job_id}")[1].get("suspected_cause") or {}).get("kind")

    wait_until(lambda: cause() == "unattended", "the cause")

    to = ["--admin", f"http://127.0.0.1:{site.proxy.admin_port}"]
    assert main.main(["jobs", "requeue", job_id, *to]) == 1
    assert "it may be worked on (queued, and without a message" in capsys.readouterr().err
    path = f"/api/jobs/make_video/{job_id}/requeue"
    status, problem = site.admin(path, {"reason": "test"})
    assert (status, problem["code"]) == (409, "requeue_refused")
    assert "without a message" in problem["evidence"]
    status, problem = site.admin(path, {"reason": "test", "force": True})
    assert "no message of this job was seen" in problem["detail"]

    other = new(OLD)  # a job of the same kind, whose message shows the shape
    site.redis.set(PREFIX + OLD, other, ex=86400)
    site.wait_known(OLD)
    site.redis.lpush(QUEUE, message())
    wait_until(lambda: site.admin(path, {"reason": "x", "force": True})[0] == 200, "a shape")
    bodies = [json.loads(one)["headers"]["kwargsrepr"] for one in site.redis.lrange(QUEUE, 0, -1)]
    assert bodies == [repr({"job_id": OLD}), repr({"job_id": job_id})]
    status, problem = site.admin(path, {"reason": "again", "force": True})
    assert (status, problem["code"]) == (409, "requeue_refused")
    assert "its message is in the queue" in problem["detail"]


def test_what_is_over_never_starts_again(site: JobSite) -> None:
    """Finished and deleted jobs, forced or not; unknown ones are 404."""
    finished, gone = site.created(), site.created()
    site.redis.set(PREFIX + finished, new(finished, "completed"), ex=86400)
    site.wait_known(finished, "completed")
    site.delete(gone)
    for job_id in (finished, gone):
        path = f"/api/jobs/make_video/{job_id}/requeue"
        status, problem = site.admin(path, {"reason": "test", "force": True})
        assert (status, problem["code"]) == (409, "requeue_refused")
        assert "finished, deleted or not known" in problem["detail"]
    assert site.admin("/api/jobs/make_video/mv_none/requeue", {"reason": "test"})[0] == 404
    assert site.redis.llen(QUEUE) == 0
