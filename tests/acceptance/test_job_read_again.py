"""A job that the app denies although it is known: the app is asked again, with whatever is safe."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from redis import Redis

from proxy.demo.redis_server import RedisServer
from proxy.jobs.reads import READ_PATIENCE
from tests.http1 import Connection, Request, Site, get, ok, respond, wait_until

ROUTE = {
    "name": "job",
    "path": "/jobs/{job_id}",
    "upstream": "app",
    "job": {"mirror": "m", "reads": "job_id"},
}


@pytest.mark.parametrize("body", [b"", b"x"], ids=["plain", "with a body"])
def test_a_denied_job_is_asked_for_again(
    tmp_path: Path, redis_server: RedisServer, body: bytes
) -> None:
    """The second answer is the client's. A body that is gone cannot be sent again: then the
    mirror answers in the app's place."""
    line = Path("tests/fixtures/job-life-success.jsonl").read_text().splitlines()[0]
    document = json.loads(line)
    with Site(
        tmp_path,
        {"front": {"routes": [ROUTE]}},
        app={"breaker": {}},
        redis={"url": redis_server.url},
        mirrors={"m": {"key": "job:{job_id}", "sqlite": str(tmp_path / "jobs.db")}},
    ) as site:
        value = json.dumps(document.get("value", document) | {"id": "mv_1", "status": "queued"})
        with Redis.from_url(redis_server.url) as client:
            client.set("job:mv_1", value, ex=3600)
        wait_until(lambda: "mv_1" in site.proxy.admin("/api/jobs")[1], "the job in SQLite")

        denials = 0

        def deny_once(connection: Connection, request: Request) -> None:
            nonlocal denials
            connection.body(request)
            if denials:
                denials -= 1
                connection.send(respond(b"{}", "404 Not Found"))
            else:
                ok(connection, request)

        site.upstream.handler = deny_once
        while True:
            denials, before = 1, len(site.upstream.requests)
            began = time.monotonic()
            response = site.ask(get("/jobs/mv_1", f"Content-Length: {len(body)}") + body)
            # A mirror that was kept from looking for its whole patience leaves the app's word.
            if time.monotonic() - began < READ_PATIENCE:
                break
        assert response.status == 200
        assert response.get("X-Job-Source") == ("sqlite" if body else "redis")
        asked = [request.get("X-Retry-Count") for request in site.upstream.requests[before:]]
        assert asked == ([None] if body else [None, None])
        assert site.proxy.breaker("app")["failures"] == 0
        site.check()
