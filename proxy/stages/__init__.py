"""The stages, in the one order in which they stand on a route.

Metrics first: an exchange is counted as in flight before anything can refuse it. The upload check
before all that would hand the request on. Fallbacks behind every other rescue, for any other answer
is better. Trace and access line last: they tell what all others noted.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.memory_budget import MemoryBudget
from proxy.pipeline.compile import Stage
from proxy.stages.access_line import AccessLine
from proxy.stages.fallback import FallbackStage
from proxy.stages.job_roles import JobRoles, MirrorOf
from proxy.stages.route_metrics import RouteMetrics
from proxy.stages.trace_record import TraceRecord
from proxy.stages.upload_check import UploadCheckStage
from proxy.telemetry.access import AccessLog
from proxy.telemetry.metrics import Metrics
from proxy.trace.recorder import Trace
from proxy.upload.pool import ProbePool


def all_stages(
    metrics: Metrics,
    access_log: AccessLog,
    probes: ProbePool,
    mirror_of: MirrorOf,
    trace: Trace | None,
    random: Callable[[], float],
    memory: MemoryBudget,
) -> tuple[Stage, ...]:
    """Every stage there is; each decides for itself on which routes it takes part."""
    return (
        RouteMetrics(metrics),
        UploadCheckStage(probes, metrics.registry),
        JobRoles(mirror_of),
        FallbackStage(memory),
        TraceRecord(trace, random),
        AccessLine(access_log),
    )
