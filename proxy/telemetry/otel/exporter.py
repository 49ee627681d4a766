"""Exports spans to an OpenTelemetry collector by OTLP over HTTP.

1. The event loop only appends to a bounded queue. A thread converts the spans to the SDK's and
   sends them, as fast as the collector accepts them. If the queue is full, spans are dropped and
   counted.
2. The SDK is an optional extra (`otel`), imported only when spans are to be sent.
3. A collector that is away is logged once, and once when it is back. No request fails for it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Counter, Gauge

from proxy.config.telemetry import Otlp

log = logging.getLogger(__name__)

QUEUE = 4096  # spans
BATCH = 512
EVERY = 2.0  # seconds between two exports, unless a batch is complete earlier
PATIENCE = 5.0  # seconds for one export with its retries, and for the last one at a stop

Kind = Literal["internal", "server", "client"]


@dataclass(frozen=True, slots=True)
class Span:
    """A finished span. Ids are hexadecimal, times Unix seconds; `error` is None for success.

    `remote`: the parent is in another process.
    """

    name: str
    kind: Kind
    trace_id: str
    span_id: str
    parent_id: str | None
    flags: int
    began: float
    ended: float
    attributes: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    remote: bool = False


class OtlpExporter:
    """`start()`, `put`, `stop()` (which blocks for `PATIENCE` seconds at most)."""

    def __init__(
        self, settings: Otlp, endpoint: str, version: str, registry: CollectorRegistry
    ) -> None:
        self.settings = settings
        self._endpoint = traces_endpoint(endpoint)
        self._version = version
        self._queue: deque[Span] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._failing = False
        self.exported = Counter(
            "proxy_otlp_spans_exported", "Spans accepted by the collector", registry=registry
        )
        dropped = Counter(
            "proxy_otlp_spans_dropped",
            "Spans lost: the queue was full, or the collector did not accept them",
            ["reason"],
            registry=registry,
        )
        self._no_room, self._not_taken = dropped.labels("queue"), dropped.labels("refused")
        queued = Gauge("proxy_otlp_spans_queued", "Spans waiting to be sent", registry=registry)
        queued.set_function(lambda: len(self._queue))

    def put(self, span: Span) -> None:
        """Queue a span. Never blocks."""
        if len(self._queue) >= QUEUE:
            self._no_room.inc()
            return
        self._queue.append(span)
        if len(self._queue) >= BATCH:
            self._wake.set()

    def start(self) -> None:
        """Start exporting. Raises `RuntimeError` if the extra is not installed."""
        try:
            sender = _Sender(self.settings, self._endpoint, self._version)
        except ImportError as error:
            raise RuntimeError(f"telemetry.otlp needs reliability-proxy[otel]: {error}") from error
        self._thread = threading.Thread(target=self._run, args=(sender,), name="otlp", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Export what is queued, and stop."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(PATIENCE)

    def _run(self, sender: _Sender) -> None:
        while True:
            self._wake.wait(EVERY)
            self._wake.clear()
            while self._queue:
                self._send(sender)
                if self._stopping and self._failing:
                    break  # a collector that is away must not delay the stop
            if self._stopping:
                sender.close()
                return

    def _send(self, sender: _Sender) -> None:
        batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
        try:
            taken, reason = sender.send(batch), "refused, or out of reach"
        except Exception as error:  # the SDK raises many kinds of errors
            taken, reason = False, f"{type(error).__name__}: {error}"[:200]
        (self.exported if taken else self._not_taken).inc(len(batch))
        if taken == self._failing:
            self._failing = not taken
            if taken:
                log.info("spans are taken again", extra={"collector": sender.endpoint})
            else:
                log.warning(
                    "spans not taken", extra={"collector": sender.endpoint, "reason": reason}
                )


def traces_endpoint(endpoint: str) -> str:
    """The URL for spans: the given path, or `/v1/traces` if there is none."""
    return endpoint.rstrip("/") + "/v1/traces" if urlsplit(endpoint).path in ("", "/") else endpoint


class _Sender:
    """Everything that uses the SDK, which is imported here."""

    def __init__(self, settings: Otlp, endpoint: str, version: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http import Compression
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import SpanExportResult
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # we log its failures, once
        self.endpoint = endpoint
        self._api, self._sdk = trace, sdk
        self._taken = SpanExportResult.SUCCESS
        self._scope = InstrumentationScope("reliability-proxy", version)
        self._resource = Resource.create(
            {"service.name": settings.service, "service.version": version}
        )
        self._kinds = {
            "internal": trace.SpanKind.INTERNAL,
            "server": trace.SpanKind.SERVER,
            "client": trace.SpanKind.CLIENT,
        }
        self._exporter = OTLPSpanExporter(
            endpoint=self.endpoint,
            headers={name: value.get_secret_value() for name, value in settings.headers.items()},
            timeout=PATIENCE,
            compression=Compression.Gzip,
        )

    def send(self, batch: list[Span]) -> bool:
        """Send spans; whether the collector accepted them."""
        return bool(self._exporter.export([self._made(span) for span in batch]) is self._taken)

    def close(self) -> None:
        """Close the connections."""
        self._exporter.shutdown()

    def _made(self, span: Span) -> Any:
        api = self._api
        parent = None
        if span.parent_id is not None:
            parent = self._context(span, span.parent_id, remote=span.remote)
        status = api.Status(api.StatusCode.UNSET if span.error is None else api.StatusCode.ERROR)
        attributes = {name: value for name, value in span.attributes.items() if value is not None}
        if span.error is not None:
            attributes["error.type"] = span.error
        return self._sdk.ReadableSpan(
            span.name,
            self._context(span, span.span_id, remote=False),
            parent,
            resource=self._resource,
            attributes=attributes,
            kind=self._kinds[span.kind],
            status=status,
            start_time=int(span.began * 1e9),
            end_time=int(max(span.began, span.ended) * 1e9),
            instrumentation_scope=self._scope,
        )

    def _context(self, span: Span, span_id: str, *, remote: bool) -> Any:
        flags = self._api.TraceFlags(span.flags)
        return self._api.SpanContext(int(span.trace_id, 16), int(span_id, 16), remote, flags)
