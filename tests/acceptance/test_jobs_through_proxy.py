"""Jobs through the real proxy, with a real Redis that dies, hangs and comes back empty."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from proxy.demo.redis_server import RedisServer
from tests.http1.client import RawClient
from tests.http1.message import PATIENCE, Response
from tests.http1.process import wait_until
from tests.http1.site import assert_problem, get, post
from tests.http1.upstream import respond
from tests.jobs_kit import INDEX, PREFIX, job, recording
from tests.jobs_site import JSON, NOT_FOUND, App, JobSite, new


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A real redis-server for all tests of this file."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def app(server: RedisServer) -> Iterator[App]:
    """The app behind the proxy."""
    app = App(server)
    yield app
    app.stop()


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, server: RedisServer, app: App
) -> Iterator[JobSite]:
    """One proxy for all tests that need nothing special."""
    with JobSite(tmp_path_factory.mktemp("site"), server, app.upstream.url) as site:
        yield site


@pytest.fixture
def site(shared: JobSite, app: App) -> Iterator[JobSite]:
    """The shared proxy, well before and sane after."""
    app.well()
    shared.wait_live()
    # A first lost job makes creations wait for `app_breaker`; that is one test's matter alone.
    wait_until(lambda: shared.create().status == 202, "creations")
    app.upstream.requests.clear()
    yield shared
    app.well()
    shared.proxy.assert_sane()
    assert app.upstream.faults == []


def document(response: Response, status: int = 200) -> Any:
    """The JSON of an answer with that status."""
    assert response.status == status, f"{response.raw_head!r} {response.body!r}"
    return json.loads(response.body)


def mirrored(response: Response, status: int = 200) -> Any:
    """The JSON of an answer that the mirror gave."""
    found = document(response, status)
    assert response.get("X-Job-Source") == "sqlite"
    assert str(response.get("X-Job-As-Of")).endswith("Z")
    assert response.get("Date")
    return found


# --- creations -----------------------------------------------------------------------------------


def test_an_accepted_job_is_in_both_stores(site: JobSite) -> None:
    """The row is there when the client has its 202: no wait, no second look."""
    for _ in range(20):
        job_id = site.created()
        assert site.shown(job_id)["status"] == "queued"
        assert site.redis.exists(PREFIX + job_id)


def test_a_job_that_was_not_stored_is_not_accepted(site: JobSite, app: App) -> None:
    """The app's 202 without a key becomes 503, on a connection that stays usable."""
    app.lying = True
    with RawClient(site.address) as client:
        client.send(post(b"audio", "/make-video", "X-Correlation-ID: lost-job"))
        problem = assert_problem(client.response("POST"), 503, "job_not_stored")
        assert problem["retry_after"] >= 1
        app.lying = False
        client.send(post(b"audio", "/make-video"))
        assert client.response("POST").status == 202
    line = site.proxy.access_line("lost-job")
    assert line["job_stored"] == "not_stored"
    assert line["reason"] == "key_missing"


@pytest.mark.parametrize("how", ["away", "hung"])
def test_without_redis_nothing_is_accepted_nor_read(site: JobSite, app: App, how: str) -> None:
    """The refusal comes before the upload: the app sees nothing, and `Expect` gets no 100."""
    with site.redis_away() if how == "away" else site.redis_hung():
        app.upstream.requests.clear()
        with RawClient(site.address) as client:
            head = get("/make-video", "Content-Length: 5000000", "Expect: 100-continue")
            client.send(head.replace(b"GET", b"POST", 1))
            response = client.response("POST")
            assert not client.interim
        problem = assert_problem(response, 503, "job_not_stored")
        assert response.get("Retry-After") == str(problem["retry_after"])
        assert app.upstream.requests == []
        # Reading the creating route is no creation.
        assert site.ask(get("/make-video", method="OPTIONS")).status != 503
    site.wait_live()


def test_after_a_first_lost_job_creations_wait_for_the_apps_breaker(
    site: JobSite, app: App
) -> None:
    """Redis is back, the app proved not to use it yet: refused unread, until it must."""
    with site.redis_away():
        pass
    site.wait_live()
    app.lying = True
    assert_problem(site.create(), 503, "job_not_stored")
    app.lying = False
    seen = len(app.upstream.requests)
    problem = assert_problem(site.create(), 503, "job_not_stored")
    assert "is not using it again yet" in problem["detail"]
    assert len(app.upstream.requests) == seen
    wait_until(lambda: site.create().status == 202, "creations")


@pytest.mark.parametrize(
    "answer",
    [
        respond(b"accepted", "202 Accepted", "Content-Type: text/plain"),
        respond(b'{"status":"accepted"}', "202 Accepted", JSON),
        respond(b'["mv_1"]', "202 Accepted", JSON),
        respond(b"[" * 50_000, "202 Accepted", JSON),
        respond(b'{"job_id":"x"}' + b" " * 1_200_000, "202 Accepted", JSON),
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
    ids=["text", "no-id", "list", "deep", "huge", "204"],
)
def test_what_names_no_job_passes(site: JobSite, app: App, answer: bytes) -> None:
    """Not JSON, without an ID, or too long to be an answer to a creation: untouched, but noted."""
    app.accepts = lambda job_id: answer
    asked = post(b"audio", "/make-video", f"X-Correlation-ID: odd-{len(answer)}")
    response = site.ask(asked)
    assert response.body == answer.partition(b"\r\n\r\n")[2]
    assert site.proxy.access_line(f"odd-{len(answer)}")["job_stored"] == "unknown"


def test_every_framing_of_an_acceptance_is_read(site: JobSite, app: App) -> None:
    """Chunked with trailers, byte by byte, and up to the close; to HTTP/1.0 clients too."""

    def body(job_id: str) -> bytes:
        return json.dumps({"job_id": job_id}).encode()

    def chunked(job_id: str) -> bytes:
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body(job_id))
        head = b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n"
        return head + chunks + b"0\r\nX-Sum: 1\r\n\r\n"

    for accepts in (chunked, lambda job_id: respond(body(job_id), "201 Created")):
        app.accepts = accepts
        for version in ("1.1", "1.0"):
            head = get("/make-video", "Content-Length: 1", version=version)
            response = site.ask(head.replace(b"GET", b"POST", 1) + b"x")
            job_id = json.loads(response.body)["job_id"]
            assert site.shown(job_id)["status"] == "queued"


def test_answers_to_creations_are_asked_for_uncompressed(site: JobSite, app: App) -> None:
    """A compressed answer could not be read; other routes keep what the client accepts."""
    asked = "Accept-Encoding: gzip, br"
    job_id = document(site.ask(post(b"x", "/make-video", asked)), 202)["job_id"]
    site.ask(get(f"/jobs/{job_id}", asked))
    first, second = (request.get("Accept-Encoding") for request in app.upstream.requests)
    assert (first, second) == ("identity", "gzip, br")
    app.accepts = lambda job_id: respond(
        gzip.compress(b"{}"), "202 Accepted", "Content-Encoding: gzip"
    )
    assert site.create().status == 202  # it insists: passed on, noted


def test_a_get_on_a_creating_route_streams(site: JobSite, app: App) -> None:
    """Only what can create is held back until it is complete."""

    def drip(connection: Any, request: Any) -> None:
        connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        app.answering.wait(PATIENCE)
        connection.send(b"0\r\n\r\n")

    app.upstream.handler = drip
    app.answering.clear()
    try:
        with RawClient(site.address) as client:
            client.send(get("/make-video"))
            assert client.read_until(b"one\r\n")
            app.answering.set()
            assert client.read_until(b"0\r\n\r\n")
    finally:
        app.upstream.handler = app.serve


def test_an_early_acceptance_does_not_block_the_upload(site: JobSite, app: App) -> None:
    """The app answers at once but ends its answer only when it has the whole request."""

    def early(connection: Any, request: Any) -> None:
        connection.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n")
        connection.body(request)
        connection.send(b"{}")

    app.upstream.handler = early
    try:
        response = site.create(b"x" * 3_000_000)
    finally:
        app.upstream.handler = app.serve
    assert (response.status, response.body) == (202, b"{}")


# --- the queue -----------------------------------------------------------------------------------


@pytest.fixture
def queue_app(tmp_path: Path) -> Iterator[App]:
    """An app with a Redis of its own, in which nobody else has jobs."""
    server = RedisServer(tmp_path / "redis")
    (tmp_path / "redis").mkdir(exist_ok=True)
    server.start()
    app = App(server)
    yield app
    app.stop()
    server.kill()


def test_callers_get_their_place_and_time(queue_app: App, tmp_path: Path) -> None:
    """On the creation, on reads by either path, and on the mirror's own answers; no time before
    enough jobs were completed, and nothing about a job that is over."""
    app = queue_app
    with JobSite(tmp_path, app.server, app.upstream.url, mirror={"forecast": {"slots": 1}}) as site:
        run = site.created()
        response = site.create()
        waits = str(document(response, 202)["job_id"])
        assert response.get("X-Job-Queue-Position") == "2"
        assert response.get("X-Job-Estimated-Completion") is None
        for number in range(5):
            began = f"2026-11-23T13:2{number}:00Z"
            done = f"2026-11-23T13:2{number}:40Z"
            stage = {"status": "completed", "started_at": began, "completed_at": done}
            raw = job(f"mv_done{number}", "completed", completed_at=done, stages={"a": stage})
            site.redis.set(PREFIX + f"mv_done{number}", raw, ex=600)
            site.wait_known(f"mv_done{number}", "completed")
        started = datetime.now(UTC).isoformat()
        stages = {"a": {"status": "processing", "started_at": started, "completed_at": None}}
        site.redis.set(PREFIX + run, new(run, "processing", stages=stages), ex=600)
        site.wait_known(run, "processing")
        app.upstream.requests.clear()
        with RawClient(site.address) as client:
            for _ in range(3):  # the first one opens the connection, the others are plain
                client.send(get(f"/jobs/{run}"))
                response = client.response()
                assert document(response)["from"] == "app"
                assert response.all("X-Job-Queue-Position") == ["0"]
                ends = datetime.fromisoformat(str(response.get("X-Job-Estimated-Completion")))
                assert 0 < ends.timestamp() - time.time() < 60
        wait_until(
            lambda: site.read(waits).get("X-Job-Queue-Position") == "1", "the queue to move up"
        )
        assert site.read(waits).get("X-Job-Estimated-Completion")
        app.status = 500
        response = site.read(run)
        assert mirrored(response)["job_id"] == run
        assert response.get("X-Job-Queue-Position") == "0"
        app.well()
        response = site.read("mv_done0")
        assert response.get("X-Job-Queue-Position") is None
        assert site.state()["queue"]["waiting"] == 1


# --- reads ---------------------------------------------------------------------------------------


def test_a_200_passes_untouched(site: JobSite) -> None:
    """The app's word, with nothing added."""
    response = site.read(site.created())
    assert document(response)["from"] == "app"
    assert response.get("X-Job-Source") is None


def test_a_404_is_repaired_and_the_app_asked_again(site: JobSite, app: App) -> None:
    """The key vanished behind everybody's back: put back, and answered in the app's own form."""
    job_id = site.created()
    first = iter([True])

    def lost_once(connection: Any, request: Any) -> None:
        if next(first, False):
            connection.send(respond(json.dumps(NOT_FOUND).encode(), "404 Not Found", JSON))
        else:
            app.serve(connection, request)

    app.upstream.handler = lost_once
    app.upstream.requests.clear()
    try:
        response = site.ask(get(f"/jobs/{job_id}", "X-Correlation-ID: again"))
    finally:
        app.upstream.handler = app.serve
    assert document(response)["from"] == "app"
    assert response.get("X-Job-Source") == "redis"
    assert response.get("X-Job-As-Of")
    assert len(app.upstream.requests) == 2
    assert all(request.get("X-Retry-Count") is None for request in app.upstream.requests)
    assert site.proxy.access_line("again")["rescued_from"] == 404


def test_the_mirror_answers_for_an_app_that_cannot(site: JobSite, app: App) -> None:
    """500, an app that insists on 404, and one that is silent; the connection stays usable."""
    job_id = site.created()
    app.status = 500
    assert mirrored(site.read(job_id))["job_id"] == job_id
    app.status = 404
    assert mirrored(site.read(job_id))["status"] == "queued"
    app.status = None
    app.answering.clear()
    began = time.monotonic()
    with RawClient(site.address) as client:
        for _ in range(2):
            client.send(get(f"/jobs/{job_id}"))
            assert mirrored(client.response())["updated_at"] == ""
    assert time.monotonic() - began >= 0.6
    response = site.read(job_id, "HEAD")
    assert response.get("X-Job-Source") == "sqlite"
    assert int(response.get("Content-Length") or 0) > 50


def test_redis_dies_and_every_read_is_answered(site: JobSite) -> None:
    """While it is away, from SQLite; when it is back, empty, from Redis again."""
    job_id = site.created()
    with site.redis_away():
        assert mirrored(site.read(job_id))["status"] == "queued"
        assert document(site.read("mv_never_known"), 404) == NOT_FOUND
    site.wait_live()
    assert site.redis.exists(PREFIX + job_id)
    assert document(site.read(job_id))["from"] == "app"


def test_an_unknown_job_is_the_apps_matter(site: JobSite, app: App) -> None:
    """Its 404, its 500, and its late answer after `fallback_after`."""
    assert document(site.read("mv_nobody"), 404) == NOT_FOUND
    app.status = 500
    assert site.read("mv_nobody").status == 500
    app.status = None
    app.answering.clear()
    with RawClient(site.address) as client:
        client.send(get("/jobs/mv_nobody"))
        assert client.silent_for(0.6)
        app.answering.set()
        assert document(client.response(), 404) == NOT_FOUND


def test_an_expired_job_differs_from_an_unknown_one(site: JobSite, app: App) -> None:
    """404 `job_expired`, whatever the app's 404 says; an app's 500 for it is no failure hidden."""
    job_id = "mv_short"
    site.redis.set(PREFIX + job_id, job(job_id), px=700)
    site.wait_known(job_id)
    wait_until(lambda: not site.redis.exists(PREFIX + job_id), "the end of the key")

    def expired() -> bool:
        return site.read(job_id).status == 404

    wait_until(expired, "the end of the job")
    problem = assert_problem(site.read(job_id), 404, "job_expired")
    assert problem["expired_at"].endswith("Z")


def test_the_older_shape_is_answered_as_the_older_app_does(site: JobSite, app: App) -> None:
    """The document as it is, with `job_id`."""
    version = recording("older-shape")[3]["value"]
    job_id = "mv_older"
    raw = json.dumps({**version, "job_id": job_id}).encode()
    site.redis.set(PREFIX + job_id, raw, ex=600)
    site.wait_known(job_id)
    app.status = 500
    assert mirrored(site.read(job_id)) == json.loads(raw)
    site.redis.delete(PREFIX + job_id)
    wait_until(lambda: "deleted" in site.shown(job_id), "the deletion")
    app.status = None
    site.created()  # the newest document decides which app it is


def test_a_read_with_a_body_is_not_asked_twice(site: JobSite, app: App) -> None:
    """What was sent of a body is gone: the mirror answers at once instead."""
    job_id = site.created()
    app.status = 404
    app.upstream.requests.clear()
    asked = post(b"odd", f"/jobs/{job_id}", method="GET")
    assert mirrored(site.ask(asked))["job_id"] == job_id
    assert len(app.upstream.requests) == 1


def test_hidden_or_strange_ids_do_no_harm(site: JobSite) -> None:
    """Percent-encoded, glob characters, traversal and very long ones."""
    job_id = site.created()
    assert document(site.read(job_id.replace("_", "%5F")))["from"] == "app"
    for strange in ("*", "%00", "..%2f..", "a" * 3000, "%F0%9F%8E%AC", "x;y", "{job_id}"):
        assert site.read(strange).status in (400, 404), strange


# --- lists ---------------------------------------------------------------------------------------


def test_lists_of_an_app_that_cannot(site: JobSite, app: App) -> None:
    """Status and limit hold; the newest first; odd values of either do not matter."""
    site.redis.set(PREFIX + "mv_done", new("mv_done", "completed", 100.0), ex=600)
    site.wait_known("mv_done")
    ids = [site.created() for _ in range(3)]
    app.status = 500
    found = mirrored(site.listed())
    assert {*ids, "mv_done"} <= {one["id"] for one in found["jobs"]}
    assert found["total"] == len(found["jobs"])
    assert [one["id"] for one in mirrored(site.listed("?status=completed"))["jobs"]] == ["mv_done"]
    assert mirrored(site.listed("?limit=2"))["total"] == 2
    for odd in ("?limit=x", "?limit=-1", "?limit=9999999999999", "?status=", "?limit=0&limit=2"):
        assert mirrored(site.listed(odd))["status"] == "success"
    app.answering.clear()
    app.status = None
    assert mirrored(site.listed("?limit=1"))["total"] == 1


def test_a_lying_empty_list_is_not_believed(site: JobSite, app: App) -> None:
    """Redis is away and the app says 200 with nothing in it."""
    job_id = site.created()
    empty = respond(b'{"status":"success","total":0,"jobs":[]}', "200 OK", JSON)
    with site.redis_away():
        app.upstream.handler = lambda connection, request: connection.send(empty)
        try:
            assert job_id in {one["id"] for one in mirrored(site.listed())["jobs"]}
        finally:
            app.upstream.handler = app.serve
    site.wait_live()
    assert site.listed().get("X-Job-Source") is None


# --- deletions -----------------------------------------------------------------------------------


def test_a_deleted_job_stays_deleted(site: JobSite) -> None:
    """A worker writes it again: 404 for callers, and the key is removed again."""
    job_id = site.created()
    assert document(site.delete(job_id))["status"] == "deleted"
    for _ in range(3):
        site.redis.set(PREFIX + job_id, job(job_id, "processing", 20.0), ex=600)
        assert document(site.read(job_id), 404) == NOT_FOUND
        wait_until(lambda: not site.redis.exists(PREFIX + job_id), "the removal")
    assert site.redis.zscore(INDEX, job_id) is None
    with site.redis_away():
        assert document(site.read(job_id), 404) == NOT_FOUND
        assert document(site.delete(job_id), 404) == NOT_FOUND
        assert job_id not in {one["id"] for one in mirrored(site.listed("?limit=1000"))["jobs"]}
    site.wait_live()
    assert not site.redis.exists(PREFIX + job_id)


@pytest.mark.parametrize("how", ["500", "redis"])
def test_a_deletion_that_the_app_missed_is_passed_on(site: JobSite, app: App, how: str) -> None:
    """Deleted for callers at once, and at the app once it can do it."""
    job_id = site.created()
    if how == "redis":
        with site.redis_away():
            assert document(site.delete(job_id))["status"] == "deleted"
            assert document(site.read(job_id), 404) == NOT_FOUND
    else:
        app.status = 500
        assert document(site.delete(job_id))["job_id"] == job_id
        app.status = None
        assert document(site.read(job_id), 404) == NOT_FOUND
    app.upstream.wait(
        lambda: (
            sum(
                request.method == "DELETE" and request.target.endswith(job_id)
                for request in app.upstream.requests
            )
            >= 2
        ),
        "the deletion, told again",
    )
    wait_until(lambda: not site.redis.exists(PREFIX + job_id), "the removal")
    assert site.shown(job_id)["deleted"]
    site.wait_live()


def test_deleting_what_nobody_knows_is_the_apps_matter(site: JobSite, app: App) -> None:
    """Its 404, or its failure."""
    assert document(site.delete("mv_nobody"), 404) == NOT_FOUND
    app.status = 500
    assert site.delete("mv_nobody").status == 500
