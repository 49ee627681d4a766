"""Reads of an app that is known to answer nobody come from the mirror, without a wait for each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from proxy.demo.redis_server import RedisServer, free_port
from tests.http1.client import RawClient
from tests.http1.message import Response
from tests.http1.process import wait_until
from tests.http1.site import get
from tests.jobs_kit import PREFIX
from tests.jobs_site import NOT_FOUND, App, JobSite, new, routes

#: As long as no test lasts: who waits for it fails.
FOR_EVER = "10m"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real redis-server for all tests of this file."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def app(server: RedisServer) -> Iterator[App]:
    """The app behind the proxy."""
    app = App(server)
    yield app
    app.stop()


def mirrored(response: Response) -> Any:
    """The JSON of an answer that the mirror gave."""
    assert response.status == 200, response.body
    assert response.get("X-Job-Source") == "sqlite"
    return json.loads(response.body)


def known(site: JobSite, job_id: str) -> None:
    """A job in both stores."""
    site.redis.set(PREFIX + job_id, new(job_id), ex=600)
    site.wait_known(job_id)


def test_a_refusing_app_is_not_waited_for(
    server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Neither `fallback_after` nor `connect_patience` passes before any of the reads is answered;
    an app that comes up takes the next one."""
    port = free_port()
    with JobSite(
        tmp_path_factory.mktemp("site"),
        server,
        f"http://127.0.0.1:{port}",
        route_list=routes(fallback_after=FOR_EVER),
        upstream={"connect_patience": FOR_EVER},
    ) as site:
        known(site, "mv_1")
        for _ in range(20):
            assert mirrored(site.read("mv_1"))["status"] == "queued"
        assert mirrored(site.listed())["total"] >= 1
        with RawClient(site.address) as patient:  # what the mirror does not know is the app's
            patient.send(get("/jobs/mv_nobody"))
            assert mirrored(site.read("mv_1"))["job_id"] == "mv_1"
            app = App(server, port=port)
            try:
                found = patient.response()
                assert (found.status, json.loads(found.body)) == (404, NOT_FOUND)
                assert json.loads(site.read("mv_1").body)["from"] == "app"
            finally:
                app.stop()
        site.proxy.assert_sane()


def test_a_silent_app_costs_one_request_the_wait(
    server: RedisServer, app: App, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One read at a time finds out whether a hung app is back; the others do not even reach it."""
    with JobSite(
        tmp_path_factory.mktemp("site"),
        server,
        app.upstream.url,
        route_list=routes(fallback_after="2s"),
    ) as site:
        known(site, "mv_1")
        assert json.loads(site.read("mv_1").body)["from"] == "app"
        app.answering.clear()
        assert mirrored(site.read("mv_1"))  # after the two seconds; now it is known
        before = len(app.upstream.requests)
        with RawClient(site.address) as probe:
            probe.send(get("/jobs/mv_1"))
            wait_until(lambda: len(app.upstream.requests) > before, "the probing request")
            at_once = 0
            with RawClient(site.address) as other:
                while len(app.upstream.requests) == before + 1 and at_once < 50:
                    other.send(get("/jobs/mv_1"))
                    assert mirrored(other.response())
                    at_once += 1
            assert at_once > 5, "within the two seconds of one probe"
            answer = probe.response()
            assert answer.get("X-Job-Source") == "sqlite"
        app.answering.set()

        def back() -> bool:
            return bool(json.loads(site.read("mv_1").body).get("from") == "app")

        wait_until(back, "reads from the app again")
        assert json.loads(site.read("mv_1").body)["from"] == "app"
        wait_until(
            lambda: any(line.get("rescued_from") == "away" for line in site.proxy.log()),
            "a line about a rescue",
        )
        site.proxy.assert_sane()
