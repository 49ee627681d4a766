"""Exchanges, their attempts, upload checks and jobs as OpenTelemetry spans.

1. An exchange is a span of kind `server`, each attempt at its upstream a `client` span below it,
   whose id the upstream gets as its parent. Names and attributes follow the semantic conventions
   for HTTP (`http.request.method`, `url.path`, `http.response.status_code`, `error.type`, ...).
2. A job is a span from its creation to its end, below the exchange that created it, with its stages
   below. A worker's calls for the job are below it too, if only one job can be meant and the worker
   sends no trace context. This state is in memory: the sidecar that created the job sends the span,
   and a restart in between loses it.
3. Spans are built when an exchange is over, and only for sampled traces.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from proxy.config.listeners import Route
from proxy.core.trace_context import Attempt, ExchangeTrace, Parent, new_span_id, parse_traceparent
from proxy.forward.exchange import Exchange
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.plan import Hooks
from proxy.jobs.document import FINISHED, JobDocument
from proxy.jobs.queue.forecast import stage_starts
from proxy.jobs.stages import read_timeline
from proxy.telemetry.logs.redact import clean_target, clean_text
from proxy.telemetry.metrics.counters import KNOWN_METHODS
from proxy.telemetry.otel.exporter import OtlpExporter, Span
from proxy.uploads.check import UploadCheck

_JOBS = 4096  # created jobs that are remembered until they end


class OtelStage:
    """Binds to every route, if spans are sent. `random` returns 0 <= x < 1."""

    def __init__(self, exporter: OtlpExporter | None, random: Callable[[], float]) -> None:
        self._exporter = exporter
        self._random = random
        self._jobs: dict[str, tuple[Parent, str, float, str]] = {}  # parent, span, begun, ID

    def bind(self, binding: Binding) -> Hooks | None:
        """Nothing without a configured collector."""
        exporter = self._exporter
        if exporter is None:
            return None
        sample, random, jobs = exporter.settings.sample, self._random, self._jobs
        creates = binding.route is not None and binding.route.job is not None
        creates = creates and bool(
            binding.route and binding.route.job and binding.route.job.creates
        )
        spans = _Spans(exporter.put, binding)

        def started(exchange: Exchange) -> None:
            assert exchange.head is not None
            parent = parse_traceparent(exchange.head.values(b"traceparent"))
            if (
                parent is None
                and exchange.job_id is not None
                and (job := jobs.get(exchange.job_id))
            ):
                of, span_id, _, _ = job
                parent = Parent(of.trace_id, span_id, of.flags, remote=False)
            exchange.span = ExchangeTrace(parent, sampled=random() < sample)
            exchange.trace_id = exchange.span.trace_id

        def finished(exchange: Exchange) -> None:
            if exchange.span is None:  # no route matched, or it was refused before
                if exchange.head is None:
                    return
                started(exchange)
            if exchange.span is not None and exchange.span.sampled:
                spans.send(exchange, exchange.span)
                if creates and 200 <= exchange.status < 300 and exchange.extra is not None:
                    self._created(exchange, exchange.span)

        return Hooks(started=started, finished=finished, traced=True)

    def _created(self, exchange: Exchange, span: ExchangeTrace) -> None:
        job_id = (exchange.extra or {}).get("job_id")
        if isinstance(job_id, str):
            self._jobs[job_id] = (
                span.parent,
                new_span_id(),
                exchange.started_at,
                exchange.correlation_id,
            )
            if len(self._jobs) > _JOBS:
                del self._jobs[next(iter(self._jobs))]

    def job_seen(self, snapshot: JobDocument) -> None:
        """A version of a job was seen; a final one ends its span."""
        if snapshot.status not in FINISHED or self._exporter is None:
            return
        known = self._jobs.pop(snapshot.job_id, None)
        if known is None:
            return
        parent, span_id, begun, correlation_id = known
        common = {"job.id": snapshot.job_id, "correlation_id": correlation_id}
        timeline = read_timeline(snapshot.raw, snapshot.status)
        failed = "job_failed" if snapshot.status == "failed" else None
        self._exporter.put(
            Span(
                "job",
                "internal",
                parent.trace_id,
                span_id,
                parent.span_id,
                parent.flags,
                begun,
                time.time(),
                {**common, "job.status": snapshot.status, "job.error": timeline.error},
                failed,
            )
        )
        began = dict(stage_starts(snapshot))
        for stage in timeline.stages:
            start = began.get(stage.name, stage.started_at)
            if start is None:
                continue
            self._exporter.put(
                Span(
                    f"stage {stage.name}",
                    "internal",
                    parent.trace_id,
                    new_span_id(),
                    span_id,
                    parent.flags,
                    start,
                    stage.ended_at or start + (stage.seconds or 0.0),
                    {**common, "job.stage": stage.name, "job.stage.state": stage.state},
                    "stage_failed" if stage.state == "failed" else None,
                )
            )


class _Spans:
    """Builds the spans of one route's exchanges."""

    def __init__(self, put: Callable[[Span], None], binding: Binding) -> None:
        self._put = put
        route: Route | None = binding.route
        self._path = None if route is None else str(route.path)
        self._always: dict[str, Any] = {
            "http.route": self._path,
            "proxy.listener": binding.listener_name,
            "proxy.route": binding.route_name,
        }

    def send(self, exchange: Exchange, span: ExchangeTrace) -> None:
        """All spans of a finished exchange."""
        ended = exchange.started_at + exchange.duration
        last = (
            str(exchange.status)
            if exchange.response is not None and exchange.status >= 400
            else None
        )
        if exchange.response is None:
            last = (
                exchange.reason
                or exchange.code
                or ("client_left" if exchange.status == 499 else None)
            )
        span.end_attempt(ended, last)
        common = {"http.request.method": exchange.method, "correlation_id": exchange.correlation_id}
        if exchange.method not in KNOWN_METHODS:
            common["http.request.method"] = "_OTHER"
            common["http.request.method_original"] = clean_text(exchange.method, 32)
        name = common["http.request.method"]
        name = "HTTP" if name == "_OTHER" else name
        self._put(
            Span(
                f"{name} {self._path}" if self._path is not None else name,
                "server",
                span.trace_id,
                span.span_id,
                span.parent_id,
                span.flags,
                exchange.started_at,
                ended,
                {**self._always, **common, **_of_request(exchange)},
                _error(exchange),
                span.remote,
            )
        )
        for number, attempt in enumerate(span.attempts):
            self._put(_attempt_span(exchange, span, attempt, number, name, common))
        if isinstance(exchange.filter, UploadCheck):
            self._put(_upload_span(exchange, span, exchange.filter.facts, ended))


def _of_request(exchange: Exchange) -> dict[str, Any]:
    path, _, query = clean_target(exchange.path[:2000]).partition("?")
    address, _, port = exchange.client.rpartition(":")
    host = (
        exchange.head.host.decode("latin-1")
        if exchange.head is not None and exchange.head.host
        else None
    )
    server, server_port = _host_and_port(host or "")
    agents = exchange.head.values(b"user-agent") if exchange.head is not None else []
    return {
        "url.path": path,
        "url.query": query or None,
        "url.scheme": "https" if exchange.stream.secure else "http",
        "server.address": server,
        "server.port": server_port,
        "client.address": address.strip("[]") or None,
        "client.port": int(port) if port.isdecimal() else None,
        "network.protocol.version": "1.1"
        if exchange.head is not None and exchange.head.minor
        else "1.0",
        "user_agent.original": clean_text(agents[0].decode("latin-1"), 256) if agents else None,
        "http.response.status_code": exchange.status or None,
        "http.request.body.size": exchange.bytes_in,
        "http.response.body.size": exchange.bytes_out,
        "proxy.code": exchange.code,
        "job.id": exchange.job_id or (exchange.extra or {}).get("job_id"),
    }


def _host_and_port(text: str) -> tuple[str | None, int | None]:
    """Host and port of a `Host` field or a target; an invalid value is returned unchanged."""
    clean = clean_text(text, 256)
    try:
        parts = urlsplit(f"//{clean}")
        return parts.hostname or clean or None, parts.port
    except ValueError:  # a port that is none, an address that is none
        return clean or None, None


def _error(exchange: Exchange) -> str | None:
    """The error of a server span: a failure on our side, not the caller's 4xx."""
    return (exchange.code or str(exchange.status)) if exchange.status >= 500 else None


def _attempt_span(
    exchange: Exchange,
    span: ExchangeTrace,
    attempt: Attempt,
    number: int,
    name: str,
    common: dict[str, str],
) -> Span:
    target = attempt.target or exchange.target or ""
    host, port = _host_and_port(target.partition("://")[2] or target)
    status: int | None = None
    if attempt.error is not None and attempt.error.isdecimal():
        status = int(attempt.error)
    elif attempt.error is None:
        status = exchange.status or None
    attributes = {
        **common,
        "server.address": host,
        "server.port": port,
        "url.full": clean_target(target + exchange.path[:2000]),
        "http.response.status_code": status,
        "http.request.resend_count": number or None,
        "proxy.upstream": exchange.upstream,
    }
    return Span(
        name,
        "client",
        span.trace_id,
        attempt.span_id,
        span.span_id,
        span.flags,
        attempt.began,
        attempt.ended or attempt.began,
        attributes,
        attempt.error,
    )


def _upload_span(
    exchange: Exchange, span: ExchangeTrace, facts: dict[str, Any], ended: float
) -> Span:
    """From the first byte to the verdict, which comes before the upstream gets the file."""
    sent = span.attempts[0].began if span.attempts else ended
    verdict = str(facts.get("verdict"))
    attributes = {
        f"upload.{name}": value
        for name, value in facts.items()
        if isinstance(value, str | float | int)
    }
    return Span(
        "upload check",
        "internal",
        span.trace_id,
        new_span_id(),
        span.span_id,
        span.flags,
        exchange.started_at,
        sent,
        {**attributes, "correlation_id": exchange.correlation_id},
        verdict if verdict.startswith("upload_") else None,
    )
