"""Rules between keys of `statsd`, `app_metrics` and `resources`: names that would clash."""

from __future__ import annotations

import importlib.util

from proxy.config.metric_names import claims, reserved
from proxy.config.problems import Key
from proxy.config.rules.findings import Findings
from proxy.config.schema import Config
from proxy.config.telemetry import Statsd, StatsdMetric


def check_telemetry(config: Config, found: Findings) -> None:
    """Rules about `statsd`, `telemetry` and `resources`."""
    if config.statsd is not None:
        _statsd(config.statsd, found)
    otlp = config.telemetry.otlp
    if otlp is not None and otlp.endpoint is not None and not otel_installed():
        found.problem(
            ("telemetry", "otlp"),
            "the OpenTelemetry SDK: pip install 'reliability-proxy[otel]'",
            "none installed",
        )
    if config.resources is not None:
        for component in ("proxy", "total"):
            if component in config.resources.processes:
                key = ("resources", "processes", component)
                found.problem(key, "a name of your own", f"{component!r}, which is ours")


def otel_installed() -> bool:
    """Whether the optional extra is installed; it is found without importing it."""
    try:
        names = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
        return all(importlib.util.find_spec(name) is not None for name in names)
    except ImportError:  # of a parent
        return False


def _statsd(statsd: Statsd, found: Findings) -> None:
    if statsd.bind is not None and not statsd.bind.loopback and not statsd.allow_remote:
        found.problem(
            ("statsd", "bind"), "a loopback address, or allow_remote: true", str(statsd.bind)
        )
    taken: dict[str, str] = {}
    names: dict[str, str] = {}
    for family, metric in statsd.families.items():
        key: Key = ("statsd", "metrics", family)
        _family(key, family, metric, found)
        kind = metric.type
        for name in claims(family.removesuffix("_total"), kind):
            other = taken.setdefault(name, family)
            if other != family:
                found.problem(key, f"names apart from those of {other}", f"{name} in both")
                break
        for name in metric.names or (family,):
            other = names.setdefault(name, family)
            if other != family:
                found.problem((*key, "names"), "names used once", f"{name!r}, also in {other}")


def _family(key: Key, family: str, metric: StatsdMetric, found: Findings) -> None:
    if reserved(family):
        found.problem(key, "a name of your own", f"{family!r}, which the proxy fills itself")
    if (metric.type == "counter") != family.endswith("_total"):
        found.problem(key, "a name that ends in _total for a counter, and only there", repr(family))
    if family.endswith(("_bucket", "_created", "_info")):
        found.problem(key, "a name without a suffix of Prometheus's own", repr(family))
    for index, name in enumerate(metric.names):
        label = name.partition("{")[2].rstrip("}")
        if label and label not in metric.labels:
            expected = f"one of the labels ({', '.join(metric.labels) or 'there is none'})"
            found.problem((*key, "names", index), expected, repr(label))
