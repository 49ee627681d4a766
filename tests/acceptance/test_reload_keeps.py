"""A reload keeps what it does not change, changes what it names, or changes nothing at all."""

from __future__ import annotations

import errno
import json
import signal
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import trustme

from proxy.demo.redis_server import RedisServer, free_port
from tests.bench.reloads import Size, variants
from tests.http1.load import Load, more_answers
from tests.http1.message import PATIENCE
from tests.http1.process import wait_until
from tests.http1.site import Site, assert_problem, get
from tests.http1.upstream import Upstream, answer, respond
from tests.jobs_site import App, JobSite, routes


def reload(site: Site, **changes: Any) -> tuple[int, Any]:
    """Load the site's config with these sections instead of its own."""
    site.proxy.write(site.proxy.config | changes)
    return site.proxy.admin_post("/api/reload")


def routed(site: Site, **more: Any) -> dict[str, Any]:
    """The site's listener with one route that has `more`."""
    route = {"name": "all", "path": "/{rest:*}", "upstream": "app", **more}
    return {"front": site.config["listeners"]["front"] | {"routes": [route]}}


def test_the_breakers_window_outlives_a_reload(tmp_path: Path) -> None:
    """Calls before and after a reload open the circuit together; new rules keep the count too."""
    breaker = {"failure_threshold": 1000, "failure_ratio": "50%", "minimum_calls": 20}
    with Site(tmp_path, app={"breaker": breaker}) as site:
        site.upstream.handler = answer(respond(b"", "500 Oh"))
        for _ in range(18):
            assert site.ask(get()).status == 500
        assert reload(site)[0] == 200
        targets = site.proxy.config["upstreams"]["app"]["targets"]
        stricter = {"targets": targets, "breaker": breaker | {"minimum_calls": 21}}
        assert reload(site, upstreams={"app": stricter})[0] == 200
        for _ in range(2):
            assert site.ask(get()).status == 500
        assert site.proxy.breaker("app")["state"] == "closed"
        assert site.ask(get()).status == 500
        assert site.proxy.breaker("app")["state"] == "open"


def test_stale_answers_outlive_a_reload(tmp_path: Path) -> None:
    """In the middle of an outage a reload takes no fallback away, unless it changes that very
    fallback; a refused one takes none either."""
    with Site(tmp_path) as site:
        fallback = {"stale": "1h"}
        assert reload(site, listeners=routed(site, fallback=fallback))[0] == 200
        assert site.ask(get("/kept")).status == 200
        site.upstream.handler = answer(respond(b"", "503 Oh"))
        assert site.ask(get("/kept")).get("X-Stale") == "true"
        assert reload(site, listeners=routed(site, fallback=fallback), drain_timeout="3s")[0] == 200
        assert site.ask(get("/kept")).get("X-Stale") == "true"
        assert reload(site, listeners={"front": {"bind": "nowhere"}})[0] == 422
        assert site.ask(get("/kept")).get("X-Stale") == "true"
        assert reload(site, listeners=routed(site, fallback={"stale": "2h"}))[0] == 200
        assert site.ask(get("/kept")).status == 503


def test_a_refused_reload_leaves_late_deletions_where_they_went(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """The target and the key of a config that was refused get nobody's deletions."""
    app = App(redis_server)
    stranger = Upstream()
    try:
        with JobSite(tmp_path / "site", redis_server, app.upstream.url) as site:
            job_id = site.created()
            refused = dict(site.config)
            taken = {"bind": f"127.0.0.1:{app.upstream.port}", "routes": routes()}
            refused["listeners"] = site.config["listeners"] | {"taken": taken}
            refused["upstreams"] = {"app": {"targets": [stranger.url]}}
            site.proxy.write(refused)
            assert site.admin("/api/reload", {})[0] == 422
            app.status = 503
            assert site.delete(job_id).status == 200
            app.well()
            wait_until(
                lambda: any(one.method == "DELETE" for one in app.upstream.requests[2:]),
                "the deletion at the app",
            )
            assert stranger.requests == []
    finally:
        app.stop()
        stranger.stop()


def test_reloads_of_every_kind_fail_no_request(tmp_path: Path) -> None:
    """Two rounds of changes, each of something else: no answer but 200, and nothing grows."""
    with Site(tmp_path, trace={"sqlite": str(tmp_path / "trace.db")}) as site:
        configs = list(variants(site.proxy.config, tmp_path))
        with Load(site, 4) as load:
            for config in configs:
                status, result = reload(site, **config)
                assert status == 200, str(result)
            first = Size.of(site.proxy)
            for config in configs:
                status, result = reload(site, **config)
                assert status == 200, str(result)
                more_answers(load)
        assert load.failed == []
        wait_until(
            lambda: Size.of(site.proxy).descriptors <= first.descriptors + 8, "closed descriptors"
        )
        assert Size.of(site.proxy).tasks == first.tasks


def test_a_listener_comes_back_at_once(tmp_path: Path) -> None:
    """Who takes a change back has the address as he had it, though its sockets were just left."""
    with Site(tmp_path) as site:
        port = free_port()
        side = site.config["listeners"]["front"] | {"bind": f"127.0.0.1:{port}"}
        both = site.config["listeners"] | {"side": side}
        for _ in range(3):
            status, result = reload(site, listeners=both)
            assert status == 200, str(result)
            with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
                client.sendall(get())
                assert client.recv(65_536).startswith(b"HTTP/1.1 200 ")
                assert reload(site)[0] == 200  # a connection that is left open holds no address


def test_authorities_are_read_anew(tmp_path: Path) -> None:
    """An upstream whose section did not change is verified by what its CA file says now."""
    old, new = trustme.CA(), trustme.CA()
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    new.issue_cert("127.0.0.1").configure_cert(served)
    file = tmp_path / "ca.pem"
    old.cert_pem.write_to_path(str(file))
    secured = Upstream(tls=served)
    try:
        app = {"targets": [secured.url], "connect_patience": "0s", "tls": {"ca": str(file)}}
        with Site(tmp_path) as site:
            assert reload(site, upstreams={"app": app})[0] == 200
            assert_problem(site.ask(get()), 502, "upstream_unreachable")
            new.cert_pem.write_to_path(str(file))
            assert reload(site, upstreams={"app": app})[0] == 200
            assert site.ask(get()).status == 200
            file.write_text("no certificate")
            assert reload(site, upstreams={"app": app})[0] == 422
            assert site.ask(get()).status == 200
    finally:
        secured.stop()


def test_a_reload_during_a_drain_is_refused(tmp_path: Path) -> None:
    """Listeners that are opened now would be cut in a moment: 409, and nothing is opened."""
    site = Site(tmp_path)
    release = threading.Event()
    extra = free_port()

    def slowly(connection: Any, request: Any) -> None:
        connection.body(request)
        assert release.wait(PATIENCE)
        connection.send(respond(b"finished"))

    site.upstream.handler = slowly
    with site, site.connect() as busy:
        busy.send(get())
        site.upstream.wait_requests(1)
        site.proxy.signal(signal.SIGTERM)
        wait_until(lambda: site.proxy.admin("/readyz")[0] == 503, "a proxy that drains")
        front = site.config["listeners"]["front"]
        more = {"front": front, "extra": front | {"bind": f"127.0.0.1:{extra}"}}
        status, refusal = reload(site, listeners=more)
        assert (status, refusal["code"]) == (409, "stopping")
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", extra)) == errno.ECONNREFUSED
        release.set()
        assert busy.response().body == b"finished"


def test_the_apps_telemetry_is_started_anew(tmp_path: Path) -> None:
    """A statsd listener comes, moves and goes by reloads; one whose address is taken leaves the
    old one at work."""
    first, second = free_port(), free_port()

    def send(port: int, value: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(f"ocr_frames_processed_total:{value}|c".encode(), ("127.0.0.1", port))

    def counted(port: int) -> bool:
        send(port, 1)
        return bool(site.proxy.metric("ocr_frames_processed_total"))

    with Site(tmp_path) as site:
        assert site.proxy.metric("ocr_frames_processed_total") is None
        assert reload(site, statsd={"bind": f"127.0.0.1:{first}"})[0] == 200
        wait_until(lambda: counted(first), "a frame through the first address")
        assert reload(site, statsd={"bind": f"127.0.0.1:{second}"})[0] == 200
        wait_until(lambda: counted(second), "a frame through the second address")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", first))
            assert reload(site, statsd={"bind": f"127.0.0.1:{first}"})[0] == 422
        wait_until(lambda: counted(second), "a frame through the address that stayed")
        assert reload(site)[0] == 200
        assert site.proxy.metric("ocr_frames_processed_total") is None


def test_the_log_moves_by_a_reload(tmp_path: Path) -> None:
    """From the reload on lines go to the new file; a file that cannot be opened changes nothing."""
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    with Site(tmp_path, logging={"output": str(first)}) as site:
        assert site.ask(get("/", "X-Correlation-ID: before")).status == 200
        wait_until(lambda: "before" in first.read_text(), "the first line")
        nowhere = {"output": str(tmp_path / "no" / "such" / "folder.log")}
        assert reload(site, logging=nowhere)[0] == 422
        assert reload(site, logging={"output": str(second)})[0] == 200
        assert site.ask(get("/", "X-Correlation-ID: after")).status == 200
        wait_until(lambda: second.exists() and '"after"' in second.read_text(), "the new file")
        assert '"after"' not in first.read_text()


def test_certificates_change_between_two_handshakes(tmp_path: Path) -> None:
    """New certificates are for the next handshake; what fails to load changes nothing."""
    authority = trustme.CA()
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    trusted = ssl.create_default_context()
    authority.configure_trust(trusted)

    def issue() -> None:
        issued = authority.issue_cert("127.0.0.1")
        key.write_bytes(issued.private_key_pem.bytes())
        cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))

    def serial(site: Site) -> str:
        with site.connect(tls=trusted, server_name="127.0.0.1") as client:
            client.send(get())
            assert client.response().status == 200
            found = client.sock.getpeercert()  # type: ignore[attr-defined]
            return str(found["serialNumber"])

    issue()
    listeners = {"front": {"tls": {"cert": str(cert), "key": str(key)}}}
    with Site(tmp_path, listeners) as site:
        before = serial(site)
        issue()
        assert reload(site)[0] == 200
        after = serial(site)
        assert after != before
        cert.write_text("no certificate")
        assert reload(site)[0] == 422
        assert serial(site) == after


def test_the_trace_comes_moves_and_goes(tmp_path: Path) -> None:
    """A reload begins a trace, moves it to another file with other bounds, and ends it; requests
    are recorded where the config of their time says."""
    first, second = tmp_path / "first.db", tmp_path / "second.db"

    def known(site: Site, correlation_id: str) -> bool:
        return site.proxy.admin(f"/api/trace/{correlation_id}")[0] == 200

    def asked(site: Site, correlation_id: str) -> None:
        response = site.ask(get("/", f"X-Correlation-ID: {correlation_id}"))
        assert response.status == 200

    with Site(tmp_path) as site:
        asked(site, "untraced")
        assert reload(site, trace={"sqlite": str(first), "sample": "100%"})[0] == 200
        asked(site, "in-the-first")
        wait_until(lambda: known(site, "in-the-first"), "a trace")
        assert not known(site, "untraced")
        assert reload(site, trace={"sqlite": str(second), "sample": "100%"})[0] == 200
        asked(site, "in-the-second")
        wait_until(lambda: known(site, "in-the-second"), "a trace in another file")
        assert not known(site, "in-the-first")
        assert reload(site)[0] == 200
        asked(site, "untraced-again")
        assert not known(site, "untraced-again")
        assert reload(site, trace={"sqlite": str(first), "sample": "100%"})[0] == 200
        assert known(site, "in-the-first")


def test_a_refused_reload_is_shown_until_one_succeeds(tmp_path: Path) -> None:
    """The status page says that the old config is in force, and why."""

    def findings() -> dict[str, str]:
        health = json.loads(site.proxy.admin("/api/status")[1])["health"]
        return {finding["kind"]: finding["summary"] for finding in health["findings"]}

    with Site(tmp_path) as site:
        assert "reload_refused" not in findings()
        assert reload(site, upstreams={"app": {"targets": []}})[0] == 422
        assert "upstreams.app.targets" in findings()["reload_refused"]
        assert reload(site)[0] == 200
        assert "reload_refused" not in findings()
