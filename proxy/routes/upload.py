"""`upload:`: only real audio of the right size and duration passes, and the app gets all of it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from proxy.forward.exchange import Exchange
from proxy.forward.routing.binding import Binding
from proxy.forward.routing.plan import Hooks
from proxy.spool import Spool
from proxy.uploads import rejections
from proxy.uploads.check import UploadCheck
from proxy.uploads.form.digests import DIGEST_FIELDS
from proxy.uploads.probe.pool import ProbePool
from proxy.uploads.rules import UploadRules

_VERDICT_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_AUDIO_SECONDS = (5, 15, 30, 60, 120, 180, 300, 600, 1200, 3600)
_BODY_METHODS = frozenset({"POST", "PUT", "PATCH"})


class UploadCheckStage:
    """Binds a validator to every route with `upload:`."""

    def __init__(self, pool: ProbePool, spool: Spool, registry: CollectorRegistry) -> None:
        self._pool = pool
        self._spool = spool
        self._verdicts = Counter(
            "proxy_uploads_total",
            "Uploads by verdict: accepted, a rejection code, or unfinished",
            ["endpoint", "verdict"],
            registry=registry,
        )
        self._rejected = Counter(
            "proxy_uploads_rejected_total",
            "Uploads rejected, or that report mode would reject",
            ["endpoint", "code"],
            registry=registry,
        )
        self._bytes = Counter(
            "proxy_upload_bytes_total",
            "Bytes of the files in uploads",
            ["endpoint"],
            registry=registry,
        )
        self._delay = Histogram(
            "proxy_upload_validation_seconds",
            "Delay of the verdict after the last byte of the upload",
            ["endpoint"],
            buckets=_VERDICT_SECONDS,
            registry=registry,
        )
        self._duration = Histogram(
            "proxy_upload_audio_seconds",
            "Duration of uploaded audio",
            ["endpoint"],
            buckets=_AUDIO_SECONDS,
            registry=registry,
        )

    def bind(self, binding: Binding) -> Hooks | None:
        """Nothing on routes without `upload:`."""
        if binding.route is None or binding.route.upload is None:
            return None
        validator = UploadRules(
            binding.route.upload,
            self._pool,
            self._spool,
            digest=binding.route.idempotency is not None,
        )
        endpoint = binding.route_name
        received = self._bytes.labels(endpoint)
        delay = self._delay.labels(endpoint)
        duration = self._duration.labels(endpoint)

        def begin(exchange: Exchange) -> UploadCheck | None:
            head = exchange.head
            assert head is not None
            if not head.has_body and exchange.method not in _BODY_METHODS:
                return None
            kinds, encodings = head.values(b"content-type"), head.values(b"content-encoding")
            twice = len(set(kinds)) > 1 or len(set(encodings)) > 1
            if twice and validator.rules.mode == "enforce":
                raise rejections.malformed(
                    "Content-Type or Content-Encoding comes more than once, and not the same",
                    validator.rules.field,
                    reason="content_type",
                )
            check = validator.begin(
                kinds[0] if kinds else None,
                head.content_length,
                encodings[0] if encodings else None,
                [(name, value) for name in DIGEST_FIELDS for value in head.values(name)],
                owner=exchange.stream,
            )
            check.on_change = exchange.stream.wake
            return check

        def finished(exchange: Exchange) -> None:
            if isinstance(exchange.filter, UploadCheck):
                facts = exchange.filter.facts
                received.inc(facts["size"])
                if "validation_ms" in facts:
                    delay.observe(facts["validation_ms"] / 1000)
                if "duration" in facts:
                    duration.observe(facts["duration"])
                exchange.note(**{f"upload_{name}": value for name, value in facts.items()})
                if exchange.filter.detail is not None:  # in report mode nothing else records it
                    exchange.detail = exchange.filter.detail
                verdict = facts["verdict"]
            elif exchange.code is not None and exchange.code.startswith("upload_"):
                verdict = exchange.code  # refused by its head alone
                exchange.note(upload_verdict=verdict)
            else:
                return
            self._verdicts.labels(endpoint, verdict).inc()
            if verdict.startswith("upload_"):
                self._rejected.labels(endpoint, verdict).inc()

        return Hooks(filter=begin, finished=finished)
