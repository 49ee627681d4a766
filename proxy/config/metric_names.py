"""Names of metric families: their syntax, which are reserved, and which sample names one uses.

Prometheus refuses a whole scrape if two families use the same name. So names from elsewhere (the
config, the app's own page) are checked here before they are shown.
"""

from __future__ import annotations

import re

NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]{0,127}")
LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

#: Prefixes of names that only the proxy fills.
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

# The suffixes of sample names by type of family. `_created` belongs to OpenMetrics and is reserved
# even if nobody writes such samples.
_SUFFIXES = {
    "counter": ("_total", "_created"),
    "histogram": ("_bucket", "_count", "_sum", "_created"),
    "gaugehistogram": ("_bucket", "_gcount", "_gsum"),
    "summary": ("_count", "_sum", "_created"),
    "info": ("_info",),
}


def claims(family: str, kind: str) -> set[str]:
    """Every name that a family of this type uses. A counter's name has no `_total` here, as in
    OpenMetrics and prometheus_client."""
    return {family, *(family + suffix for suffix in _SUFFIXES.get(kind, ()))}


def reserved(name: str) -> bool:
    """Whether the name is reserved for the proxy's own metrics."""
    return name.startswith(RESERVED)
