"""Keys that earlier versions had: each is refused with a word about what to do instead.

A key goes when nobody has a reason to set it: its value is now a constant beside its use.
"""

from __future__ import annotations

from proxy.config.problems import Key

#: By path, `*` for a name or an index: what holds now, and why.
_DELETE = {
    "listeners.*.limits.header_count": "always 128 fields; `header` bounds their bytes",
    "listeners.*.routes.*.upload.buffer": "without effect; the whole upload waits in the spool",
    "listeners.*.routes.*.fallback.stale_memory": "always 16 MiB; `limits.memory` bounds all",
    "listeners.*.routes.*.fallback.stale_max_body": "always 1 MiB",
    "upstreams.*.breaker.jitter": "always 10%, enough for a fleet not to probe in step",
    "upstreams.*.breaker.probe_lease": "always as long as a call may take, by its time-outs",
    "upstreams.*.ejection.max_eject_for": "always 5m, or `eject_for` where that is longer",
    "upstreams.*.ejection.max_ejected": "always half of the targets",
    "mirrors.*.keep_versions": "always 50, more than a job has; `keep_for` bounds the file",
    "mirrors.*.max_value": "always 1 MiB, a hundred times a job document",
    "mirrors.*.requeue.unacked": "always kombu's name, behind `global_keyprefix`",
    "mirrors.*.requeue.unacked_index": "always kombu's name, behind `global_keyprefix`",
    "mirrors.*.requeue.max_messages": "always 10,000",
    "mirrors.*.forecast.min_jobs": "always 5",
    "trace.max_rate": "always 10 a second of one route; `max_size` bounds the file",
    "statsd.defaults": "always declared; a family that nobody reports stays empty",
    "statsd.max_series": "always 2,000",
    "statsd.metrics.*.labels.*.max_values": "always 32; list more in `values`",
    "app_metrics.stale_after": "always four times `every` and `timeout`",
    "app_metrics.max_size": "always 1 MiB",
    "app_metrics.max_series": "always 2,000",
    "resources.max_entries": "always 500,000 files",
    "resources.cpu": "always 10% of a core",
}
_RENAME = {"mirrors.*.rescue": "requeue"}

PATHS = (*_DELETE, *_RENAME)


def instead(key: Key) -> str | None:
    """What is expected in place of a key that was removed; None for any other unknown key."""
    for path, reason in _DELETE.items():
        if _is_at(key, path):
            return f"no such key: it was removed in 0.2.0 ({reason}); delete the line"
    for path, name in _RENAME.items():
        if _is_at(key, path):
            return f"its new name {name!r}: it was renamed in 0.2.0"
    return None


def _is_at(key: Key, path: str) -> bool:
    parts = path.split(".")
    return len(parts) == len(key) and all(
        part in ("*", str(step)) for part, step in zip(parts, key, strict=True)
    )
