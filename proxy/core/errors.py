"""Every way in which the proxy itself refuses or fails an exchange.

One tree. A class carries what is fixed (HTTP status, machine `code`, title); an instance carries
what was measured. `problem_body` turns any of them into the RFC 9457 document that clients read;
nothing else in the proxy writes an error body.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar

PROBLEM_CONTENT_TYPE = "application/problem+json"


class ProxyError(Exception):
    """A reply of our own instead of the upstream's.

    `detail` explains the reason to people; `facts` are extra members of the problem document
    (`limit`, `measured`, `field`, `upstream`, `retry_after`, ...); `close` asks that the client
    connection be closed after the reply, because its framing can no longer be trusted.
    `retry_after` is in seconds and also becomes the `Retry-After` field, rounded up.
    `reason` is a short fixed token for the access log where one `code` has several causes.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    #: `WWW-Authenticate` (RFC 9110 §11.6.1).
    challenge: ClassVar[str | None] = None

    def __init__(
        self,
        detail: str,
        *,
        close: bool = False,
        retry_after: float | None = None,
        reason: str | None = None,
        allow: str | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.close = close
        self.retry_after = retry_after
        self.reason = reason
        self.allow = allow
        self.facts = facts


# --- the client's fault -------------------------------------------------------------------------


class BadRequest(ProxyError):
    """The request could only be understood by guessing."""

    status, code, title = 400, "bad_request", "Bad request"


class RequestTimeout(ProxyError):
    """The client did not send its head or body in time."""

    status, code, title = 408, "request_timeout", "Request timeout"


class UriTooLong(ProxyError):
    """The request target exceeds the limit."""

    status, code, title = 414, "uri_too_long", "URI too long"


class HeaderTooLarge(ProxyError):
    """The header section exceeds the limit of bytes or of fields."""

    status, code, title = 431, "header_too_large", "Request header fields too large"


class BodyTooLarge(ProxyError):
    """The request body exceeds the route's `limits.body`."""

    status, code, title = 413, "body_too_large", "Request body too large"


class NoRoute(ProxyError):
    """No route of this listener matches the path."""

    status, code, title = 404, "no_route", "No route"


class MethodNotAllowed(ProxyError):
    """Routes match the path, but none the method. `allow` becomes the `Allow` field."""

    status, code, title = 405, "method_not_allowed", "Method not allowed"


class Unauthorized(ProxyError):
    """The credentials are missing or wrong. `challenge` becomes `WWW-Authenticate` (RFC 9110
    §11.6.1)."""

    status, code, title = 401, "unauthorized", "Unauthorized"
    challenge = "Bearer"


class ApiKeyNeeded(Unauthorized):
    """The app, which checks the key, is away, and the mirror answers nobody without one."""

    challenge = "ApiKey"


class IdempotencyInProgress(ProxyError):
    """The first request with this key has not finished, or its outcome is not known yet."""

    status, code, title = 409, "idempotency_in_progress", "Idempotent request in progress"


class IdempotencyMismatch(ProxyError):
    """The key belongs to another request (draft-ietf-httpapi-idempotency-key-header §2.7)."""

    status, code, title = 422, "idempotency_mismatch", "Idempotency key used before"


class TooManyRequests(ProxyError):
    """The client has used up its share. `rate_limit` holds the values of `RateLimit-Policy` and
    `RateLimit` (draft-ietf-httpapi-ratelimit-headers)."""

    status, code, title = 429, "too_many_requests", "Too many requests"

    def __init__(self, detail: str, *, rate_limit: tuple[str, str], **facts: Any) -> None:
        super().__init__(detail, **facts)
        self.rate_limit = rate_limit


class ClientLeft(ProxyError):
    """The client disconnected first. Never sent to anyone, only logged and counted."""

    status, code, title = 499, "client_left", "Client closed request"


# --- uploads ------------------------------------------------------------------------------------


class UploadRejected(ProxyError):
    """An upload that violates the route's rules."""

    status, code, title = 400, "upload_malformed", "Upload rejected"


class UploadTooLarge(UploadRejected):
    """The file part has more bytes than `max_size`."""

    code = "upload_too_large"


class UploadTypeRejected(UploadRejected):
    """The bytes are not of an accepted format, whatever type the client declared."""

    code = "upload_type_rejected"


class UploadTooLong(UploadRejected):
    """The audio is longer than `max_duration`."""

    code = "upload_too_long"


class UploadDurationUnknown(UploadRejected):
    """The bytes claim to be audio, but no demuxer can read them to the end."""

    code = "upload_duration_unknown"


class UploadMissing(UploadRejected):
    """The form has no file part with the configured name."""

    code = "upload_missing"


class UploadEmpty(UploadRejected):
    """The file part is empty."""

    code = "upload_empty"


class UploadMalformed(UploadRejected):
    """The multipart body violates RFC 7578 or RFC 2046, or is cut short."""

    code = "upload_malformed"


# --- the upstream's fault -----------------------------------------------------------------------


class UpstreamFailure(ProxyError):
    """An attempt that failed through the upstream. `kind` is its name in breakers and retries."""

    kind: ClassVar[str] = "reset"


class UpstreamUnreachable(UpstreamFailure):
    """No connection to any target. Nothing was sent, so any method may be retried."""

    status, code, title = 502, "upstream_unreachable", "Upstream unreachable"
    kind = "connect"


class UpstreamReset(UpstreamFailure):
    """The upstream closed the connection, or sent something other than HTTP, before its response
    could be passed on."""

    status, code, title = 502, "upstream_reset", "Upstream broke off"


class UpstreamTimeout(UpstreamFailure):
    """The upstream took longer than `timeouts.response` or stalled longer than `timeouts.idle`."""

    status, code, title = 504, "upstream_timeout", "Upstream timeout"
    kind = "timeout"


class StillWaiting(ProxyError):
    """The upstream has not answered yet, and the route has a fallback. Never sent to a client."""

    status, code, title = 504, "upstream_timeout", "Upstream timeout"


# --- our own refusals ---------------------------------------------------------------------------


class StageFailed(ProxyError):
    """A stage that is not ours raised an exception; `stage` names it."""

    code, title = "stage_failed", "Stage failed"


class Unavailable(ProxyError):
    """A 503 of our own; `retry_after` says when to try again."""

    status, code, title = 503, "overloaded", "Service unavailable"


class CircuitOpen(Unavailable):
    """The upstream's circuit breaker is open."""

    code, title = "circuit_open", "Circuit open"


class Overloaded(Unavailable):
    """A bounded resource (connections, queue, concurrency) is exhausted."""

    code, title = "overloaded", "Overloaded"


class Draining(Unavailable):
    """The proxy is about to stop and accepts no new requests."""

    code, title = "draining", "Draining"


class JobNotStored(Unavailable):
    """The app accepted a job but did not store it, or cannot store one now."""

    code, title = "job_not_stored", "Job not stored"


class StoreAway(Unavailable):
    """A store is away: whether the job exists is unknown, and it cannot be changed."""

    code, title = "store_away", "Store away"


class JobExpired(ProxyError):
    """The job is known, but has expired."""

    status, code, title = 404, "job_expired", "Job expired"


#: How many errors of a chain are followed.
_CHAIN = 20


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of `error` and of its causes.

    Frames refer to all their variables, and those often to the error. Such cycles are left to the
    garbage collector, which a flood of errors would keep busy for tens of milliseconds at a time. A
    chain may be circular: a stage can raise an error from itself."""
    seen: BaseException | None = error
    for _ in range(_CHAIN):
        if seen is None:
            return
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__


def problem_body(error: ProxyError, correlation_id: str) -> bytes:
    """The RFC 9457 document of `error`, UTF-8 JSON.

    `detail` is what FastAPI clients read, `message` repeats it because the app's own clients read
    that; the facts of the instance follow. Facts never overwrite the fixed members.
    """
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "message": error.detail,
        "code": error.code,
        "correlation_id": correlation_id,
    }
    if error.retry_after is not None:
        document["retry_after"] = retry_after_seconds(error.retry_after)
    for name, value in error.facts.items():
        document.setdefault(name, value)
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=str).encode()


def retry_after_seconds(seconds: float) -> int:
    """`Retry-After` in whole seconds, rounded up, at least 1 (RFC 9110 §10.2.3)."""
    return max(1, -int(-seconds // 1))


def cannot_listen(who: str, where: object, error: OSError) -> OSError:
    """The error for an address that cannot be bound, in one line."""
    reason = error.strerror or str(error)
    # Event loops say "error while attempting to bind on address (…): " first.
    return OSError(f"{who}: cannot listen on {where}: {reason.rpartition('): ')[2]}")
