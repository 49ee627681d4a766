"""docs/reference/limits.md names every limit, as the models and the code have them."""

from __future__ import annotations

import importlib
import typing
from collections.abc import Iterator
from pathlib import Path

from proxy.config import shape
from proxy.config.json_schema import json_schema
from proxy.config.units import format_duration, format_size
from tests.unit.test_config_schema import default_cell

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "limits.md"

#: Keys with numbers that bound nothing: thresholds, intervals, shares, statuses. A new key with a
#: number stands either here or on the page.
NO_LIMITS = frozenset(
    [
        "upstreams.NAME.overload_answer.status",
        "mirrors.NAME.sync_every",
        "mirrors.NAME.forecast.slots",
        "mirrors.NAME.cleanup_at",
        "mirrors.NAME.app_breaker",
        "mirrors.NAME.stranded_after",
        "telemetry.otlp.sample",
        "trace.sample",
        "trace.slow",
        "trace.polls_every",
        "trace.stuck_after",
        "app_metrics.every",
        "resources.every",
        "upstreams.NAME.breaker.failure_threshold",
        "upstreams.NAME.breaker.open_for",
        "upstreams.NAME.breaker.failure_on",
        "upstreams.NAME.breaker.failure_ratio",
        "upstreams.NAME.breaker.slow_call",
        "upstreams.NAME.breaker.slow_ratio",
        "upstreams.NAME.breaker.window",
        "upstreams.NAME.breaker.minimum_calls",
        "upstreams.NAME.retry.on",
        "upstreams.NAME.retry.backoff",
        "upstreams.NAME.ejection.failures",
        "upstreams.NAME.ejection.eject_for",
        "upstreams.NAME.health.every",
        "upstreams.NAME.health.rise",
        "upstreams.NAME.health.fall",
        "mirrors.NAME.requeue.spacing",
        "mirrors.NAME.requeue.settle",
        "statsd.metrics.NAME.buckets",
        "listeners.NAME.routes[].fallback.answer.status",
    ]
)


def rows(columns: int) -> Iterator[list[str]]:
    """The page's rows of tables with so many columns."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if line.startswith("| ") and len(cells) == columns and cells[0] not in ("key", "what"):
            yield cells


def types_in(annotation: object) -> Iterator[object]:
    """It and what it is made of: `Annotated[int, …] | None` has an `int`."""
    yield annotation
    for part in typing.get_args(annotation):
        if not isinstance(part, str):
            yield from types_in(part)


def numeric() -> dict[str, str]:
    """Every key that takes a number, and its default as the reference writes it."""
    schema = json_schema()
    found = {}
    for path, model, name in shape.every_key():
        kinds = list(types_in(model.model_fields[name].annotation))
        if any(kind in (int, float) or getattr(kind, "__name__", "") == "Rate" for kind in kinds):
            described = schema if path == "" else schema["$defs"][model.__name__]
            found[f"{path}.{name}".lstrip(".")] = default_cell(described["properties"][name])
    return found


def test_the_page_names_every_limit_with_its_default() -> None:
    """A key that takes a number is on the page, or among those that bound nothing."""
    shown = {key.strip("`"): default for key, default, _ in rows(3)}
    known = numeric()
    assert shown.keys() | NO_LIMITS == known.keys(), "add it to limits.md or to NO_LIMITS"
    assert not shown.keys() & NO_LIMITS
    assert shown == {key: known[key] for key in shown}
    assert all(effect for _, _, effect in rows(3))


def test_the_page_has_the_values_of_the_code() -> None:
    """What cannot be configured has the value that the code has."""
    found = list(rows(4))
    assert len(found) > 15
    for _, limit, _, where in found:
        module, _, name = where.strip("`").rpartition(".")
        value = getattr(importlib.import_module(f"proxy.{module}"), name)
        written = {f"{value:,}", format_size(int(value)), format_duration(value)}
        assert limit in written, where
