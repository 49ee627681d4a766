"""Spans, as a collector gets them: OTLP over HTTP, decoded with the SDK's own messages."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from proxy.demo.redis_server import RedisServer, free_port
from tests.http1.client import RawClient
from tests.http1.message import PATIENCE
from tests.http1.process import ProxyProcess, wait_until
from tests.http1.site import get
from tests.http1.upstream import Upstream, respond
from tests.jobs_kit import PREFIX
from tests.jobs_site import App, JobSite, new

service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    reason="the extra `otel` is not installed",
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"traceparent: 00-{TRACE}-{SPAN}-01"
SERVER, CLIENT, INTERNAL = 2, 3, 1  # SpanKind of the protocol
FAILED = 2  # StatusCode


class Collector:
    """A real HTTP server that takes `ExportTraceServiceRequest`s. `status`: what it answers."""

    def __init__(self) -> None:
        self.status = 200
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                fields = {name.lower(): value for name, value in self.headers.items()}
                collector.requests.append((self.path, fields))
                if collector.status == 200:
                    message = service.ExportTraceServiceRequest.FromString(body)
                    for resource in message.resource_spans:
                        collector.resources.append(attributes(resource.resource))
                        for scope in resource.scope_spans:
                            collector.spans += scope.spans
                reply = service.ExportTraceServiceResponse().SerializeToString()
                self.send_response(collector.status)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: object) -> None:
                """Nothing on stderr."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def of(self, correlation_id: str, count: int) -> list[Any]:
        """The spans of an exchange or job, once there are so many, in order."""

        def found() -> list[Any]:
            spans = [
                one for one in self.spans if attributes(one).get("correlation_id") == correlation_id
            ]
            return sorted(spans, key=lambda one: (one.start_time_unix_nano, one.kind))

        wait_until(lambda: len(found()) >= count, f"{count} spans of {correlation_id}")
        assert len(found()) == count, [one.name for one in found()]
        return found()

    def stop(self) -> None:
        """Close."""
        self._server.shutdown()
        self._thread.join(PATIENCE)
        self._server.server_close()


def attributes(holder: Any) -> dict[str, Any]:
    """Attributes as Python values."""
    return {
        one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in holder.attributes
    }


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A collector."""
    collector = Collector()
    yield collector
    collector.stop()


@pytest.fixture
def app() -> Iterator[Upstream]:
    """The app behind the proxy."""
    app = Upstream()
    yield app
    app.stop()


class Site:
    """A proxy that sends spans."""

    def __init__(
        self, path: Path, target: str, endpoint: str, *, sample: str = "100%", **upstream: Any
    ) -> None:
        self.address = ("127.0.0.1", free_port())
        self.proxy = ProxyProcess(
            path,
            {
                "listeners": {
                    "front": {
                        "bind": f"127.0.0.1:{self.address[1]}",
                        "routes": [{"name": "job", "path": "/jobs/{job_id}", "upstream": "app"}],
                    }
                },
                "upstreams": {"app": {"targets": [target], "connect_patience": "0s", **upstream}},
                "telemetry": {
                    "otlp": {"endpoint": endpoint, "sample": sample, "headers": {"X-Key": "secret"}}
                },
            },
        )

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.stop()


def parents(app: Upstream) -> list[list[str]]:
    """What the app got as `traceparent`, of each request."""
    return [request.all("traceparent") for request in app.requests]


def openmetrics(proxy: ProxyProcess, prefix: str) -> str:
    """The lines of a family as a scraper gets them that stores exemplars."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{proxy.admin_port}/metrics",
        headers={"Accept": "application/openmetrics-text; version=1.0.0"},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        lines = reply.read().decode().splitlines()
    return "\n".join(line for line in lines if line.startswith(prefix))


def test_a_trace_is_continued_on_both_paths(
    app: Upstream, collector: Collector, tmp_path: Path
) -> None:
    """The app's parent is our client span, below our server span, below the caller's; the fast
    path (from the second request of a connection on) does the same."""
    with Site(tmp_path, app.url, collector.url) as site:
        with RawClient(site.address) as client:
            for number in range(3):
                client.send(
                    get(
                        f"/jobs/7?n={number}&token=s3cret",
                        PARENT,
                        "tracestate: a=1,b=2",
                        f"X-Correlation-ID: one-{number}",
                        "User-Agent: test/1",
                    )
                )
                assert client.response().status == 200
        assert f'{{trace_id="{TRACE}"}}' in openmetrics(site.proxy, "http_request_duration_seconds")
        assert f'{{trace_id="{TRACE}"}}' in openmetrics(site.proxy, "proxy_upstream_response")
        for number in range(3):
            server, sent = collector.of(f"one-{number}", 2)
            assert (server.kind, sent.kind) == (SERVER, CLIENT)
            assert server.trace_id.hex() == sent.trace_id.hex() == TRACE
            assert server.parent_span_id.hex() == SPAN
            assert sent.parent_span_id == server.span_id
            assert parents(app)[number] == [f"00-{TRACE}-{sent.span_id.hex()}-01"]
            assert app.requests[number].all("tracestate") == ["a=1,b=2"]
            assert server.name == "GET /jobs/{job_id}"
            assert server.start_time_unix_nano <= sent.start_time_unix_nano
            assert sent.end_time_unix_nano <= server.end_time_unix_nano
            facts = attributes(server)
            assert facts["http.request.method"] == "GET"
            assert facts["http.route"] == "/jobs/{job_id}"
            assert facts["url.path"] == "/jobs/7"
            assert "s3cret" not in facts["url.query"]
            assert facts["http.response.status_code"] == 200
            assert facts["user_agent.original"] == "test/1"
            assert facts["client.address"] == "127.0.0.1"
            facts = attributes(sent)
            assert facts["server.address"] == "127.0.0.1"
            assert facts["url.full"].startswith(f"{app.url}/jobs/7?")
            assert "s3cret" not in facts["url.full"]
            assert site.proxy.access_line(f"one-{number}")["trace_id"] == TRACE
    assert {path for path, _ in collector.requests} == {"/v1/traces"}
    assert collector.requests[0][1]["x-key"] == "secret"
    assert collector.resources[0]["service.name"] == "reliability-proxy"


@pytest.mark.parametrize(
    "given", [(), ("traceparent: nonsense", "tracestate: a=1"), (PARENT, PARENT, "tracestate: a=1")]
)
def test_a_trace_is_begun(
    given: tuple[str, ...], app: Upstream, collector: Collector, tmp_path: Path
) -> None:
    """Without a parent, with a malformed one, with two: one field of ours, and no stale state."""
    with Site(tmp_path, app.url, collector.url) as site:
        with RawClient(site.address) as client:
            for number in range(2):
                client.send(get("/jobs/7", f"X-Correlation-ID: b-{number}", *given))
                assert client.response().status == 200
        for number in range(2):
            server, sent = collector.of(f"b-{number}", 2)
            assert not server.parent_span_id
            assert server.trace_id.hex() != TRACE
            (parent,) = parents(app)[number]
            assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-03", parent)
            assert parent.split("-")[1:3] == [server.trace_id.hex(), sent.span_id.hex()]
            assert app.requests[number].get("tracestate") is None


def test_each_attempt_is_a_span(app: Upstream, collector: Collector, tmp_path: Path) -> None:
    """Two failures and a success: three client spans with parents of their own."""
    answers = iter(["503 Service Unavailable", "502 Bad Gateway"])
    app.handler = lambda connection, request: connection.send(
        respond(b"x", next(answers, "200 OK"))
    )
    retry = {"attempts": 3, "on": [502, 503], "backoff": "1ms", "budget": "100%"}
    with Site(tmp_path, app.url, collector.url, retry=retry) as site:
        with RawClient(site.address) as client:
            client.send(get("/jobs/7", "X-Correlation-ID: again"))
            assert client.response().status == 200
        server, *sent = collector.of("again", 4)
    assert [attributes(one)["http.response.status_code"] for one in sent] == [503, 502, 200]
    assert [attributes(one).get("http.request.resend_count") for one in sent] == [None, 1, 2]
    assert [attributes(one).get("error.type") for one in sent] == ["503", "502", None]
    assert [one.status.code for one in sent] == [FAILED, FAILED, 0]
    assert server.status.code == 0
    found = [parent.split("-")[2] for (parent,) in parents(app)]
    assert found == [one.span_id.hex() for one in sent]


def test_an_upstream_that_is_away_is_seen(collector: Collector, tmp_path: Path) -> None:
    """The server span fails with our code, the client span with what happened."""
    with Site(tmp_path, f"http://127.0.0.1:{free_port()}", collector.url) as site:
        with RawClient(site.address) as client:
            client.send(get("/jobs/7", "X-Correlation-ID: away"))
            assert client.response().status == 502
        server, sent = collector.of("away", 2)
    assert server.status.code == sent.status.code == FAILED
    assert attributes(server)["error.type"] == "upstream_unreachable"
    assert attributes(sent)["error.type"] == "connect"


def test_what_is_not_sampled_is_still_connected(
    app: Upstream, collector: Collector, tmp_path: Path
) -> None:
    """Chance never samples here: a trace that begins has no spans, one whose caller wants them
    has, one whose caller does not has none; all go on to the app."""
    with Site(tmp_path, app.url, collector.url, sample="0%") as site:
        with RawClient(site.address) as client:
            for number, given in enumerate([(), (PARENT[:-1] + "0",), (PARENT,)]):
                client.send(get("/jobs/7", f"X-Correlation-ID: s-{number}", *given))
                assert client.response().status == 200
        collector.of("s-2", 2)
    assert [parent[-2:] for (parent,) in parents(app)] == ["02", "00", "01"]
    assert {attributes(one)["correlation_id"] for one in collector.spans} == {"s-2"}


def test_a_collector_that_is_away_harms_nobody(app: Upstream, tmp_path: Path) -> None:
    """Requests are answered, spans are dropped and counted, the stop takes seconds."""
    with Site(tmp_path, app.url, f"http://127.0.0.1:{free_port()}") as site:
        with RawClient(site.address) as client:
            client.send(get("/jobs/7"))
            assert client.response().status == 200
        wait_until(
            lambda: any("spans not taken" in str(one.get("message")) for one in site.proxy.log()),
            "the log line",
        )
        text = site.proxy.admin("/metrics")[1]
        assert 'proxy_otlp_spans_dropped_total{reason="refused"} 2.0' in text
        assert "proxy_otlp_spans_exported_total 0.0" in text


def test_a_job_is_one_long_span(collector: Collector, tmp_path: Path) -> None:
    """Below the exchange that created it, with its stages below."""
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    app = App(server)
    more = {"telemetry": {"otlp": {"endpoint": collector.url, "sample": "100%"}}}
    try:
        with JobSite(tmp_path, server, app.upstream.url, more=more) as site:
            response = site.create()
            assert response.status == 202
            job_id = str(json.loads(response.body)["job_id"])
            first, last = "2026-11-23T13:20:00+00:00", "2026-11-23T13:20:40+00:00"
            stage = {"status": "completed", "started_at": first, "completed_at": last}
            raw = new(job_id, "completed", completed_at=last, stages={"mix": stage})
            site.redis.set(PREFIX + job_id, raw, ex=600)
            spans = collector.of(str(response.get("X-Correlation-ID")), 4)
    finally:
        app.stop()
        server.kill()
    by_name = {one.name: one for one in spans}
    created, job, stage_span = by_name["POST /make-video"], by_name["job"], by_name["stage mix"]
    assert {one.trace_id for one in spans} == {created.trace_id}
    assert job.parent_span_id == created.span_id
    assert stage_span.parent_span_id == job.span_id
    assert stage_span.end_time_unix_nano - stage_span.start_time_unix_nano == 40 * 10**9
    assert attributes(job)["job.id"] == job_id
    assert attributes(job)["job.status"] == "completed"
    assert job.kind == stage_span.kind == INTERNAL


def test_without_the_extra_check_says_what_to_install(tmp_path: Path) -> None:
    """With file, line and key; and nothing is asked of it where no collector is configured."""
    (tmp_path / "opentelemetry.py").write_text("raise ImportError('not installed')\n")
    routes = [{"name": "r", "path": "/", "upstream": "app"}]
    config = {
        "listeners": {"l": {"bind": "127.0.0.1:1", "routes": routes}},
        "upstreams": {"app": {"targets": ["http://127.0.0.1:2"]}},
    }

    def check(**more: Any) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "proxy.json"
        file.write_text(json.dumps({**config, **more}))
        return subprocess.run(
            [sys.executable, "-m", "proxy", "check", "--config", str(file)],
            env={"PYTHONPATH": f"{tmp_path}:{Path.cwd()}", "PATH": ""},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    assert check().returncode == 0
    done = check(telemetry={"otlp": {"endpoint": "http://127.0.0.1:4318"}})
    assert done.returncode == 2
    assert "telemetry.otlp: expected the OpenTelemetry SDK: pip install" in (
        done.stdout + done.stderr
    )
