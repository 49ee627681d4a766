"""The mirror where something is unusual: the config, the disk, a second sidecar, the real app."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.demo.redis_server import RedisServer
from tests.http1 import PATIENCE
from tests.http1.client import RawClient
from tests.http1.process import wait_until
from tests.http1.site import assert_problem, get, post
from tests.http1.upstream import answer, respond
from tests.jobs_kit import PREFIX
from tests.jobs_site import NOT_FOUND, App, JobSite, StandIn, new, routes
from tests.uploads.drive import CONTENT_TYPE, form, part


@pytest.fixture
def app(redis_server: RedisServer) -> Iterator[App]:
    """The app of scripts."""
    app = App(redis_server)
    yield app
    app.stop()


def cli(site: JobSite, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`reliability-proxy jobs …` against the site's admin API."""
    url = f"http://127.0.0.1:{site.proxy.admin_port}"
    return subprocess.run(
        [sys.executable, "-m", "proxy", "jobs", *arguments, "--admin", url],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# --- operators ----------------------------------------------------------------------------------


def test_what_an_operator_sees_and_does(
    tmp_path: Path, redis_server: RedisServer, app: App
) -> None:
    """`jobs list|show|sync|restore`, `/api/jobs`, `/readyz`, a reload; with Redis and without."""
    with JobSite(
        tmp_path / "site", redis_server, app.upstream.url, mirror={"stranded_after": "1s"}
    ) as site:
        ids = [site.created() for _ in range(3)]
        site.redis.set(PREFIX + "mv_done", new("mv_done", "completed", 100.0), ex=600)
        site.wait_known("mv_done", "completed")
        reply = cli(site, "list", "--status", "completed", "--json")
        listed = json.loads(reply.stdout)
        assert [one["job_id"] for one in listed["jobs"]] == ["mv_done"]
        assert listed["mirrors"][0]["capture"] == "tracking"
        assert ids[0] in cli(site, "list").stdout
        wait_until(lambda: ids[0] in cli(site, "list", "--stranded").stdout, "a stranded job")
        assert "mv_done" not in cli(site, "list", "--stranded").stdout
        shown = json.loads(cli(site, "show", ids[0], "--json").stdout)
        assert [one["status"] for one in shown["versions"]] == ["queued"]
        assert cli(site, "show", "mv_nobody").returncode == 1
        assert cli(site, "sync").returncode == 0
        site.redis.config_set("notify-keyspace-events", "")
        before = site.state()["last_restore"]
        assert '"restored": 0' in cli(site, "restore", "--json").stdout
        assert site.state()["last_restore"] != before
        ready = site.admin("/readyz")[1]
        assert ready["checks"]["mirror:make_video:redis"] == {
            "ok": True,
            "detail": "live: tracking",
        }

        site.proxy.write({**site.proxy.config, "mirrors": {}})
        status, refused = site.admin("/api/reload", {})
        assert status == 422
        assert "mirror" in str(refused["problems"])
        changed = json.loads(json.dumps(site.proxy.config))
        changed["mirrors"]["make_video"]["sync_every"] = "1m"
        site.proxy.write(changed)
        status, refused = site.admin("/api/reload", {})
        assert (status, refused["code"]) == (422, "config_refused")
        assert "mirrors cannot be changed by a reload" in refused["problems"][0]
        changed["mirrors"] = site.proxy.config["mirrors"]
        changed["drain_timeout"] = "1s"
        site.proxy.write(changed)
        assert site.admin("/api/reload", {})[0] == 200
        assert site.created()

        with site.redis_away():
            for action in ("sync", "restore"):
                status, problem = site.admin(f"/api/jobs/{action}", {})
                assert (status, problem["code"]) == (503, "store_away")
                assert "Redis" in problem["detail"]
            reply = cli(site, "list")
            assert reply.returncode == 0
            assert ids[0] in reply.stdout
            assert "make_video: redis down" in reply.stderr
            ready = site.admin("/readyz")
            assert ready[0] == 200
            assert not ready[1]["checks"]["mirror:make_video:redis"]["ok"]
        site.proxy.assert_sane()


def test_a_restore_by_hand_does_not_wait_for_a_redis_that_dies_meanwhile(
    tmp_path: Path, redis_server: RedisServer, app: App
) -> None:
    """Hung while it is asked: 503 within the heartbeat's patience."""
    with JobSite(tmp_path / "site", redis_server, app.upstream.url) as site:
        site.created()
        assert redis_server.pid is not None
        os.kill(redis_server.pid, signal.SIGSTOP)
        try:
            status, problem = site.admin("/api/jobs/restore", {})
        finally:
            os.kill(redis_server.pid, signal.SIGCONT)
        assert (status, problem["code"]) == (503, "store_away")
        site.wait_live()
        site.proxy.assert_sane()


# --- starts and disks ---------------------------------------------------------------------------


def test_a_start_without_redis(tmp_path: Path, redis_server: RedisServer, app: App) -> None:
    """Ready, forwarding, refusing what would be lost; and following as soon as Redis is there."""
    redis_server.kill()
    with JobSite(tmp_path / "site", redis_server, app.upstream.url, live=False) as site:
        assert_problem(site.create(), 503, "job_not_stored")
        assert site.read("mv_x").status == 404
        assert site.ask(get("/health")).status in (200, 404)
        redis_server.start()
        site.wait_live()
        assert site.created()
        site.proxy.assert_sane()


@pytest.mark.parametrize("how", ["garbage", "foreign", "folder", "nowhere", "gone"])
def test_a_store_that_cannot_be_used(
    tmp_path: Path, redis_server: RedisServer, app: App, how: str
) -> None:
    """Damaged or foreign: set aside, begun anew. Impossible: the proxy serves all the same."""
    path = tmp_path / "store" / "jobs.db"
    path.parent.mkdir()
    if how == "garbage":
        path.write_bytes(os.urandom(100_000))
    elif how == "foreign":
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE recipes (id)")
        other.close()
    elif how == "folder":
        path.mkdir()
    elif how == "nowhere":
        path = Path("/proc/nowhere/jobs.db")
    with JobSite(
        tmp_path / "site", redis_server, app.upstream.url, mirror={"sqlite": str(path)}, live=False
    ) as site:
        wait_until(lambda: site.state()["redis"] == "live", "redis")
        if how == "gone":
            site.wait_live()
            for file in path.parent.iterdir():
                file.unlink()
        job_id = site.created()
        assert json.loads(site.read(job_id).body)["from"] == "app"
        assert site.listed().status == 200
        if how in ("folder", "nowhere"):
            assert site.state()["sqlite"] == "degraded"
            assert not site.admin("/readyz")[1]["checks"]["mirror:make_video:sqlite"]["ok"]
        elif how != "gone":
            assert site.shown(job_id)["status"] == "queued"
            assert len(list(path.parent.glob("jobs.db.*-*"))) >= 1
        assert site.delete(job_id).status == 200
        assert json.loads(site.read(job_id).body) == NOT_FOUND
        site.proxy.assert_sane()


def test_a_404_is_not_believed_while_nobody_can_look(
    tmp_path: Path, redis_server: RedisServer, app: App
) -> None:
    """The store silent and Redis away, or perhaps not whole: 503 to come back later, for reads and
    deletions. A job that waits for SQLite is known all the same; once somebody can look, the app's
    404 counts."""
    store = tmp_path / "store"
    store.mkdir()
    with JobSite(
        tmp_path / "site",
        redis_server,
        app.upstream.url,
        mirror={"sqlite": str(store)},
        live=False,
    ) as site:
        wait_until(lambda: site.state()["redis"] == "live", "redis")
        assert_problem(site.read("mv_perhaps"), 503, "store_away")  # what did Redis lose before?
        job_id = site.created()
        with site.redis_away():
            assert site.read(job_id).get("X-Job-Source") == "sqlite"
            for method in ("GET", "DELETE"):
                reply = site.read("mv_perhaps", method)
                assert_problem(reply, 503, "store_away")
                assert int(reply.get("Retry-After") or 0) >= 1
            app.status = 500
            assert site.read("mv_perhaps").status == 500
            app.status = None
        store.rmdir()
        site.wait_live()
        assert site.read(job_id).status == 200
        assert json.loads(site.read("mv_perhaps").body) == NOT_FOUND
        site.proxy.assert_sane()


def test_a_deletion_that_cannot_be_kept_is_not_called_unknown(
    tmp_path: Path, redis_server: RedisServer, app: App
) -> None:
    """SQLite locked and Redis away: 503 instead of the app's untrue 404. The deletion holds all the
    same, and is made when both are back."""
    with JobSite(tmp_path / "site", redis_server, app.upstream.url) as site:
        job_id = site.created()
        blocker = sqlite3.connect(site.sqlite, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        try:
            with site.redis_away():
                assert_problem(site.delete(job_id), 503, "store_away")
                assert site.read(job_id).status == 404
        finally:
            blocker.rollback()
            blocker.close()
        site.wait_live()
        wait_until(lambda: "deleted" in site.shown(job_id), "the tombstone")
        assert not site.redis.exists(PREFIX + job_id)
        site.proxy.assert_sane()


def test_creations_without_the_guard(tmp_path: Path, redis_server: RedisServer, app: App) -> None:
    """`require_redis: false`: the app is asked, but its untrue 202 still does not pass."""
    with JobSite(
        tmp_path / "site", redis_server, app.upstream.url, route_list=routes(require_redis=False)
    ) as site:
        assert site.created()
        with site.redis_away():
            assert site.create().status == 500  # the app's own word
            app.upstream.handler = answer(respond(b'{"job_id":"mv_1"}', "202 Accepted"))
            assert_problem(site.create(), 503, "job_not_stored")
        site.proxy.assert_sane()


# --- uploads, drain, two sidecars ---------------------------------------------------------------


def test_an_upload_check_on_a_creating_route(
    tmp_path: Path, redis_server: RedisServer, app: App
) -> None:
    """A refused file never reaches the app, a good one becomes a stored job, and how long it plays
    is counted, though the app never says so."""
    route_list = routes()
    route_list[0]["upload"] = {
        "field": "audio_file", "max_size": "1MiB", "max_duration": "10m",
        "types": ["audio/mpeg", "audio/wav"],
    }  # fmt: skip
    head = f"Content-Type: {CONTENT_TYPE.decode()}"
    with JobSite(tmp_path / "site", redis_server, app.upstream.url, route_list=route_list) as site:
        bad = site.ask(post(form(part(b"no audio at all" * 100)), "/make-video", head))
        assert_problem(bad, 400, "upload_type_rejected")
        assert app.created == 0
        rate = 8000
        samples = b"\0" * rate
        wav = (
            b"RIFF" + (36 + len(samples)).to_bytes(4, "little") + b"WAVEfmt \x10\0\0\0\x01\0\x01\0"
            + rate.to_bytes(4, "little") * 2 + b"\x01\0\x08\0data"
            + len(samples).to_bytes(4, "little") + samples
        )  # fmt: skip
        good = site.ask(post(form(part(wav, filename=b"a.wav")), "/make-video", head))
        job_id = json.loads(good.body)["job_id"]
        assert site.shown(job_id)["status"] == "queued"
        played = "video_processing_input_duration_seconds"
        wait_until(lambda: site.proxy.metric(f"{played}_count") == 1, "its length counted")
        assert site.proxy.metric(f"{played}_sum") == 1.0
        with site.redis_away():
            refused = site.ask(post(form(part(wav)), "/make-video", head))
            assert_problem(refused, 503, "job_not_stored")
        site.proxy.assert_sane()


def test_a_drain_ends_what_waits_for_the_app(
    tmp_path: Path, redis_server: RedisServer, app: App
) -> None:
    """SIGTERM while a read waits for a silent app: answered from the mirror, then the end."""
    with JobSite(
        tmp_path / "site", redis_server, app.upstream.url, route_list=routes("1s")
    ) as site:
        job_id = site.created()
        app.answering.clear()
        with RawClient(site.address) as known, RawClient(site.address) as unknown:
            app.upstream.requests.clear()
            known.send(get(f"/jobs/{job_id}"))
            unknown.send(get("/jobs/mv_nobody"))
            app.upstream.wait_requests(2)
            site.proxy.signal(signal.SIGTERM)
            answer = known.response()
            assert answer.get("X-Job-Source") == "sqlite"
            assert answer.get("Connection") == "close"
            assert_problem(unknown.response(), 503, "draining")
        assert site.proxy.process.wait(PATIENCE) == 0
        logged = site.proxy.output()
        assert "never retrieved" not in logged
        assert "Traceback" not in logged


def test_two_sidecars_on_one_redis(tmp_path: Path, redis_server: RedisServer, app: App) -> None:
    """Each knows what the other's callers did; both restore; no deleted job rises for either."""
    with (
        JobSite(tmp_path / "one", redis_server, app.upstream.url) as one,
        JobSite(tmp_path / "two", redis_server, app.upstream.url) as two,
    ):
        ids = [(one, two)[number % 2].created() for number in range(20)]
        for job_id in ids:
            two.wait_known(job_id)
        assert one.delete(ids[0]).status == 200
        wait_until(lambda: "deleted" in two.shown(ids[0]), "the deletion, seen by the other")
        with one.redis_away():
            two.wait_down()
            for job_id in ids[1:]:
                assert two.read(job_id).get("X-Job-Source") == "sqlite"
            assert json.loads(two.read(ids[0]).body) == NOT_FOUND
        one.wait_live()
        two.wait_live()
        assert one.redis.exists(*(PREFIX + job_id for job_id in ids[1:])) == 19
        assert not one.redis.exists(PREFIX + ids[0])
        restored = [site.state()["last_restore"]["restored"] for site in (one, two)]
        assert sum(restored) == 19
        one.proxy.assert_sane()
        two.proxy.assert_sane()


# --- the stand-in for the real service ----------------------------------------------------------


def test_the_real_pains(tmp_path: Path, redis_server: RedisServer) -> None:
    """A frozen app, a lying breaker, a 404 for every job: none of them reaches the caller."""
    stand_in = StandIn(
        tmp_path / "app", redis_server,
        *("--connection-limit", "0", "--exit-every", "0", "--breaker-open-for", "5"),
    )  # fmt: skip
    stand_in.start()
    route_list = routes("500ms")
    route_list[0]["path"] = "/download"
    form_type = "Content-Type: application/x-www-form-urlencoded"
    wanted = post(b"query=cats+and+dogs&max_shorts=10", "/download", form_type)
    try:
        with JobSite(
            tmp_path / "site", redis_server, stand_in.url, route_list=route_list,
            mirror={"app_breaker": "3s"}, upstream={"timeouts": {"response": "60s"}},
        ) as site:  # fmt: skip
            accepted = site.ask(wanted)
            assert accepted.status == 202
            job_id = json.loads(accepted.body)["job_id"]
            own = json.loads(site.read(job_id).body)
            # A hung Redis freezes the app; both of the mirror's answers come all the same.
            assert redis_server.pid is not None
            os.kill(redis_server.pid, signal.SIGSTOP)
            try:
                frozen = site.read(job_id)
                assert json.loads(frozen.body) == own  # byte for byte the app's form
                assert frozen.get("X-Job-Source") == "sqlite"
                assert site.listed().get("X-Job-Source") == "sqlite"
            finally:
                os.kill(redis_server.pid, signal.SIGCONT)
            site.wait_live()
            # Redis away: the app says 404 and its own breaker opens meanwhile.
            with site.redis_away():
                for _ in range(6):
                    gone = site.read(job_id)
                    assert gone.status == 200
                    assert json.loads(gone.body) == own
                assert json.loads(site.listed().body)["jobs"][0]["id"] == job_id
            site.wait_live()
            # Redis is back, but the app still lies: not one untrue 202.
            answers = []

            def until_accepted() -> bool:
                answer = site.ask(wanted)
                answers.append(answer.status)
                if answer.status == 202:
                    assert site.redis.exists(PREFIX + json.loads(answer.body)["job_id"])
                return answer.status == 202

            wait_until(until_accepted, "creations")
            assert set(answers) == {202, 503}
            assert json.loads(site.read(job_id).body) == own
            site.proxy.assert_sane()
    finally:
        stand_in.kill()


def test_a_kill_between_any_two_steps_leaves_whole_rows(
    tmp_path: Path, redis_server: RedisServer, app: App
) -> None:
    """kill -9 of the proxy under a storm of creations: every 202 that was read has its row."""
    site = JobSite(tmp_path / "site", redis_server, app.upstream.url)
    accepted: list[str] = []
    done = threading.Event()

    def storm() -> None:
        while not done.is_set():
            try:
                response = site.create()
            except Exception:
                done.wait(0.02)
                continue
            if response.status == 202:
                accepted.append(json.loads(response.body)["job_id"])

    threads = [threading.Thread(target=storm, name=f"storm-{number}") for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for pause in (0.3, 0.17, 0.41):
            before = len(accepted)
            wait_until(lambda count=before + 20: len(accepted) > count, "creations")
            time.sleep(pause / 10)
            site.kill_proxy()
            with sqlite3.connect(f"file:{site.sqlite}?mode=ro", uri=True) as store:
                assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                rows = {row[0]: row[1] for row in store.execute("SELECT job_id, data FROM jobs")}
            store.close()
            for job_id in list(accepted):
                assert json.loads(rows[job_id])["id"] == job_id
            site.start_proxy()
    finally:
        done.set()
        for thread in threads:
            thread.join(PATIENCE)
        site.proxy.stop()
        site.redis.close()


def test_an_app_that_is_away_does_not_open_its_jobs_to_anyone(
    tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the mirror knows the app's API key, it answers and deletes only for who sends it."""
    monkeypatch.setenv("API_KEY", "s3cret")
    stand_in = StandIn(tmp_path / "app", redis_server, "--exit-every", "0")
    stand_in.start()
    route_list = routes("500ms")
    route_list[0]["path"] = "/download"
    key, wrong = "X-API-Key: s3cret", "X-API-Key: guess"
    wanted = post(
        b"query=cats+and+dogs&max_shorts=10",
        "/download",
        "Content-Type: application/x-www-form-urlencoded",
        key,
    )
    try:
        with JobSite(
            tmp_path / "site", redis_server, stand_in.url, route_list=route_list,
            mirror={"api_key": "s3cret"}, upstream={"connect_patience": "0s"},
        ) as site:  # fmt: skip
            accepted = site.ask(wanted)
            assert accepted.status == 202
            job_id = json.loads(accepted.body)["job_id"]
            # The app is there: its own 401, in its own words.
            refused = site.ask(get(f"/jobs/{job_id}"))
            assert (refused.status, json.loads(refused.body)["error"]) == (401, "HTTP_ERROR")
            stand_in.kill()
            for more in ((), (wrong,), (key, wrong)):
                for raw in (
                    get(f"/jobs/{job_id}", *more),
                    get("/jobs", *more),
                    get(f"/jobs/{job_id}", *more, method="DELETE"),
                ):
                    refused = site.ask(raw)
                    assert_problem(refused, 401, "unauthorized")
                    assert refused.get("WWW-Authenticate") == "ApiKey"
            for path in (f"/jobs/{job_id}", "/jobs"):
                assert site.ask(get(path, key)).get("X-Job-Source") == "sqlite"
            assert site.ask(get(f"/jobs/{job_id}", key, method="DELETE")).status == 200
            stand_in.start()
            wait_until(lambda: not site.redis.exists(PREFIX + job_id), "the app to be told")

            def reply() -> list[int]:
                passed = "late deletion sent"
                return [line["status"] for line in site.proxy.log() if line["message"] == passed]

            wait_until(lambda: bool(reply()), "a line about it")
            assert reply() == [200]
            site.proxy.assert_sane()
    finally:
        stand_in.kill()


def test_an_app_that_was_restarted_uses_redis_again(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """Its breaker died with it: once its port was seen refusing, creations need not wait."""
    app = App(redis_server)
    try:
        with JobSite(
            tmp_path,
            redis_server,
            app.upstream.url,
            upstream={"connect_patience": "5s"},
            mirror={"app_breaker": "1h"},
        ) as site:
            job_id = site.created()
            site.wait_known(job_id)
            with site.redis_away():
                pass
            site.wait_live()
            app.lying = True
            assert_problem(site.create(), 503, "job_not_stored")
            app.lying = False
            reply = assert_problem(site.create(), 503, "job_not_stored")
            assert "is not using it again yet" in reply["detail"]
            port = app.upstream.port
            app.stop()
            read = site.read(job_id)
            assert (read.status, read.get("X-Job-Source")) == (200, "sqlite")
            app = App(redis_server, port)
            assert site.create().status == 202
    finally:
        app.stop()
