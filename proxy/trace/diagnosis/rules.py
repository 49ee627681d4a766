"""Finds the likely cause: rules tried in order, the first match wins. Pure.

1. A rule states only what the events show. An inference is marked as such in the event that it
   points at; if nothing is known to be wrong, there is no cause.
2. Order: why a request was rejected comes before what happened to its job, a failing service before
   the stage that failed because of it, and failures before slowness.
3. Each rule points at the event that proves it, so that a reader can check it.
"""

from __future__ import annotations

from collections.abc import Callable

from proxy.trace.diagnosis.context import Cause, DiagnosisContext
from proxy.trace.diagnosis.jobs import (
    deleted,
    redis_lost,
    service_failed_job,
    stage_failed,
    store_cannot_write,
    stranded,
    stuck,
    unattended,
)
from proxy.trace.diagnosis.requests import (
    answered_from_mirror,
    exchange_failed,
    not_stored,
    unexpected_answer,
    upload_refused,
    upstream_error,
)
from proxy.trace.diagnosis.services import recovered_trouble, restarting, service_slow
from proxy.trace.events import text

Rule = Callable[[DiagnosisContext], Cause | None]

#: Tried in this order.
RULES: tuple[Rule, ...] = (
    upload_refused,
    not_stored,
    deleted,
    service_failed_job,
    stage_failed,
    store_cannot_write,
    unattended,
    stranded,
    stuck,
    exchange_failed,
    redis_lost,
    upstream_error,
    unexpected_answer,
    recovered_trouble,
    restarting,
    service_slow,
    answered_from_mirror,
)


def diagnose(context: DiagnosisContext) -> Cause | None:
    """The cause found by the first matching rule."""
    for rule in RULES:
        cause = rule(context)
        if cause is not None:
            return Cause(cause.kind, text(cause.summary, 600), cause.event)
    return None
