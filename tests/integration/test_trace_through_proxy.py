"""What a running proxy keeps of its exchanges, and what it does not."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.demo.redis_server import free_port
from tests.http1 import Connection, Request, Site, answer, get, post, respond, wait_until
from tests.http1.upstream import ok

RETRY = {"attempts": 3, "on": ["connect", 503], "backoff": "1ms", "min_per_second": 1000}
BUSY = answer(respond(b"busy", "503 Service Unavailable"))


def routes(**more: Any) -> list[dict[str, Any]]:
    """One that is not traced, and one for everything else."""
    return [
        {"name": "quiet", "path": "/quiet", "upstream": "app", "trace": False},
        {"name": "all", "path": "/{rest:*}", "upstream": "app", **more},
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A proxy that samples nothing: what is kept has a reason."""
    tmp_path = tmp_path_factory.mktemp("trace")
    listeners = {
        "front": {"routes": routes()},
        "out": {"direction": "egress", "routes": routes()},
    }
    settings = {"sqlite": str(tmp_path / "trace.db"), "sample": 0, "slow": "300ms"}
    with Site(tmp_path, listeners, trace=settings) as site:
        yield site


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """The same, its upstream well."""
    shared.upstream.fresh()
    yield shared
    shared.check()


@pytest.fixture
def again(tmp_path: Path) -> Iterator[Site]:
    """A proxy that tries again."""
    settings = {"sqlite": str(tmp_path / "trace.db"), "sample": 0}
    with Site(tmp_path, app={"retry": RETRY}, trace=settings) as site:
        yield site
        site.check()


def known(site: Site, wanted: str) -> dict[str, Any] | None:
    """The timeline of an ID; None when there is none."""
    status, body = site.proxy.admin(f"/api/trace/{wanted}")
    assert status in (200, 404), body
    return json.loads(body) if status == 200 else None


def timeline(site: Site, wanted: str) -> dict[str, Any]:
    """The timeline of an ID, waited for: an exchange is recorded after its answer is out."""
    wait_until(lambda: known(site, wanted) is not None, f"a story of {wanted}")
    found = known(site, wanted)
    assert found is not None
    return found


def recent(site: Site, query: str = "") -> list[dict[str, Any]]:
    """The latest events."""
    events = json.loads(site.proxy.admin(f"/api/trace{query}")[1])["events"]
    return [event for event in events if event["source"] != "proxy"]


def of(name: str) -> str:
    """A field with a correlation ID."""
    return f"X-Correlation-ID: {name}"


def test_what_is_kept(site: Site) -> None:
    """Errors of the service's and of ours, and what was slow; nothing of the rest, and nothing at
    all of a route that is not traced."""

    def slowly(connection: Connection, request: Request) -> None:
        connection.body(request)
        assert not connection.wait_end(0.35)
        connection.send(respond(b"late"))

    assert site.ask(get("/fine", of("fine"))).status == 200
    site.upstream.handler = slowly
    assert site.ask(get("/slow", of("slow"))).status == 200
    site.upstream.handler = answer(respond(b"x", "500 Internal Server Error"))
    assert site.ask(get("/broken", of("broken"))).status == 500
    assert site.ask(get("/quiet", of("quiet"))).status == 500
    site.upstream.handler = answer(b"nonsense\r\n\r\n", then="close")
    assert site.ask(get("/odd", of("odd"))).status == 502
    causes = {
        name: timeline(site, name)["suspected_cause"]["kind"] for name in ("slow", "broken", "odd")
    }
    assert causes == {"slow": "service_slow", "broken": "upstream_error", "odd": "upstream_reset"}
    assert known(site, "fine") is None
    assert known(site, "quiet") is None
    (event,) = timeline(site, "odd")["events"]
    assert event["severity"] == "error"
    assert event["facts"]["target"] == site.upstream.url
    latest = recent(site, "?severity=error")
    assert [event["correlation_id"] for event in latest[:2]] == ["odd", "broken"]
    assert recent(site, "?limit=1") == latest[:1]


def test_egress(site: Site) -> None:
    """Calls that begin something are kept, and of those that only look one in ten seconds; a job ID
    in the call itself is believed, and no odd one."""
    assert site.ask(post(b"x", "/jobs", of("begin")), "out").status == 200
    for number in range(5):
        site.ask(get("/jobs/1", of(f"poll-{number}")), "out")
    named = get("/jobs", of("named"), "X-Job-ID: mv_abc", method="DELETE")
    site.ask(named, "out")
    odd = get("/jobs", of("odd"), "X-Job-ID: ../../etc", method="DELETE")
    site.ask(odd, "out")
    assert timeline(site, "begin")["kind"] == "correlation"
    assert timeline(site, "poll-0")["events"][0]["kind"] == "call"
    assert timeline(site, "mv_abc")["correlation_ids"] == ["named"]
    assert timeline(site, "odd")["job_ids"] == []
    assert known(site, "poll-4") is None


def test_attempts_that_failed(again: Site) -> None:
    """Two busy answers, then a good one: the client got 200, and the timeline has all attempts."""
    answers = iter([BUSY, BUSY])

    def handler(connection: Connection, request: Request) -> None:
        next(answers, ok)(connection, request)

    again.upstream.handler = handler
    assert again.ask(get("/", of("third-time"))).status == 200
    received = timeline(again, "third-time")
    assert [(e["source"], e["kind"], e["severity"]) for e in received["events"]] == [
        ("exchange", "request", "warning"),
        ("attempt", "status_503", "warning"),
    ]
    attempt = received["events"][1]
    assert attempt["facts"]["count"] == 2
    assert attempt["facts"]["target"] == again.upstream.url
    assert received["events"][0]["facts"]["attempts"] == 3


def test_a_flood_of_errors_is_bounded(again: Site) -> None:
    """Of one route a hundred at once and ten a second more; what was left out is counted."""
    again.upstream.handler = answer(respond(b"x", "404 Not Found"))
    began = time.monotonic()
    with again.connect() as client:
        for number in range(400):
            client.send(get("/", of(f"flood-{number}")))
            assert client.response().status == 404

    def counted() -> float:
        return again.proxy.metric("proxy_trace_dropped_total", reason="rate") or 0.0

    most = 101 + 10 * (time.monotonic() - began)
    wait_until(lambda: len(recent(again, "?limit=500")) + counted() == 400, "all kept or counted")
    assert 100 <= len(recent(again, "?limit=500")) <= most


@pytest.mark.parametrize(
    "path",
    [
        "/x?token=secret&a=b",
        "/%1b%5b31m",
        "/" + "y" * 3000,
        "/?q=" + "%00" * 500,
        "/'; DROP TABLE x",
    ],
)
def test_hostile_paths(site: Site, path: str) -> None:
    """Secrets are masked, what acts on terminals is escaped, what is long is cut."""
    site.upstream.handler = answer(respond(b"x", "404 Not Found"))
    raw = path.replace(" ", "%20")
    wanted = f"hostile-{hash(path)}"
    assert site.ask(get(raw, of(wanted))).status in (400, 404)
    (event,) = timeline(site, wanted)["events"]
    shown = event["facts"]["path"]
    assert "secret" not in shown
    assert shown.isprintable()
    assert len(shown) <= 501
    assert len(event["summary"]) <= 301


@pytest.mark.parametrize("wanted", ["%00", "a b", "x" * 200, "..%2f..", "'%20OR%201=1"])
def test_odd_ids(site: Site, wanted: str) -> None:
    """What no ID can be is not known, and nothing else."""
    assert site.proxy.admin(f"/api/trace/{wanted}".replace(" ", "%20"))[0] == 404


@pytest.mark.parametrize(
    "query", ["?severity=bad", "?limit=0", "?limit=501", "?x=1", "?limit=1&limit=2"]
)
def test_odd_questions(site: Site, query: str) -> None:
    """A question that cannot be meant so is refused."""
    assert site.proxy.admin(f"/api/trace{query}")[0] == 400


def test_it_survives_a_restart(tmp_path: Path) -> None:
    """What one process kept, the next one shows."""
    settings = {"sqlite": str(tmp_path / "trace.db"), "sample": 0}
    with Site(tmp_path, trace=settings) as site:
        site.upstream.handler = answer(respond(b"x", "500 Internal Server Error"))
        site.ask(get("/", of("before")))
        timeline(site, "before")
    with Site(tmp_path, trace=settings) as site:
        received = timeline(site, "before")
        assert received["suspected_cause"]["kind"] == "upstream_error"
        site.check()


def test_without_a_trace(tmp_path: Path) -> None:
    """The endpoint says that it is off; nothing is written anywhere."""
    with Site(tmp_path) as site:
        site.upstream.handler = answer(respond(b"x", "500 Internal Server Error"))
        site.ask(get("/", of("nobody")))
        status, body = site.proxy.admin("/api/trace/nobody")
        assert status == 404
        assert "off in the config" in json.loads(body)["detail"]
        assert json.loads(site.proxy.admin("/api/trace")[1]) == {"events": []}
        site.check()
    assert not list(tmp_path.glob("*.db*"))


def test_a_route_may_be_left_out_by_a_reload(site: Site) -> None:
    """Its exchanges are recorded no more, those of before stay known."""
    config = json.loads(site.proxy.file.read_text())
    without = json.loads(json.dumps(config))
    without["listeners"]["front"]["routes"] = routes(trace=False)
    site.proxy.write(without)
    try:
        assert site.proxy.admin_post("/api/reload")[0] == 200
        site.upstream.handler = answer(respond(b"x", "500 Internal Server Error"))
        assert site.ask(get("/", of("left-out"))).status == 500
        assert site.ask(get("/", of("kept")), "out").status == 500
        timeline(site, "kept")
        assert known(site, "left-out") is None
    finally:
        site.proxy.write(config)
        assert site.proxy.admin_post("/api/reload")[0] == 200


def test_a_target_that_refuses_for_a_while(tmp_path: Path) -> None:
    """Connections are refused, then one is taken: the waiting is one event."""
    port = free_port()
    upstreams = {"app": {"targets": [f"http://127.0.0.1:{port}"], "connect_patience": "300ms"}}
    settings = {"sqlite": str(tmp_path / "trace.db"), "sample": 0}
    with Site(tmp_path, upstreams=upstreams, trace=settings) as site:
        assert site.ask(get("/", of("refused"))).status == 502
        received = timeline(site, "refused")
        assert received["suspected_cause"]["kind"] == "upstream_unreachable"
        attempts = [e for e in received["events"] if e["source"] == "attempt"]
        assert attempts == [] or attempts[0]["facts"]["count"] > 1
        site.check()
