"""A retry is not a second job: creations with a key, to the repeated answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proxy.demo.redis_server import RedisServer
from tests.http1.client import RawClient
from tests.http1.message import PATIENCE, Request, Response
from tests.http1.process import wait_until
from tests.http1.site import assert_problem, post
from tests.http1.upstream import Connection
from tests.jobs_kit import INDEX, PREFIX
from tests.jobs_site import App, JobSite, new, routes
from tests.uploads.audio import wav_header
from tests.uploads.drive import BOUNDARY, form, part

KEY = 'Idempotency-Key: "8e03978e-40d5-43dd-bc93-6894a57f9324"'


def site_of(path: Path, server: RedisServer, app: App, **rules: Any) -> JobSite:
    """A proxy whose creations are idempotent."""
    listed = routes()
    listed[0]["idempotency"] = rules
    return JobSite(path, server, app.upstream.url, route_list=listed)


@pytest.fixture
def app(redis_server: RedisServer) -> Iterator[App]:
    """The app of scripts."""
    app = App(redis_server)
    yield app
    app.stop()


@pytest.fixture
def site(tmp_path: Path, redis_server: RedisServer, app: App) -> Iterator[JobSite]:
    """The proxy before it."""
    with site_of(tmp_path / "site", redis_server, app) as site:
        yield site


def create(site: JobSite, body: bytes = b"audio", *fields: str, key: str | None = KEY) -> Response:
    """A creation, by default with the key of these tests."""
    return site.ask(post(body, "/make-video", *((key,) if key else ()), *fields))


def job_of(response: Response) -> str:
    """The job of an accepting answer."""
    assert response.status == 202, response.body
    return str(json.loads(response.body)["job_id"])


def test_the_first_answer_is_repeated(
    tmp_path: Path, redis_server: RedisServer, app: App, site: JobSite
) -> None:
    """At once, in the bare spelling of the key, through another sidecar, after a kill of the proxy
    and after an empty restart of Redis; another key makes another job."""
    first = create(site)
    again = create(site, key="Idempotency-Key: 8e03978e-40d5-43dd-bc93-6894a57f9324")
    assert job_of(again) == job_of(first)
    assert again.get("Idempotency-Replayed") == "true"
    assert again.get("Content-Type") == first.get("Content-Type")
    assert first.get("Idempotency-Replayed") is None
    with site_of(tmp_path / "other", redis_server, app) as other:
        assert job_of(create(other)) == job_of(first)
    site.kill_proxy()
    redis_server.kill()
    redis_server.start()
    site.start_proxy()
    site.wait_live()
    assert job_of(create(site)) == job_of(first)
    assert job_of(create(site, key="Idempotency-Key: other")) != job_of(first)
    assert app.created == 2


def test_ten_at_once_make_one_job(site: JobSite, app: App) -> None:
    """Ten identical creations that are fired together get one job's answer."""
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: create(site), range(10)))
    assert {job_of(answer) for answer in answers} == {"mv_00000001"}
    assert app.created == 1
    assert sum(answer.get("Idempotency-Replayed") is None for answer in answers) == 1


def test_a_key_is_for_one_request_and_one_caller(site: JobSite, app: App) -> None:
    """Other content under the key is 422; under another API key it is another caller's."""
    first = create(site)
    assert_problem(create(site, b"other"), 422, "idempotency_mismatch")
    stranger = create(site, b"audio", "X-API-Key: stranger")
    assert job_of(stranger) != job_of(first)
    assert_problem(create(site, key="Idempotency-Key: caf\xe9"), 400, "bad_request")
    assert create(site, key="Idempotency-Key:").status == 202
    assert app.created == 3


def test_a_form_is_the_same_with_another_boundary(site: JobSite, app: App) -> None:
    """Clients make a new boundary for each try."""

    def form(boundary: str, value: str = "10") -> Response:
        body = (
            f"--{boundary}\r\nContent-Disposition: form-data; name=max_shorts\r\n\r\n{value}\r\n"
            f"--{boundary}--\r\n"
        )
        kind = f'Content-Type: multipart/form-data; charset=utf-8; boundary="{boundary}"'
        return create(site, body.encode(), kind)

    assert job_of(form("one")) == job_of(form("another"))
    assert_problem(form("third", "20"), 422, "idempotency_mismatch")
    assert app.created == 1


def test_an_upload_is_known_by_its_file(
    tmp_path: Path, redis_server: RedisServer, app: App
) -> None:
    """The same file under another name and boundary is the same upload; one sample more is not, and
    a refused file burns no key."""
    listed = routes()
    listed[0] |= {"idempotency": {}, "upload": {"field": "audio_file", "types": ["audio/wav"]}}

    def upload(site: JobSite, audio: bytes, name: str, boundary: str) -> Response:
        body = form(part(audio, filename=name.encode())).replace(BOUNDARY, boundary.encode())
        return create(site, body, f"Content-Type: multipart/form-data; boundary={boundary}")

    sound = wav_header(8000) + bytes(8000)
    with JobSite(tmp_path / "s", redis_server, app.upstream.url, route_list=listed) as site:
        assert_problem(upload(site, b"no sound", "a.wav", "zero"), 400, "upload_type_rejected")
        first = job_of(upload(site, sound, "a.wav", "one"))
        assert job_of(upload(site, sound, "b.wav", "two")) == first
        other = wav_header(8001) + bytes(8001)
        assert_problem(upload(site, other, "a.wav", "one"), 422, "idempotency_mismatch")
    assert app.created == 1


def test_what_was_not_carried_out_burns_no_key(site: JobSite, app: App) -> None:
    """Refused connections, limits, and a lie about the job leave the key free; the app's word on
    the request itself is kept."""
    app.status = 429
    assert create(site).status == 429
    app.well()
    app.lying = True
    assert_problem(create(site), 503, "job_not_stored")
    app.well()
    made = job_of(create(site))
    assert job_of(create(site)) == made
    app.status = 422
    other = "Idempotency-Key: other"
    assert create(site, key=other).status == 422
    app.well()
    again = create(site, key=other)
    assert (again.status, again.get("Idempotency-Replayed")) == (422, "true")


def test_a_caller_that_left_gets_its_job(site: JobSite, app: App) -> None:
    """The request is seen through without its client, and the repetition gets the answer."""
    app.answering.clear()
    with RawClient(site.address) as client:
        client.send(post(b"audio", "/make-video", KEY))
        wait_until(lambda: app.upstream.requests, "the creation at the app")
    app.answering.set()
    assert job_of(create(site)) == "mv_00000001"
    assert app.created == 1


def test_a_lost_answer_is_found_by_its_job(site: JobSite, app: App) -> None:
    """An app that dies with the job made and the answer unsent: the caller gets the job, and so
    does every repetition; one that dies before it made a job leaves the key free."""
    made = threading.Event()

    def dies(connection: Connection, request: Request) -> None:
        connection.body(request)
        if made.is_set():
            app.redis.set(PREFIX + "mv_lost", new("mv_lost"), ex=86400)
            app.redis.zadd(INDEX, {"mv_lost": 1})
        connection.reset()

    app.upstream.handler = dies
    nothing = create(site, key="Idempotency-Key: early")
    assert_problem(nothing, 502, "upstream_reset")
    made.set()
    assert job_of(create(site)) == "mv_lost"
    app.upstream.handler = app.serve
    assert job_of(create(site)) == "mv_lost"
    assert job_of(create(site, key="Idempotency-Key: early")) == "mv_00000001"


def test_a_proxy_that_is_killed_remembers_what_it_sent(site: JobSite, app: App) -> None:
    """The job that a killed proxy's request has made is the answer to its repetition."""
    app.answering.clear()
    with RawClient(site.address) as client:
        client.send(post(b"audio", "/make-video", KEY))
        wait_until(lambda: app.upstream.requests, "the creation at the app")
        site.kill_proxy()
    app.answering.set()
    wait_until(lambda: app.redis.exists(PREFIX + "mv_00000001"), "the job in Redis")
    site.start_proxy()
    site.wait_live()
    site.wait_known("mv_00000001")

    def recorded() -> bool:
        answer = create(site)  # 409 as long as the dead proxy's lease lasts
        if answer.status == 409:
            assert int(answer.get("Retry-After") or 0) >= 1
            return False
        return job_of(answer) == "mv_00000001"

    wait_until(recorded, "the job of the lost answer", 2 * PATIENCE)
    assert app.created == 1


def test_the_same_upload_without_a_key(tmp_path: Path, redis_server: RedisServer, app: App) -> None:
    """Where it is turned on, an identical upload of the same caller is the same job for a while."""
    with site_of(tmp_path / "s", redis_server, app, same_upload_within="60s") as site:
        first = job_of(create(site, key=None))
        assert job_of(create(site, key=None)) == first
        assert job_of(create(site, b"other", key=None)) != first
        assert job_of(create(site, b"audio", "X-API-Key: other", key=None)) != first
    with site_of(tmp_path / "t", redis_server, app) as off:
        assert job_of(create(off, key=None)) != job_of(create(off, key=None))
