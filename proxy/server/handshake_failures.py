"""Why TLS handshakes failed: a reason for the metric, and a rate-limited log line.

Anyone who can connect can fail a handshake, so each listener logs each reason once a minute at
most, with the number of failures since. Clients that leave halfway or send nothing are only
counted: they are port scans and load balancers' health checks.
"""

from __future__ import annotations

import asyncio
import logging
import ssl

from proxy.core.clock import Clock

logger = logging.getLogger(__name__)

#: Why a handshake failed: the client rejects our certificate; no common version or cipher; the
#: input is not TLS; it took too long; the client left; it made way for another connection; anything
#: else.
REASONS = ("certificate", "version", "cipher", "not_tls", "timeout", "left", "gave_way", "other")

_QUIET = frozenset({"timeout", "left", "gave_way"})
_EVERY = 60.0  # seconds

#: Substrings of OpenSSL's reason; the first match counts.
_WORDS = (
    ("CERTIFICATE", "certificate"),
    ("UNKNOWN_CA", "certificate"),
    ("HTTP_REQUEST", "not_tls"),
    ("WRONG_VERSION_NUMBER", "not_tls"),
    ("HTTPS_PROXY_REQUEST", "not_tls"),
    ("RECORD_LAYER_FAILURE", "not_tls"),
    ("PROTOCOL", "version"),
    ("VERSION", "version"),
    ("CIPHER", "cipher"),
    ("HANDSHAKE_FAILURE", "cipher"),
    ("SIGNATURE_ALGORITHM", "cipher"),
    ("UNEXPECTED_EOF", "left"),
)


def reason_of(error: BaseException) -> str:
    """One of `REASONS`."""
    if isinstance(error, asyncio.CancelledError):
        return "gave_way"
    if isinstance(error, ssl.SSLError):
        name = str(getattr(error, "reason", None) or error).upper().replace(" ", "_")
        return next((word for part, word in _WORDS if part in name), "other")
    if isinstance(error, TimeoutError) or "taking longer" in str(error):
        return "timeout"
    return "left" if isinstance(error, ConnectionError) else "other"


class HandshakeFailures:
    """Counts and logs the failed handshakes of one listener."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._logged: dict[
            str, tuple[float, int]
        ] = {}  # by reason: when last logged, and the count then

    def note(
        self, listener: str, counts: dict[str, int], client: str, error: BaseException
    ) -> None:
        """Record a failure of the client at that address. `counts`, by reason, run from the
        start."""
        reason = reason_of(error)
        counts[reason] = count = counts.get(reason, 0) + 1
        if reason in _QUIET:
            return
        now = self._clock.monotonic()
        last, before = self._logged.get(reason, (now - _EVERY, 0))
        if now - last < _EVERY:
            return
        self._logged[reason] = (now, count)
        logger.warning(
            "TLS handshakes fail",
            extra={
                "event": "tls_handshake",
                "listener": listener,
                "reason": reason,
                "client": client,
                "error": str(error)[:200],
                "failures": count - before,
            },
        )
