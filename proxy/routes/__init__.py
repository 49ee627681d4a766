"""The stages, in the one order in which they stand on a route.

Metrics come first: an exchange is counted as in flight before anything can refuse it. Then the job
that a call belongs to, because that may change the correlation ID. Extension stages, which may
refuse a request, run before its body is checked, and the upload check before anything that forwards
the request. `fallback:` comes after every other fallback source, because any other answer is
better. Trace and access line come last: they record what the others noted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.core.memory.budget import MemoryBudget
from proxy.core.process.shortage import Shortages
from proxy.forward.routing.binding import Stage
from proxy.jobs.mirror import Mirror
from proxy.routes.access_log import AccessLine
from proxy.routes.answer_types import AnswerTypes
from proxy.routes.extensions.runner import Extensions
from proxy.routes.fallback import FallbackStage
from proxy.routes.idempotency import IdempotencyStage
from proxy.routes.jobs.binding import JobRoles
from proxy.routes.jobs.context import JobContext
from proxy.routes.metrics import RouteMetrics
from proxy.routes.otel import OtelStage
from proxy.routes.trace import TraceRecord
from proxy.routes.upload import UploadCheckStage
from proxy.routes.upload_shares import UploadShares
from proxy.spool import Spool
from proxy.telemetry.logs.access import AccessLog
from proxy.telemetry.metrics.registry import Metrics
from proxy.trace.recorder import Trace
from proxy.uploads.probe.pool import ProbePool


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
    """All stages; each decides for itself which routes it binds to."""
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
