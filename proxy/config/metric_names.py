"""Names of metric families: what is well-formed, what is ours, and which sample names one takes.

A scrape in which two families lay claim to one name is refused by Prometheus as a whole, so names
from elsewhere (the config, the app's own page) are held against this before they are shown.
"""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]{0,127}")
LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

#: Beginnings of names that only the proxy fills.
RESERVED = (
    "proxy_",
    "process_",
    "http_request",
    "external_api_",
    "circuit_breaker_",
    "pipeline_",
    "resource_",
    "subtitle_",
    "validation_results",
    "video_processing_input_duration_seconds",
    "video_processing_shorts_count",
)

# What a family of each type may call its samples, behind its own name. `_created` belongs to
# OpenMetrics; the names are kept free even where nobody writes such samples.
_SUFFIXES = {
    "counter": ("_total", "_created"),
    "histogram": ("_bucket", "_count", "_sum", "_created"),
    "gaugehistogram": ("_bucket", "_gcount", "_gsum"),
    "summary": ("_count", "_sum", "_created"),
    "info": ("_info",),
}


def claims(family: str, kind: str) -> set[str]:
    """Every name that a family of this type takes. A counter is named without `_total` here, as
    OpenMetrics and prometheus_client name it."""
    return {family, *(family + suffix for suffix in _SUFFIXES.get(kind, ()))}


def reserved(name: str) -> bool:
    """Whether the name is kept for what the proxy measures itself."""
    return name.startswith(RESERVED)
