"""The stages, in the one order in which they stand on a route.

Metrics first: an exchange is counted as in flight before anything can refuse it. Next, whose job a
call is for, since that may change the correlation ID. Stages of others, which
may refuse a request, before its body is looked at. The upload check before all that would hand the
request on. Fallbacks behind every other rescue, for any other answer is better. Trace and
access line last: they record what all others noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.jobs.mirror import Mirror
from proxy.memory_budget import MemoryBudget
from proxy.pipeline.compile import Stage
from proxy.shortage import Shortages
from proxy.spool import Spool
from proxy.stages.access_line import AccessLine
from proxy.stages.answer_types import AnswerTypes
from proxy.stages.extensions import Extensions
from proxy.stages.fallback import FallbackStage
from proxy.stages.idempotency import IdempotencyStage
from proxy.stages.job_context import JobContext
from proxy.stages.job_roles import JobRoles
from proxy.stages.otel import OtelStage
from proxy.stages.route_metrics import RouteMetrics
from proxy.stages.trace_record import TraceRecord
from proxy.stages.upload_check import UploadCheckStage
from proxy.stages.upload_shares import UploadShares
from proxy.telemetry.access import AccessLog
from proxy.telemetry.metrics import Metrics
from proxy.trace.recorder import Trace
from proxy.upload.pool import ProbePool


def all_stages(
    metrics: Metrics,
    access_log: AccessLog,
    probes: ProbePool,
    spool: Spool,
    mirrors: Mapping[str, Mirror],
    trace: Trace,
    random: Callable[[], float],
    idempotency: IdempotencyStage,
    memory: MemoryBudget,
    otel: OtelStage,
    shortages: Shortages,
    extensions: Extensions,
) -> tuple[Stage, ...]:
    """Every stage there is; each decides for itself on which routes it takes part."""
    return (
        RouteMetrics(metrics),
        JobContext(mirrors.values),
        otel,
        UploadShares(),
        extensions,
        UploadCheckStage(probes, spool, metrics.registry),
        JobRoles(mirrors.__getitem__, shortages),
        idempotency,
        FallbackStage(memory),
        AnswerTypes(metrics),
        TraceRecord(trace, random),
        AccessLine(access_log),
    )
