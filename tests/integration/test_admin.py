"""The admin API over real connections: who may ask what, and what the answers look like."""

from __future__ import annotations

import asyncio
import builtins
import json
import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from proxy.admin.backend import Check, Readiness, ReloadResult
from proxy.admin.endpoints.breakers import Action, BreakerControl
from proxy.admin.endpoints.jobs import JobControl
from proxy.admin.problems import RequeueRefused
from proxy.admin.server import AdminServers
from proxy.config.schema import Config
from proxy.config.units import Bind
from proxy.core.errors import Unavailable
from proxy.telemetry.metrics.registry import Metrics
from tests.http1 import PATIENCE

TOKEN = "s3cret"


class FakeProxy:
    """What the admin API asks, answered by hand."""

    def __init__(self) -> None:
        self.metrics = Metrics("1")
        self.ready = True
        self.problems: list[str] = []
        self.level = "INFO"
        self.reloads = 0

    starting = False

    def live(self) -> bool:
        return True

    def readiness(self) -> Readiness:
        state = "serving" if self.ready else "draining"
        return Readiness(self.ready, {"listeners": Check(self.ready, state)})

    def config(self) -> dict[str, Any]:
        return {"redis": {"url": "redis://***@127.0.0.1"}}

    def routes(self) -> list[dict[str, Any]]:
        return [{"route": "job-status"}]

    async def reload(self) -> ReloadResult:
        self.reloads += 1
        return ReloadResult(not self.problems, self.problems)

    def log_level(self) -> str:
        return self.level

    def set_log_level(self, level: str) -> None:
        if level not in ("DEBUG", "INFO"):
            raise ValueError(f"expected DEBUG or INFO, found {level!r}")
        self.level = level


class FakeBreakers:
    """One breaker."""

    def __init__(self) -> None:
        self.forced: list[tuple[str, str, str, float | None]] = []

    def list(self) -> list[dict[str, Any]]:
        return [{"name": "youtube-search", "state": "closed"}]

    async def force(
        self, name: str, action: Action, reason: str, for_seconds: float | None
    ) -> dict[str, Any]:
        if name == "broken":
            raise RuntimeError("secret inner state")
        if name == "away":
            raise Unavailable("Redis does not answer", retry_after=2.5)
        if name != "youtube-search":
            raise KeyError(name)
        self.forced.append((name, action, reason, for_seconds))
        return {"name": name, "state": "open"}


class FakeJobs:
    """One mirror with one job."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def list(
        self, mirror: str | None, status: str | None, limit: int, stranded: bool
    ) -> list[dict[str, Any]]:
        if mirror not in (None, "make_video"):
            raise KeyError(mirror)
        self.asked.append((mirror, status, limit, stranded))
        return [{"job_id": "mv_1"}]

    def states(self, mirror: str | None) -> builtins.list[dict[str, Any]]:
        if mirror not in (None, "make_video"):
            raise KeyError(mirror)
        return [{"mirror": "make_video"}]

    async def show(self, mirror: str, job_id: str) -> dict[str, Any] | None:
        if mirror != "make_video":
            raise KeyError(mirror)
        return {"job_id": job_id} if job_id == "mv_1" else None

    async def requeue(
        self, mirror: str, job_id: str, reason: str, force: bool
    ) -> dict[str, Any] | None:
        if mirror != "make_video":
            raise KeyError(mirror)
        if not force:
            raise RequeueRefused("it may be worked on", evidence="a worker is busy")
        return {"job_id": job_id, "reason": reason} if job_id == "mv_1" else None

    async def sync(self, mirror: str | None) -> dict[str, Any]:
        self.asked.append(("sync", mirror))
        return {"synced": 1}

    async def restore(self, mirror: str | None) -> dict[str, Any]:
        if mirror not in (None, "make_video"):
            raise KeyError(mirror)
        return {"restored": 0}


class Site:
    """Both doors, open, and a client."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        self.proxy = FakeProxy()
        self.breakers = FakeBreakers()
        self.jobs = FakeJobs()
        self.config = Config.model_validate(
            {
                "listeners": {
                    "in": {
                        "bind": "127.0.0.1:0",
                        "routes": [{"name": "r", "path": "/", "upstream": "u"}],
                    }
                },
                "upstreams": {"u": {"targets": ["http://127.0.0.1:1"]}},
                "admin": {"bind": "127.0.0.1:0", **(config or {})},
                "metrics": {"bind": "127.0.0.1:0"},
            }
        )
        self.servers = AdminServers(
            self.proxy, [BreakerControl(self.breakers), JobControl(self.jobs)]
        )

    async def __aenter__(self) -> Site:
        await self.servers.start(self.config)
        self.session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        await self.servers.stop()

    def url(self, path: str, door: int = 0) -> str:
        return f"http://{self.servers.addresses[door]}{path}"

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        door: int = 0,
    ) -> tuple[int, Any, Mapping[str, str]]:
        """Status, parsed body, headers. What every answer must have is checked here."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        async with self.session.request(
            method, self.url(path, door), data=data, headers=headers
        ) as answer:
            text = await answer.text()
            assert answer.headers["X-Correlation-ID"]
            assert answer.headers["Cache-Control"] == "no-store"
            assert "html" not in answer.content_type
            if answer.status >= 400 and answer.content_type == "application/problem+json":
                document = json.loads(text)
                assert document["status"] == answer.status
                assert document["message"] == document["detail"]
                assert document["correlation_id"] == answer.headers["X-Correlation-ID"]
            parsed = json.loads(text) if "json" in answer.content_type and text else text
            return answer.status, parsed, answer.headers


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Without a token."""
    async with Site() as site:
        yield site


@pytest.fixture
async def guarded() -> AsyncIterator[Site]:
    """With a token."""
    async with Site({"token": TOKEN}) as site:
        yield site


@pytest.mark.parametrize("door", [0, 1])
async def test_probes(site: Site, door: int) -> None:
    """Live and ready; while draining not ready, with the check that says why."""
    assert (await site.ask("GET", "/livez", door=door))[:2] == (200, {"live": True})
    assert (await site.ask("GET", "/readyz", door=door))[0] == 200
    site.proxy.ready = False
    status, body, _ = await site.ask("GET", "/readyz", door=door)
    assert status == 503
    assert body["checks"] == {"listeners": {"ok": False, "detail": "draining"}}


@pytest.mark.parametrize("door", [0, 1])
async def test_metrics_in_both_formats(site: Site, door: int) -> None:
    """The format is chosen by `Accept`."""
    status, text, headers = await site.ask("GET", "/metrics", door=door)
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "proxy_build_info{" in text
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    _, text, headers = await site.ask("GET", "/metrics", headers=accept, door=door)
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert list(text_string_to_metric_families(text))


@pytest.mark.parametrize(
    ("accepts", "packed"),
    [
        ("gzip", True),
        ("br, GZip;q=0.5", True),
        ("identity", False),
        ("gzip;q=0, *", False),
        ("gzip ; q = 0.00", False),
        ("gzipped", False),
    ],
)
async def test_a_scrape_is_packed_for_whoever_takes_that(
    site: Site, accepts: str, packed: bool
) -> None:
    """Prometheus asks for gzip: names and labels that repeat do not cross the network again."""
    plain = (await site.ask("GET", "/metrics", headers={"Accept-Encoding": "identity"}, door=1))[1]
    headers = {"Accept-Encoding": accepts}
    _, text, found = await site.ask("GET", "/metrics", headers=headers, door=1)
    assert (found.get("Content-Encoding") == "gzip") is packed
    assert "Accept-Encoding" in found["Vary"]
    assert text.count("\n# HELP") == plain.count("\n# HELP")
    if packed:
        assert int(found["Content-Length"]) < len(plain) / 3


@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/api/config"])
async def test_head_is_get_without_body(site: Site, path: str) -> None:
    """For load balancers that probe with HEAD."""
    status, body, headers = await site.ask("HEAD", path)
    assert (status, body) == (200, "")
    assert int(headers["Content-Length"]) > 0


async def test_the_read_only_door_has_no_api(site: Site) -> None:
    """Nothing of the operator's is there."""
    for method, path in (("GET", "/api/config"), ("POST", "/api/reload")):
        status, body, _ = await site.ask(method, path, door=1)
        assert (status, body["code"]) == (404, "not_found")
    assert site.proxy.reloads == 0


async def test_config_and_routes(site: Site) -> None:
    """As the proxy returns them."""
    assert (await site.ask("GET", "/api/config"))[1] == site.proxy.config()
    assert (await site.ask("GET", "/api/routes"))[1] == {"routes": site.proxy.routes()}


async def test_reload(site: Site) -> None:
    """A good file is taken; a bad one is refused with every problem."""
    assert (await site.ask("POST", "/api/reload"))[:2] == (200, {"reloaded": True})
    site.proxy.problems = ["x.yaml:3: a: expected b, found c", "x.yaml:4: ..."]
    status, body, _ = await site.ask("POST", "/api/reload")
    assert (status, body["code"]) == (422, "config_refused")
    assert body["problems"] == site.proxy.problems


async def test_log_level(site: Site) -> None:
    """Read, changed, refused."""
    assert (await site.ask("GET", "/api/log-level"))[1] == {"level": "INFO"}
    status, body, _ = await site.ask("POST", "/api/log-level", {"level": "debug"})
    assert (status, body) == (200, {"level": "DEBUG", "before": "INFO"})
    for bad in ({}, {"level": "LOUD"}, {"level": 3}, {"level": "INFO", "for": 1}, [], "x", b"{"):
        status, body, _ = await site.ask("POST", "/api/log-level", bad)
        assert (status, body["code"]) == (400, "bad_request")
    assert site.proxy.level == "DEBUG"


async def test_bodies_are_bounded(site: Site) -> None:
    """Neither a long nor a deep body does harm."""
    status, body, _ = await site.ask("POST", "/api/log-level", b"x" * 100_000)
    assert (status, body["code"]) == (413, "body_too_large")
    status, _, _ = await site.ask("POST", "/api/log-level", b"[" * 60_000)
    assert status == 400


async def test_changes_are_post_only(site: Site) -> None:
    """A link or an image cannot change anything."""
    status, body, headers = await site.ask("GET", "/api/reload")
    assert (status, body["code"]) == (405, "method_not_allowed")
    assert headers["Allow"] == "POST"
    assert site.proxy.reloads == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://[bad"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_pages_of_others_change_nothing(site: Site, headers: dict[str, str]) -> None:
    """A browser that says so is believed; reading is left to the same-origin policy."""
    status, body, _ = await site.ask("POST", "/api/reload", headers=headers)
    assert (status, body["code"]) == (403, "forbidden")
    assert site.proxy.reloads == 0
    assert (await site.ask("GET", "/api/routes", headers=headers))[0] == 200


async def test_our_own_origin_may(site: Site) -> None:
    """A page that we serve ourselves is no stranger."""
    headers = {"Origin": site.url(""), "Sec-Fetch-Site": "same-origin"}
    assert (await site.ask("POST", "/api/reload", headers=headers))[0] == 200


@pytest.mark.parametrize("door", [0, 1])
async def test_rebound_names_are_refused_on_loopback(door: int) -> None:
    """`Host` must be an address, localhost or a configured name."""
    async with Site({"hosts": ["Proxy.Internal"]}) as site:
        for host in ("evil.example", "evil.example:9901", "localhost.evil.example", ""):
            status, body, _ = await site.ask("GET", "/metrics", headers={"Host": host}, door=door)
            assert (status, body["code"]) == (403, "forbidden")
        for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:9901", "a.localhost"):
            assert (await site.ask("GET", "/livez", headers={"Host": host}, door=door))[0] == 200
        named = await site.ask("GET", "/livez", headers={"Host": "proxy.internal:9901"}, door=door)
        assert named[0] == (200 if door == 0 else 403)


async def test_names_are_not_checked_off_loopback() -> None:
    """There the token guards; services are called by names."""
    async with Site({"bind": "0.0.0.0:0", "token": TOKEN}) as site:
        status, _, _ = await site.ask("GET", "/readyz", headers={"Host": "proxy.svc"})
        assert status == 200


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN, "Bearer é"],
)
async def test_without_the_token_only_probes(guarded: Site, authorization: str) -> None:
    """Everything else is 401 and names the scheme."""
    headers = {"Authorization": authorization}
    for path in ("/metrics", "/api/config", "/nowhere"):
        status, body, answer = await guarded.ask("GET", path, headers=headers)
        assert (status, body["code"]) == (401, "unauthorized")
        assert answer["WWW-Authenticate"] == "Bearer"
    for path in ("/livez", "/readyz"):
        assert (await guarded.ask("GET", path, headers=headers))[0] == 200


async def test_with_the_token_everything(guarded: Site) -> None:
    """The scheme's name is written as one likes (RFC 9110 §11.1)."""
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        assert (await guarded.ask("GET", "/api/config", headers=headers))[0] == 200
        assert (await guarded.ask("GET", "/metrics", headers=headers))[0] == 200
    assert (await guarded.ask("GET", "/metrics", door=1))[0] == 200


async def test_correlation(site: Site) -> None:
    """A good ID comes back, a bad one is replaced; on errors too."""
    for path in ("/livez", "/nowhere"):
        _, _, headers = await site.ask("GET", path, headers={"X-Correlation-ID": "abc-1"})
        assert headers["X-Correlation-ID"] == "abc-1"
        _, _, headers = await site.ask("GET", path, headers={"X-Correlation-ID": "a b"})
        assert len(headers["X-Correlation-ID"]) == 36


async def test_our_own_faults_show_no_inside(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """500 without a trace; the log has it, under the same correlation ID."""
    status, body, headers = await site.ask("POST", "/api/breakers/broken/open")
    assert (status, body["code"]) == (500, "internal_error")
    assert "inner" not in json.dumps(body)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.__dict__["correlation_id"] == headers["X-Correlation-ID"]


@pytest.mark.parametrize("raw", [b"GET / HTTP/1.1\r\nbad\r\n\r\n", b"\x16\x03\x01\r\n\r\n"])
async def test_what_is_not_http_is_one_line(
    site: Site, caplog: pytest.LogCaptureFixture, raw: bytes
) -> None:
    """A scanner at the door is no error of ours: 400, and no stack in the log."""
    caplog.set_level(logging.DEBUG)
    door = site.servers.addresses[0]
    reader, writer = await asyncio.open_connection(door.host, door.port)
    writer.write(raw)
    async with asyncio.timeout(PATIENCE):
        assert b" 400 " in await reader.readline()
    writer.close()
    await writer.wait_closed()
    (record,) = [record for record in caplog.records if record.name == "proxy.admin.server"]
    assert (record.levelname, record.getMessage()) == ("INFO", "unreadable admin request")
    assert record.exc_info is None


async def test_changes_are_logged(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """Who did what, with the outcome; reading is not logged."""
    caplog.set_level(logging.INFO, "proxy.admin")
    await site.ask("GET", "/api/routes")
    await site.ask("POST", "/api/reload")
    (record,) = [record for record in caplog.records if record.name == "proxy.admin.auth"]
    assert (record.__dict__["path"], record.__dict__["status"]) == ("/api/reload", 200)


async def test_breakers(site: Site) -> None:
    """Listed, forced, unknown, away."""
    assert (await site.ask("GET", "/api/breakers"))[1] == {"breakers": site.breakers.list()}
    path = "/api/breakers/youtube-search"
    body = {"reason": "quota", "for": "10m"}
    assert (await site.ask("POST", f"{path}/open", body))[0] == 200
    assert (await site.ask("POST", f"{path}/reset"))[0] == 200
    assert site.breakers.forced == [
        ("youtube-search", "open", "quota", 600.0),
        ("youtube-search", "reset", "by hand", None),
    ]
    assert (await site.ask("POST", "/api/breakers/nobody/open"))[0] == 404
    assert (await site.ask("POST", f"{path}/melt"))[0] == 404
    for bad in ({"for": "soon"}, {"for": 0}, {"for": 3}, {"reason": 1}, {"reason": "x" * 501}):
        status, document, _ = await site.ask("POST", f"{path}/open", bad)
        assert status == 400
        assert document["field"] in bad
    status, document, headers = await site.ask("POST", "/api/breakers/away/open")
    assert (status, headers["Retry-After"], document["retry_after"]) == (503, "3", 3)


async def test_jobs(site: Site) -> None:
    """Listed with filters, shown, synced, restored."""
    assert (await site.ask("GET", "/api/jobs"))[1] == {
        "mirrors": [{"mirror": "make_video"}],
        "jobs": [{"job_id": "mv_1"}],
    }
    query = "?mirror=make_video&status=failed&limit=5&stranded=true"
    await site.ask("GET", f"/api/jobs{query}")
    await site.ask("POST", "/api/jobs/sync", {"mirror": "make_video"})
    assert site.jobs.asked == [
        (None, None, 100, False),
        ("make_video", "failed", 5, True),
        ("sync", "make_video"),
    ]
    assert (await site.ask("GET", "/api/jobs/make_video/mv_1"))[1] == {"job_id": "mv_1"}
    assert (await site.ask("POST", "/api/jobs/restore"))[1] == {"restored": 0}
    for method, path, body in (
        ("GET", "/api/jobs?mirror=x", None),
        ("GET", "/api/jobs/make_video/mv_2", None),
        ("GET", "/api/jobs/x/mv_1", None),
        ("POST", "/api/jobs/restore", {"mirror": "x"}),
    ):
        assert (await site.ask(method, path, body))[0] == 404
    for bad in ("limit=0", "limit=x", "limit=99999", "limit=²", "stranded=maybe", "a=1"):
        assert (await site.ask("GET", f"/api/jobs?{bad}"))[0] == 400
    assert (await site.ask("GET", "/api/jobs?limit=1&limit=2"))[0] == 400


async def test_a_job_is_started_again_by_hand() -> None:
    """With a reason; refused with the evidence unless forced; 404 for what is not known."""
    async with Site() as site:
        path = "/api/jobs/make_video/mv_1/requeue"
        forced = {"reason": "worker lost", "force": True}
        assert (await site.ask("POST", path, forced))[1] == {
            "job_id": "mv_1", "reason": "worker lost"
        }  # fmt: skip
        status, problem = (await site.ask("POST", path, {"reason": "r"}))[:2]
        assert (status, problem["code"]) == (409, "requeue_refused")
        assert problem["evidence"] == "a worker is busy"
        for wrong in ({}, {"reason": ""}, {"reason": "r", "force": "yes"}, {"reason": "r", "x": 1}):
            assert (await site.ask("POST", path, wrong))[0] == 400
        for unknown in ("make_video/mv_2", "x/mv_1"):
            assert (await site.ask("POST", f"/api/jobs/{unknown}/requeue", forced))[0] == 404
        assert (await site.ask("GET", path))[0] == 405


async def test_a_port_in_use_is_the_callers_to_report() -> None:
    """`OSError` with the address; the first door is closed again by `stop`."""
    async with Site() as site:
        taken = site.servers.addresses[1]
        config = site.config.model_copy(
            update={"metrics": site.config.metrics.model_copy(update={"bind": taken})}  # type: ignore[union-attr]
        )
        servers = AdminServers(site.proxy)
        with pytest.raises(OSError, match=f"cannot listen on {taken}"):
            await servers.start(config)
        (opened,) = servers.addresses
        await servers.stop()
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await asyncio.open_connection(opened.host, opened.port)


async def test_what_is_not_http_gets_a_plain_refusal(site: Site) -> None:
    """No page, no trace."""
    address: Bind = site.servers.addresses[0]
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"\x16\x03\x01 nonsense\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), PATIENCE)
    writer.close()
    await writer.wait_closed()
    assert answer.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
    assert b"html" not in answer.lower()
    assert b"Traceback" not in answer
