"""The life of the process: signals, drain, reload, log files, a stdout that goes away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.http1 import (
    PATIENCE,
    Connection,
    ProxyProcess,
    RawClient,
    Request,
    Site,
    answer,
    assert_problem,
    free_port,
    get,
    ok,
    respond,
    wait_until,
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A fresh proxy for each test, since most end it."""
    with Site(tmp_path, drain_timeout="60s") as site:  # longer than any test waits
        yield site
        assert site.upstream.faults == []


def hold(release: threading.Event) -> object:
    """A handler that answers when released."""

    def handler(connection: Connection, request: Request) -> None:
        connection.body(request)
        assert release.wait(PATIENCE)
        connection.send(respond(b"finished"))

    return handler


# --- drain --------------------------------------------------------------------------------------


def test_sigterm_lets_requests_finish(site: Site) -> None:
    """`/readyz` goes 503, the answer in flight says `Connection: close`, then exit code 0."""
    release = threading.Event()
    site.upstream.handler = hold(release)
    with site.connect() as client:
        client.send(get("/slow"))
        site.upstream.wait_requests(1)
        site.proxy.signal(signal.SIGTERM)
        wait_until(lambda: site.proxy.admin("/readyz")[0] == 503, "readyz 503")
        assert site.proxy.admin("/livez")[0] == 200
        assert site.proxy.process.poll() is None
        release.set()
        response = client.response()
        assert response.body == b"finished"
        assert not response.keeps_alive
        client.assert_closed()
    assert site.proxy.process.wait(PATIENCE) == 0
    assert "Traceback" not in site.proxy.output()


def test_sigterm_closes_idle_connections(site: Site) -> None:
    """Kept-alive connections do not hold the process up."""
    with site.connect() as idle, site.connect():
        idle.send(get())
        assert idle.response().status == 200
        site.proxy.signal(signal.SIGTERM)
        idle.assert_closed()
        assert site.proxy.process.wait(PATIENCE) == 0


def test_request_on_a_kept_connection_while_draining(site: Site) -> None:
    """It is served with `Connection: close`, refused as `draining`, or finds the line closed."""
    release = threading.Event()
    site.upstream.handler = hold(release)
    with site.connect() as busy, site.connect() as idle:
        idle.send(b"GET / HTTP/1.1\r\n")
        busy.send(get("/slow"))
        site.upstream.wait_requests(1)
        site.proxy.signal(signal.SIGTERM)
        wait_until(lambda: site.proxy.admin("/readyz")[0] == 503, "readyz 503")
        site.upstream.handler = ok
        idle.send_lenient(b"Host: example.test\r\n\r\n")
        text = idle.rest()
        release.set()
        assert busy.response().body == b"finished"
    if text:
        head = text.partition(b"\r\n\r\n")[0].lower()
        assert b"connection: close" in head
        assert head.startswith(b"http/1.1 200") or b"retry-after: " in head
    assert site.proxy.process.wait(PATIENCE) == 0


def test_drain_ends_at_its_timeout(tmp_path: Path) -> None:
    """A request that never ends is cut off after `drain_timeout`, and the process ends."""
    release = threading.Event()
    with Site(tmp_path, drain_timeout="500ms") as site:
        site.upstream.handler = hold(release)
        with site.connect() as client:
            client.send(get("/", "X-Correlation-ID: cut"))
            site.upstream.wait_requests(1)
            site.proxy.signal(signal.SIGTERM)
            site.proxy.process.wait(PATIENCE)
            text = client.rest()
        assert not text.startswith(b"HTTP/1.1 200")
        release.set()
        assert "Traceback" not in site.proxy.output()
        assert site.proxy.access_line("cut"), "the line of a request cut off is not lost"


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_at_once(site: Site, first: signal.Signals) -> None:
    """Who asks twice does not wait for anybody."""
    release = threading.Event()
    site.upstream.handler = hold(release)
    with site.connect() as client:
        client.send(get("/slow"))
        site.upstream.wait_requests(1)
        site.proxy.signal(first)
        wait_until(lambda: site.proxy.admin("/readyz")[0] == 503, "readyz 503")
        site.proxy.signal(first)
        site.proxy.process.wait(PATIENCE)
    release.set()
    assert "Traceback" not in site.proxy.output()


def test_log_is_complete_after_a_drain(site: Site) -> None:
    """Every exchange has its line, also the last ones before the end."""
    with site.connect() as client:
        client.send(b"".join(get("/", f"X-Correlation-ID: r{n}") for n in range(300)))
        for _ in range(300):
            assert client.response().status == 200
    assert site.proxy.stop() == 0
    seen = {line.get("correlation_id") for line in site.proxy.log()}
    assert {f"r{n}" for n in range(300)} <= seen


# --- reload -------------------------------------------------------------------------------------


def test_sighup_swaps_the_config(site: Site) -> None:
    """New routes and listeners appear, old listeners go; kept connections and requests live on."""
    extra, release = free_port(), threading.Event()
    front = site.config["listeners"]["front"]
    site.upstream.handler = hold(release)
    with site.connect() as busy, site.connect() as kept:
        busy.send(get("/slow"))
        site.upstream.wait_requests(1)
        new = dict(site.proxy.config)
        new["listeners"] = {
            "front": front | {"routes": [{"name": "n", "path": "/new", "upstream": "app"}]},
            "extra": front | {"bind": f"127.0.0.1:{extra}"},
        }
        site.proxy.write(new)
        site.proxy.signal(signal.SIGHUP)
        site.addresses["extra"] = ("127.0.0.1", extra)
        wait_until(lambda: reachable(site, "extra"), "the new listener")
        release.set()
        assert busy.response().body == b"finished"
        site.upstream.handler = ok
        kept.send(get("/new"))
        assert kept.response().body == b"GET /new 0"
        kept.send(get("/old"))
        assert_problem(kept.response(), 404, "no_route")
        assert site.ask(get("/any"), "extra").status == 200
    new["listeners"] = {"front": front}
    site.proxy.write(new)
    site.proxy.signal(signal.SIGHUP)
    wait_until(lambda: not reachable(site, "extra"), "the end of the removed listener")
    assert site.ask(get("/any")).status == 200
    site.check()


def test_who_waits_for_a_connection_outlasts_a_reload(site: Site) -> None:
    """The upstream changes while one call has its only connection and three wait for it: all are
    served by the upstream that they asked for, over that connection."""
    release = threading.Event()

    def hold_back(connection: Connection, request: Request) -> None:
        connection.body(request)
        assert release.wait(30)
        connection.send(respond(b"finished"))

    pool = {"max_connections": 1, "queue_timeout": "30s"}
    reload_app(site, {"pool": pool})
    site.upstream.handler = hold_back
    clients = [site.connect() for _ in range(4)]
    try:
        for number, client in enumerate(clients):
            client.send(get(f"/{number}"))
        wait_until(lambda: site.proxy.metric("proxy_requests_in_flight") == 4, "four in flight")
        dialled = site.proxy.metric("proxy_upstream_connect_seconds_count", upstream="app")
        reload_app(site, {"pool": pool | {"queue": 7}})
        release.set()
        assert [client.response().body for client in clients] == [b"finished"] * 4
    finally:
        release.set()
        for client in clients:
            client.close()
    after = site.proxy.metric("proxy_upstream_connect_seconds_count", upstream="app")
    assert after == dialled == 1
    site.check()


def reload_app(site: Site, app: dict[str, object]) -> None:
    """Give the upstream these settings."""
    config = site.proxy.config
    site.proxy.write(
        config | {"upstreams": {"app": {"targets": config["upstreams"]["app"]["targets"]} | app}}
    )
    status, answer = site.proxy.admin_post("/api/reload")
    assert status == 200, answer


def reachable(site: Site, listener: str) -> bool:
    """Whether the listener accepts connections."""
    try:
        site.connect(listener).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    "text",
    ["", "{", "listeners: {front: {bindd: 1}}", "[1, 2]"],
    ids=["empty", "not yaml", "unknown key", "a list"],
)
def test_invalid_reload_changes_nothing(site: Site, text: str) -> None:
    """The old config stays, the log says what is wrong, the process lives."""
    site.proxy.file.write_text(text)
    site.proxy.signal(signal.SIGHUP)
    wait_until(
        lambda: any(line["level"] == "ERROR" for line in site.proxy.log()), "a refusal in the log"
    )
    assert site.ask(get()).status == 200
    site.check()


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"admin": {"bind": "127.0.0.1:9999", "token": "a-new-one"}}, "admin"),
        ({"metrics": {"bind": "127.0.0.1:9998"}}, "metrics"),
    ],
    ids=["admin", "metrics"],
)
def test_an_address_that_a_reload_cannot_change_is_logged(
    site: Site, section: dict[str, object], key: str
) -> None:
    """No log line claims that a new token or address is in force when it is not."""
    before = site.proxy.admin("/api/config")
    site.proxy.write(site.proxy.config | section)
    status, answer = site.proxy.admin_post("/api/reload")
    assert status == 422
    assert f"{key} cannot be changed by a reload" in str(answer["problems"])
    assert site.proxy.admin("/api/config") == before
    site.proxy.write(site.proxy.config)
    assert site.proxy.admin_post("/api/reload")[0] == 200


def test_reload_survives_a_missing_file(site: Site) -> None:
    """The same when the file is gone."""
    site.proxy.file.unlink()
    site.proxy.signal(signal.SIGHUP)
    wait_until(
        lambda: any(line["level"] == "ERROR" for line in site.proxy.log()), "a refusal in the log"
    )
    assert site.ask(get()).status == 200
    site.check()


def test_many_reloads_under_load(site: Site) -> None:
    """Ten reloads while requests run: every one is answered, nothing leaks."""
    done = threading.Event()
    bad: list[object] = []

    def load() -> None:
        with site.connect() as client:
            while not done.is_set():
                client.send(get())
                response = client.response()
                if response.status != 200:
                    bad.append(response)

    def reload(number: int) -> None:
        """Load a config that knows `/` and `/only/{number}`."""
        front = site.config["listeners"]["front"] | {
            "routes": [
                {"name": "root", "path": "/", "upstream": "app"},
                {"name": "only", "path": f"/only/{number}", "upstream": "app"},
            ]
        }
        site.proxy.write(site.proxy.config | {"listeners": {"front": front}})
        site.proxy.signal(signal.SIGHUP)
        wait_until(lambda: site.ask(get(f"/only/{number}")).status == 200, "new routes")

    before = site.proxy.descriptors()
    worker = threading.Thread(target=load)
    worker.start()
    try:
        for number in range(10):
            reload(number)
            count = len(site.upstream.requests) + 5
            site.upstream.wait_requests(count)
    finally:
        done.set()
        worker.join(PATIENCE)
    assert bad == []
    wait_until(lambda: site.proxy.descriptors() <= before + 3, "closed descriptors")
    site.check()


# --- output -------------------------------------------------------------------------------------


def test_log_file_is_reopened_on_sigusr1(tmp_path: Path) -> None:
    """After a rotation by rename new lines go to a new file; none is lost."""
    log = tmp_path / "proxy.log"
    with Site(tmp_path, logging={"output": str(log)}) as site:
        assert site.ask(get("/", "X-Correlation-ID: before")).status == 200
        wait_until(lambda: "before" in log.read_text(), "the first line")
        log.rename(tmp_path / "proxy.log.1")
        site.proxy.signal(signal.SIGUSR1)
        wait_until(log.exists, "a new log file")
        assert site.ask(get("/", "X-Correlation-ID: after")).status == 200
        wait_until(lambda: '"after"' in log.read_text(), "a line in the new file")
        assert '"after"' not in (tmp_path / "proxy.log.1").read_text()


def test_closed_stdout_does_not_matter(site: Site, tmp_path: Path) -> None:
    """The reader of our log pipe dies: requests are served as before."""
    directory = tmp_path / "piped"
    directory.mkdir()
    port = free_port()
    config = {**site.config, "admin": {"bind": f"127.0.0.1:{free_port()}"}}
    config["listeners"] = {
        "front": site.config["listeners"]["front"] | {"bind": f"127.0.0.1:{port}"}
    }
    file = directory / "proxy.json"
    file.write_text(json.dumps(config))
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "run", "--config", str(file)],
        stdout=writer,
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    site.addresses["piped"] = ("127.0.0.1", port)
    try:
        wait_until(lambda: reachable(site, "piped"), "the piped proxy")
        os.close(reader)
        with RawClient(("127.0.0.1", port)) as client:
            for _ in range(500):
                client.send(get())
                assert client.response().status == 200
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_stdout_closed_from_the_start_does_not_matter(site: Site, tmp_path: Path) -> None:
    """A supervisor that gives no standard output gets a proxy that serves, and ends with 0."""
    port, doors = free_port(), free_port()
    config = {**site.config, "admin": {"bind": f"127.0.0.1:{doors}"}}
    config["listeners"] = {
        "front": site.config["listeners"]["front"] | {"bind": f"127.0.0.1:{port}"}
    }
    file = tmp_path / "mute.json"
    file.write_text(json.dumps(config))
    # The shell closes it: between fork and exec, Python had better run no code of ours.
    process = subprocess.Popen(
        ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "proxy", "run", "--config", file],
        stderr=subprocess.PIPE,
    )
    site.addresses["mute"] = ("127.0.0.1", port)
    try:
        wait_until(lambda: reachable(site, "mute"), "the mute proxy", 30)
        assert site.ask(get(), "mute").status == 200
    finally:
        process.terminate()
        errors = process.communicate(timeout=30)[1]
    assert (process.returncode, errors) == (0, b"")


def test_full_stdout_does_not_matter(site: Site, tmp_path: Path) -> None:
    """The reader of our log pipe stops reading: requests are served as before."""
    directory = tmp_path / "stuck"
    directory.mkdir()
    port = free_port()
    config = {**site.config, "admin": {"bind": f"127.0.0.1:{free_port()}"}}
    config["listeners"] = {
        "front": site.config["listeners"]["front"] | {"bind": f"127.0.0.1:{port}"}
    }
    file = directory / "proxy.json"
    file.write_text(json.dumps(config))
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "proxy", "run", "--config", str(file)],
        stdout=writer,
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    site.addresses["stuck"] = ("127.0.0.1", port)
    try:
        wait_until(lambda: reachable(site, "stuck"), "the stuck proxy")
        with RawClient(("127.0.0.1", port)) as client:
            for _ in range(1000):  # about 500 bytes a line against a pipe of 64 KiB
                client.send(get())
                assert client.response().status == 200
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE)
            raise
        finally:
            os.close(reader)


def test_tunnel_and_stream_do_not_hold_the_drain_for_ever(tmp_path: Path) -> None:
    """An event stream without end is cut visibly when the drain is over."""
    with Site(tmp_path, drain_timeout="500ms") as site:
        site.upstream.handler = answer(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
        )
        with site.connect() as client:
            client.send(get())
            client.read_until(b"hello\r\n")
            site.proxy.signal(signal.SIGTERM)
            site.proxy.process.wait(PATIENCE)
            assert not client.rest().endswith(b"0\r\n\r\n")


def test_the_end_of_the_drain_cuts_a_removed_listener_too(tmp_path: Path) -> None:
    """A request on a listener that a reload has removed is told of the end like any other, and
    logged."""
    listeners: dict[str, dict[str, object]] = {"front": {}, "extra": {}}
    with Site(tmp_path, listeners, drain_timeout="500ms") as site:
        site.upstream.handler = silent
        with site.connect("extra") as client:
            client.send(get("/", "X-Correlation-ID: left-behind"))
            site.upstream.wait_requests(1)
            front = {"front": site.config["listeners"]["front"]}
            site.proxy.write(site.proxy.config | {"listeners": front})
            assert site.proxy.admin_post("/api/reload")[0] == 200
            site.proxy.signal(signal.SIGTERM)
            assert_problem(client.response(), 503, "draining")
            assert site.proxy.process.wait(30) == 0
        assert site.proxy.access_line("left-behind")["status"] == 503


def silent(connection: Connection, request: Request) -> None:
    """Take the request, and say nothing until the proxy leaves."""
    connection.body(request)
    assert connection.wait_end(30)


def test_proxy_process_is_quiet_when_idle(site: Site) -> None:
    """A proxy that nobody calls logs no errors and stays ready."""
    assert isinstance(site.proxy, ProxyProcess)
    assert site.proxy.admin("/readyz")[0] == 200
    assert not [line for line in site.proxy.log() if line["level"] in ("WARNING", "ERROR")]
