"""The reference is complete: every metric, log field, endpoint and error code is explained."""

from __future__ import annotations

import ast
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast, get_args
from unittest.mock import create_autospec

from aiohttp import web
from prometheus_client import CollectorRegistry

from proxy.admin.endpoints.breakers import BreakerControl
from proxy.admin.endpoints.control import Control
from proxy.admin.endpoints.jobs import JobControl
from proxy.admin.endpoints.probes import Probes
from proxy.admin.endpoints.trace import TraceControl
from proxy.admin.job_backend import StoreAway
from proxy.app_telemetry.collectors import AppTelemetry
from proxy.app_telemetry.resources.pace import Pace
from proxy.config.listeners import Upload
from proxy.config.schema import Config
from proxy.config.telemetry import AppMetrics, Otlp, Resources, Statsd, TempFiles
from proxy.config.units import Bind
from proxy.core.clock import SystemClock
from proxy.core.errors import ProxyError
from proxy.core.memory.budget import MemoryBudget
from proxy.core.vitals import Vitals
from proxy.forward.routing.compile import Compiler, Engine
from proxy.forward.watch import UpstreamWatch
from proxy.http1.deadlines import Sweeper
from proxy.jobs.creations import Creation
from proxy.jobs.metrics import JobMetrics
from proxy.jobs.video_metrics.events import STAGE_ERRORS
from proxy.jobs.video_metrics.metrics import Counted
from proxy.jobs.video_metrics.totals import Example, Totals
from proxy.resilience.circuit.registry import BreakerRegistry
from proxy.resilience.circuit.states import CircuitEvent
from proxy.routes.idempotency import IdempotencyStage
from proxy.routes.upload import UploadCheckStage
from proxy.spool import Spool
from proxy.telemetry.logs import access, setup
from proxy.telemetry.metrics.memory import MemoryMetrics
from proxy.telemetry.metrics.registry import Metrics
from proxy.telemetry.metrics.spool import SpoolMetrics
from proxy.telemetry.metrics.volumes import Volumes
from proxy.telemetry.otel.exporter import OtlpExporter
from proxy.trace.diagnosis.services import TROUBLE
from proxy.trace.events import Source
from proxy.trace.metrics import TraceMetrics
from proxy.uploads.check import FACTS, UploadCheck
from tests.telemetry_facts import Facts

SOURCES = Path(__file__).parents[2] / "proxy"
DOCS = Path(__file__).parents[2] / "docs"


def section(page: str, title: str) -> str:
    """The text of a reference page under a heading, up to the next one of its rank or above."""
    mark = re.escape(title)
    end = rf"(?=^#{{1,{title.count('#')}}} |\Z)"
    text = (DOCS / "reference" / page).read_text(encoding="utf-8")
    match = re.search(rf"^{mark}\n(.*?){end}", text, re.MULTILINE | re.DOTALL)
    assert match, f"no section {title!r}"
    return match[1]


def rows(page: str, title: str) -> Iterator[list[str]]:
    """The cells of the section's tables."""
    for line in section(page, title).splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def names(cell: str) -> list[str]:
    """What a cell has between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def one_upload_of_each_kind(registry: CollectorRegistry) -> None:
    """An accepted and a refused upload go through the stage's sink."""
    stage = UploadCheckStage(cast(Any, None), cast(Any, None), registry)
    route = SimpleNamespace(upload=Upload(), idempotency=None)
    hooks = stage.bind(cast(Any, SimpleNamespace(route=route, route_name="r")))
    assert hooks is not None
    assert hooks.finished is not None
    for verdict in ("accepted", "upload_too_long"):
        seen = create_autospec(UploadCheck, instance=True)
        seen.facts = {"verdict": verdict, "size": 1, "duration": 1.0, "validation_ms": 1.0}
        seen.detail = None
        hooks.finished(cast(Any, SimpleNamespace(filter=seen, note=lambda **_: None)))


def one_of_each_of_the_mirror(registry: CollectorRegistry) -> None:
    """A mirror that has counted everything that it can count."""
    families = JobMetrics(registry)
    totals = Totals(("s",))
    draft = totals.draft()
    draft.count(STAGE_ERRORS, ("s", "T", "C"), 1.0, Example("mv_1", 1.0, 1.0))
    draft.adopt()
    counted = Counted(totals)
    counted.active = 1
    families.pipeline.show("m", counted)
    mirror = families.for_mirror("m")
    mirror.queue()
    mirror.restored("start", 1)
    mirror.oddity("not_json")
    mirror.creation("confirmed")
    mirror.rescued("message", 1)
    mirror.requeued("operator")


def everything_about_the_app(metrics: Metrics, folder: Path) -> None:
    """Statsd, the app's page and resources, each with something in every family."""
    config = Config.model_construct(
        statsd=Statsd(bind=Bind("127.0.0.1", 0)),
        app_metrics=AppMetrics(url="http://127.0.0.1:1/metrics"),
        resources=Resources(
            directories={"here": folder, "nowhere": folder / "nowhere"},
            temp=TempFiles(directories=(folder,)),
        ),
    )
    side = AppTelemetry(config, metrics, SystemClock(), Vitals())
    assert side.series is not None
    assert side.resources is not None
    side.series.line(b"video.processing:1|ms|#operation:concat")
    side.series.packets["udp", "accepted"] = 1
    for part in ("processes", "directories"):
        side.resources.sample(part, Pace(1.0, threading.Event()))


def test_every_metric_with_its_type_and_labels(tmp_path: Path) -> None:
    """As a scraper would see it after one exchange in each direction."""
    vitals = Vitals()
    metrics = Metrics("1", vitals)
    metrics.upstream("u")
    vitals.skews.seconds["redis"] = 0.0
    metrics.listener("l").certificate_ends = 1.0
    metrics.listener("l").handshake_failures["other"] = 1
    metrics.upstream_connections = lambda: [("u", 0, 0)]
    for direction in ("ingress", "egress"):
        facts = Facts(upstream="u", code="client_left", silence=5.0, gone_in="upstream")
        facts.head_after = 0.1
        metrics.route("l", "r", cast(Any, direction), "u").record(facts)
    one_upload_of_each_kind(metrics.registry)
    one_of_each_of_the_mirror(metrics.registry)
    TraceMetrics(metrics.registry)
    OtlpExporter(Otlp(), "http://127.0.0.1:1", "1", metrics.registry)
    IdempotencyStage({}, metrics.registry, SystemClock()).count("m", "first")
    everything_about_the_app(metrics, tmp_path)
    documented = {
        names(row[0])[0]: (row[1].rstrip("*"), set(names(row[2])))
        for row in rows("metrics.md", "# Metrics")
        if len(row) == 4
    }
    upstream: dict[str, Any] = {
        "targets": ["http://127.0.0.1:1"],
        "breaker": {},
        "health": {"path": "/"},
    }
    upstream["bulkhead"] = {"max_concurrent": 1}
    upstream["buffering"] = {"request": True}
    config = Config.model_validate(
        {
            "listeners": {
                "l": {
                    "bind": "127.0.0.1:1",
                    "routes": [{"name": "r", "path": "/", "upstream": "u"}],
                }
            },
            "upstreams": {"u": upstream},
            "redis": {"url": "redis://127.0.0.1:1"},
        }
    )
    clock = SystemClock()
    breakers = BreakerRegistry(config.upstreams, registry=metrics.registry, redis=config.redis)
    breakers.metrics.reachable(False)
    breaker = breakers.get("u")
    assert breaker is not None
    breaker.force(CircuitEvent.FORCE_OPEN, clock.monotonic(), "test", 1.0)
    memory = MemoryBudget()
    spool = Spool(tmp_path, 1, memory.account("spool"), clock)
    metrics.registry.register(SpoolMetrics(spool))
    metrics.registry.register(MemoryMetrics(MemoryBudget(), int))
    volumes = Volumes(lambda: {"spool": tmp_path})
    volumes.measure()
    metrics.registry.register(volumes)
    watch = UpstreamWatch(clock)
    metrics.registry.register(watch)
    compiler = Compiler(
        [],
        Engine(clock, Sweeper(clock), memory, spool, Random()),
        lambda _: lambda _: None,
        breakers.get,
    )
    watch.show(compiler.compile(config).upstreams)
    vitals.tasks.died("a-loop")
    for family in metrics.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert family.samples, name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert documented.get(name) == (family.type, labels), name


def test_every_log_field() -> None:
    """The fields of ordinary lines and of access lines."""
    basic = {name for row in rows("logs.md", "## Fields of every line") for name in names(row[0])}
    assert basic == {*setup.FIELDS, *setup.OPTIONAL_FIELDS}
    more = {name for row in rows("logs.md", "## The access line") for name in names(row[0])}
    assert more == {*access.FIELDS, *access.OPTIONAL_FIELDS} - basic


def test_every_fact_of_an_upload() -> None:
    """The fields that `upload:` adds to access lines."""
    documented = {
        name for row in rows("logs.md", "## Uploads in the access line") for name in names(row[0])
    }
    assert documented == {f"upload_{name}" for name in FACTS}


def test_every_line_that_a_mirror_logs() -> None:
    """Message and fields, in the mirror's own page; and the values of `job_stored`."""
    page = (DOCS / "reference" / "job-mirror.md").read_text()
    lines = 0
    for source in (SOURCES / "jobs").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name("log"), attr=level),
                    args=[ast.Constant(message), *_],
                ) if level != "debug":
                    assert f"`{message}`" in page, message
                    lines += 1
    assert lines > 30
    for value in (*Creation, "unknown"):
        assert f"`{value}`" in page


def literals(wanted: Callable[[ast.AST], Iterator[str]]) -> set[str]:
    """What `wanted` finds in the nodes of all of our sources."""
    trees = (ast.parse(path.read_text()) for path in SOURCES.rglob("*.py"))
    return {name for tree in trees for node in ast.walk(tree) for name in wanted(node)}


def test_every_fact_that_stages_note() -> None:
    """Each keyword of a call of `note` is in the access line's second table."""

    def noted(node: ast.AST) -> Iterator[str]:
        match node:
            case ast.Call(func=ast.Attribute(attr="note"), keywords=keywords):
                yield from (keyword.arg for keyword in keywords if keyword.arg)

    assert literals(noted) == {
        names(row[0])[0] for row in rows("logs.md", "## The facts of stages")
    }


def test_every_reason_not_to_retry() -> None:
    """The values of `no_retry`, but for the one that needs no word (`kind`)."""
    (row,) = (row for row in rows("logs.md", "## The facts of stages") if row[0] == "`no_retry`")

    def reasons(node: ast.AST) -> Iterator[str]:
        match node:
            case ast.Call(
                func=ast.Name("RetryDecision"), args=[ast.Constant(None), ast.Constant(why)]
            ):
                yield str(why)

    documented = {name for name in names(row[1]) if not name.startswith(("retry.", "max_"))}
    assert documented == literals(reasons) - {"kind"} | {"circuit"}


def test_every_event() -> None:
    """Each value of `event` in a log line."""

    def events(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Dict):
            for pair in zip(node.keys, node.values, strict=True):
                match pair:
                    case ast.Constant("event"), ast.Constant(name):
                        yield str(name)

    assert literals(events) == {names(row[0])[0] for row in rows("logs.md", "## Events")}


def test_the_page_on_traces() -> None:
    """Each cause that can be suspected, each source, each line that the trace logs."""
    page = (DOCS / "how-to" / "find-out-what-happened.md").read_text()
    page += (DOCS / "reference" / "trace.md").read_text()
    causes = {kind for kind, _ in TROUBLE.values()}
    files = [*(SOURCES / "trace").rglob("*.py"), SOURCES / "admin" / "trace_backend.py"]
    for source in files:
        for node in ast.walk(ast.parse(source.read_text())):
            match node:
                case ast.Call(func=ast.Name("Cause"), args=[ast.Constant(kind), *_]):
                    causes.add(kind)
                case ast.Call(func=ast.Attribute(value=ast.Name("log")), args=[said, *_]):
                    assert isinstance(said, ast.Constant)
                    assert f"`{said.value}`" in page, said.value
    assert len(causes) > 12
    for name in (*causes, *get_args(Source)):
        assert f"`{name}`" in page, name


def test_every_endpoint_of_the_admin_api() -> None:
    """With its method; `HEAD` is documented in one sentence."""
    app = web.Application()
    anything = cast(Any, None)
    for part in (Probes, Control, BreakerControl, JobControl, TraceControl):
        part(anything).mount(app.router)
    documented = {names(row[0])[0] for row in rows("admin.md", "## Admin API")}
    for route in app.router.routes():
        if route.method != "HEAD":
            assert route.resource is not None
            path = route.resource.canonical.replace("{action}", "open")
            assert f"{route.method} {path}" in documented


def errors(kind: type[ProxyError]) -> Iterator[type[ProxyError]]:
    """An error class and all below it."""
    yield kind
    for child in kind.__subclasses__():
        yield from errors(child)


def test_every_error_code_with_its_status() -> None:
    """Of the whole tree, the admin API's own included; and no code that is no more."""
    documented = {(names(row[0])[0], int(row[1])) for row in rows("errors.md", "# Error codes")}
    ours = [kind for kind in errors(ProxyError) if kind.__module__.startswith("proxy.")]
    assert StoreAway in ours
    assert documented == {(kind.code, kind.status) for kind in ours}
