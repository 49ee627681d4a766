"""Keys that earlier versions had: each is taken out of the file with a word about what holds now.

A key goes when nobody has a reason to set it: its value is now a constant beside its use. A file
that still has one works; a start must not fail for a line that no longer matters.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from proxy.config.document import Element
from proxy.config.problems import ConfigWarning, dotted

#: By path, `*` for a name or an index: what holds now, and why.
REMOVED = {
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
    "mirrors.*.requeue.unacked_after": "without effect; evidence decides when a message is lost",
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
RENAMED = {"mirrors.*.rescue": "requeue"}


def update(file: Path, tree: Element) -> list[ConfigWarning]:
    """Rename and remove such keys in `tree`; the warnings about them."""
    warnings = list[ConfigWarning]()
    for path, name in RENAMED.items():
        for section, old in _places(tree, path):
            element = section[old]
            if name in section:
                del section[old]
                text = f"not used, since {name!r} is its new name: delete it"
            else:
                section[name] = section.pop(old)
                text = f"the former name of {name!r}: rename it"
            warnings.append(ConfigWarning(file, element.line, dotted(element.key), text))
    for path, reason in REMOVED.items():
        for section, old in _places(tree, path):
            element = section.pop(old)
            text = f"removed in 0.2.0 ({reason}): delete it"
            warnings.append(ConfigWarning(file, element.line, dotted(element.key), text))
    return warnings


def _places(tree: Element, path: str) -> Iterator[tuple[dict[str, Element], str]]:
    """The sections that have the key at the end of `path`, with its name."""
    *above, name = path.split(".")
    sections = [tree]
    for part in above:
        sections = [
            child
            for section in sections
            for child in (section.children() if part == "*" else [section.child(part)])
            if child is not None
        ]
    for section in sections:
        if isinstance(section.value, dict) and name in section.value:
            yield section.value, name
