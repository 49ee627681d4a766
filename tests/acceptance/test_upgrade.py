"""A new process of the program takes over, or the old one goes on; no request fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.demo.redis_server import RedisServer
from tests.http1 import Connection, Request, Site, free_port, get, respond, wait_until
from tests.http1.load import Load, more_answers
from tests.jobs_site import App, JobSite


def upgraded(site: Site) -> dict[str, Any]:
    """What the command says of its success."""
    url = f"http://127.0.0.1:{site.proxy.admin_port}"
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "upgrade", "--admin", url, "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def serving_pid(site: Site) -> int:
    """Of the process that answers at the admin's port."""
    status, text = site.proxy.admin("/api/config")
    assert status == 200, text
    for line in site.proxy.log():
        if line.get("message") == "handed over":
            pid = int(line["to_pid"])
    return pid


@contextlib.contextmanager
def ended(pid: int) -> Iterator[None]:
    """The process is asked to end, and has ended."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not alive(pid), f"the end of {pid}", 60)


def alive(pid: int) -> bool:
    """Whether there is such a process, one that nobody has waited for left out."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A proxy with a trace, metrics and a statsd port: all that changes hands."""
    site = Site(
        tmp_path,
        drain_timeout="60s",
        trace={"sqlite": str(tmp_path / "trace.db")},
        metrics={"bind": f"127.0.0.1:{free_port()}"},
        statsd={"bind": f"127.0.0.1:{free_port()}"},
    )
    yield site
    site.proxy.stop()
    site.upstream.stop()


def test_no_request_fails_in_three_upgrades(site: Site) -> None:
    """By the command, the admin API and the signal; the old processes end with 0, and the last one
    is stopped by SIGTERM like the first."""
    pids = [site.proxy.pid]
    with contextlib.ExitStack() as stack:
        with Load(site, 4) as load:
            for number in range(3):
                if number == 0:
                    pid = int(upgraded(site)["pid"])
                elif number == 1:
                    status, answer = site.proxy.admin_post("/api/upgrade")
                    assert (status, answer["upgraded"]) == (200, True), answer
                    pid = answer["pid"]
                else:
                    os.kill(pids[-1], signal.SIGUSR2)
                    wait_until(lambda: site.proxy.output().count('"handed over"') == 3, "it", 60)
                    pid = serving_pid(site)
                stack.enter_context(ended(pid))
                assert pid not in pids
                pids.append(pid)
                wait_until(lambda: not alive(pids[-2]), "the end of the one before", 60)
                more_answers(load)
        assert load.failed == []
        assert site.proxy.process.wait(60) == 0
        assert site.proxy.admin("/readyz")[0] == 200
        assert "Traceback" not in site.proxy.output()
        assert "unwritten" not in site.proxy.output()


def test_a_request_in_flight_is_answered_by_the_old_process(site: Site) -> None:
    """The old one drains while the new one serves, also with a config that has changed."""
    release = threading.Event()

    def slow(connection: Connection, request: Request) -> None:
        connection.body(request)
        assert release.wait(60)
        connection.send(respond(b"finished"))

    site.upstream.handler = slow
    with site.connect() as busy:
        busy.send(get("/slow"))
        site.upstream.wait_requests(1)
        route = {"name": "other", "path": "/other", "upstream": "app"}
        front = site.config["listeners"]["front"] | {"routes": [route]}
        site.proxy.write(site.proxy.config | {"listeners": {"renamed": front}})
        status, answer = site.proxy.admin_post("/api/upgrade")
        assert status == 200, answer
        with ended(answer["pid"]):
            assert site.ask(get("/slow")).status == 404
            assert site.proxy.process.poll() is None
            release.set()
            assert busy.response().body == b"finished"
            assert site.proxy.process.wait(60) == 0
            assert site.ask(get("/other")).status == 200


@pytest.mark.parametrize("broken", ["config", "port"])
def test_the_old_process_goes_on_when_the_new_one_fails(site: Site, broken: str) -> None:
    """A file with problems is found before anything changes, a port in use after the stores have
    been handed over; either way nobody notices, and the reason is said."""
    config: dict[str, Any] = dict(site.proxy.config)
    with socket.socket() as taken, Load(site, 2) as load:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        if broken == "config":
            site.proxy.write(config | {"listners": {}})
            reason = "listners"
        else:
            front = config["listeners"]["front"]
            bind = f"127.0.0.1:{taken.getsockname()[1]}"
            more = {"front": front, "more": front | {"bind": bind}}
            site.proxy.write(config | {"listeners": more})
            reason = bind
        status, answer = site.proxy.admin_post("/api/upgrade")
        assert (status, answer["code"]) == (409, "upgrade_failed")
        assert reason in answer["detail"]
        more_answers(load)
        assert site.proxy.admin("/readyz")[0] == 200
    assert load.failed == []
    site.proxy.write(config)
    status, answer = site.proxy.admin_post("/api/upgrade")
    assert status == 200, answer
    with ended(answer["pid"]):
        assert site.ask(get()).status == 200
        assert site.proxy.process.wait(60) == 0


def test_a_stop_during_an_upgrade_ends_both(site: Site) -> None:
    """The new process hangs before it is prepared; SIGTERM to the old one waits for neither."""
    site.proxy.file.unlink()
    os.mkfifo(site.proxy.file)  # the new process waits for its config
    site.proxy.signal(signal.SIGUSR2)
    child = Path(f"/proc/{site.proxy.pid}/task/{site.proxy.pid}/children")

    def successor() -> list[int]:
        return [
            int(pid)
            for task in child.parent.parent.glob("*/children")
            for pid in task.read_text().split()
            if b"run" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        ]

    wait_until(lambda: bool(successor()), "the new process", 60)
    (pid,) = successor()
    assert site.ask(get()).status == 200
    site.proxy.signal(signal.SIGTERM)
    assert site.proxy.process.wait(60) == 0
    assert not alive(pid)


def test_jobs_change_hands(tmp_path: Path, redis_server: RedisServer) -> None:
    """Creations go on through an upgrade that fails after the store was given away, and through one
    that succeeds: each is confirmed, none is lost, and one process at a time writes."""
    app = App(redis_server)
    over = threading.Event()
    created: list[str] = []
    with (
        JobSite(tmp_path / "site", redis_server, app.upstream.url) as site,
        socket.socket() as taken,
    ):
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def create() -> None:
            while not over.is_set():
                response = site.create()
                created.append(
                    str(json.loads(response.body).get("job_id"))
                    if response.status == 202
                    else f"refused: {response.body!r}"
                )

        thread = threading.Thread(target=create)
        thread.start()
        try:
            front = site.proxy.config["listeners"]["front"]
            bind = f"127.0.0.1:{taken.getsockname()[1]}"
            more = {"front": front, "more": front | {"bind": bind}}
            site.proxy.write(site.proxy.config | {"listeners": more})
            assert site.proxy.admin_post("/api/upgrade")[0] == 409
            count = len(created)
            wait_until(lambda: len(created) > count + 5, "creations by the old process", 60)
            site.proxy.write(site.proxy.config)
            status, answer = site.proxy.admin_post("/api/upgrade")
            assert status == 200, answer
            count = len(created)
            wait_until(lambda: len(created) > count + 5, "creations by the new process", 60)
        finally:
            over.set()
            thread.join()
        with ended(answer["pid"]):
            assert [one for one in created if not one.startswith("mv_")] == []
            wait_until(lambda: all(site.shown(one) for one in created), "all in the mirror", 60)
            assert site.proxy.process.wait(60) == 0
            logged = site.proxy.output()
            results = {line.get("result") for line in site.proxy.log() if "result" in line}
            assert results <= {"degraded"}  # a busy machine's SQLite, at worst
            assert "Traceback" not in logged
    app.stop()
    assert app.upstream.faults == []


def test_a_creation_that_outlasts_the_handover_keeps_its_answer(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """The app answers when the store is another process's: its word stands."""
    app = App(redis_server)
    with JobSite(tmp_path / "site", redis_server, app.upstream.url) as site:
        site.proxy.write(site.proxy.config | {"drain_timeout": "60s"})
        assert site.proxy.admin_post("/api/reload")[0] == 200
        app.answering.clear()
        answers: list[int] = []
        thread = threading.Thread(target=lambda: answers.append(site.create().status))
        thread.start()
        app.upstream.wait_requests(1)
        status, answer = site.proxy.admin_post("/api/upgrade")
        assert status == 200, answer
        with ended(answer["pid"]):
            app.answering.set()
            thread.join()
            assert answers == [202]
            wait_until(lambda: bool(site.shown("mv_00000001")), "it in the new mirror", 60)
    app.stop()
