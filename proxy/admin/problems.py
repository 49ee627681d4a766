"""The errors of the admin API, in the same form as all other errors of the proxy."""

from __future__ import annotations

from aiohttp import web

from proxy.core.errors import (
    PROBLEM_CONTENT_TYPE,
    BadRequest,
    MethodNotAllowed,
    ProxyError,
    Unauthorized,
    problem_body,
    retry_after_seconds,
)


class IsStarting(ProxyError):
    """The proxy has not started completely, so it cannot answer yet."""

    status, code, title = 503, "starting", "Starting"


class Forbidden(ProxyError):
    """A foreign web page made a browser send the request."""

    status, code, title = 403, "forbidden", "Forbidden"


class NotFound(ProxyError):
    """No such endpoint, breaker, mirror or job."""

    status, code, title = 404, "not_found", "Not found"


class BodyTooLarge(ProxyError):
    """The request's JSON document exceeds the limit."""

    status, code, title = 413, "body_too_large", "Content too large"


class RequeueRefused(ProxyError):
    """A job is not requeued, because a worker may have it, or because it must not run."""

    status, code, title = 409, "requeue_refused", "Requeue refused"


class ConfigRefused(ProxyError):
    """The config file has problems; the old config stays in force."""

    status, code, title = 422, "config_refused", "Config refused"


class IsStopping(ProxyError):
    """The proxy is draining and does not reload any more."""

    status, code, title = 409, "stopping", "Proxy is stopping"


class UpgradeFailed(ProxyError):
    """The new process did not take over; the old one continues."""

    status, code, title = 409, "upgrade_failed", "Upgrade failed"


def from_aiohttp(error: web.HTTPException) -> ProxyError:
    """The errors of aiohttp's router and body reader as our own."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allow = ", ".join(sorted(error.allowed_methods))
        return MethodNotAllowed(f"{error.method} is not allowed here", allow=allow)
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return BodyTooLarge("The body is too large")
    if error.status == 404:
        return NotFound("No such endpoint")
    if 400 <= error.status < 500:
        return BadRequest(error.reason)
    return ProxyError(error.reason)


def response(error: ProxyError, correlation_id: str) -> web.Response:
    """The RFC 9457 response for `error`."""
    answer = web.Response(
        status=error.status,
        body=problem_body(error, correlation_id),
        content_type=PROBLEM_CONTENT_TYPE,
    )
    if error.retry_after is not None:
        answer.headers["Retry-After"] = str(retry_after_seconds(error.retry_after))
    if error.allow is not None:
        answer.headers["Allow"] = error.allow
    if isinstance(error, Unauthorized):
        answer.headers["WWW-Authenticate"] = error.challenge
    return answer
