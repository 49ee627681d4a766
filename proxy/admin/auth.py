"""Access checks: correlation ID, token, and protection against web pages that attack local
services.

1. Every response has `X-Correlation-ID`, refusals included, and never a stack trace.
2. DNS rebinding: a page can point its own name at 127.0.0.1, and the browser then takes us for that
   page's server. So on loopback `Host` must be an address or one of our names.
3. The bearer token, if one is set, is required for everything but the probes and the static files
   of the status page, which reveal nothing about this proxy. It is compared in constant time.
4. Changes are refused if the browser reports that another page sends them (`Origin`,
   `Sec-Fetch-Site`). Programs send neither field.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from proxy.admin import problems
from proxy.core.errors import ProxyError, Unauthorized
from proxy.core.headers import is_correlation_id, new_correlation_id

PROBES = frozenset({"/livez", "/readyz"})
PAGE = "/status/"  #: the path of the status page's files; the page itself is `/`
CORRELATION = web.RequestKey("correlation", str)

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADER = "X-Correlation-ID"

logger = logging.getLogger(__name__)


class Guard:
    """The access checks of one port. `hosts` are the names allowed in `Host`; None allows any.
    While `starting`, `/api/` is closed."""

    def __init__(
        self, token: str | None, hosts: Collection[str] | None, starting: Callable[[], bool]
    ) -> None:
        self._starting = starting
        self._token = None if token is None else _digest(token)
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    def middleware(self) -> Middleware:
        """For `web.Application(middlewares=...)`."""

        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            correlation_id = request[CORRELATION] = _correlation_id(request)
            try:
                self._check(request)
                answer = await handler(request)
            except ProxyError as error:
                answer = problems.response(error, correlation_id)
            except web.HTTPException as error:
                answer = problems.response(problems.from_aiohttp(error), correlation_id)
            except Exception:
                logger.exception("admin request failed", extra=_facts(request))
                answer = problems.response(ProxyError("See the log"), correlation_id)
            if request.method not in _READING or answer.status in (401, 403):
                logger.info("admin request", extra=_facts(request) | {"status": answer.status})
            return answer

        return guard

    async def mark(self, request: web.Request, answer: web.StreamResponse) -> None:
        """For `Application.on_response_prepare`: set the fields that every response has."""
        answer.headers[_HEADER] = request[CORRELATION]
        answer.headers["Cache-Control"] = "no-store"
        answer.headers["X-Content-Type-Options"] = "nosniff"

    def _check(self, request: web.Request) -> None:
        self._check_host(request)
        if not (request.path in PROBES or request.path == "/" or request.path.startswith(PAGE)):
            self._check_token(request)
        if request.method not in _READING:
            _check_origin(request)
        if request.path.startswith("/api/") and self._starting():
            raise problems.IsStarting(
                "The proxy is starting; `/readyz` names the part being started", retry_after=1.0
            )

    def _check_host(self, request: web.Request) -> None:
        if self._hosts is None:
            return
        for value in request.headers.getall("Host", ()):
            if not self._is_ours(_host_name(value)):
                raise problems.Forbidden(
                    "Host must be an IP address, localhost or one of admin.hosts"
                )

    def _is_ours(self, name: str) -> bool:
        if name == "localhost" or name.endswith(".localhost") or name in (self._hosts or ()):
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True

    def _check_token(self, request: web.Request) -> None:
        if self._token is None:
            return
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(_digest(given.strip()), self._token)
        if scheme.lower() != "bearer" or not right:
            raise Unauthorized("A bearer token is needed, as set in admin.token")


def _check_origin(request: web.Request) -> None:
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None and site not in ("same-origin", "none"):
        raise problems.Forbidden("Changes are not accepted from pages of other sites")
    for origin in request.headers.getall("Origin", ()):
        # `null` (a sandbox, a file) has no authority, so it counts as foreign.
        if _authority(origin) != request.headers.get("Host", "").lower():
            raise problems.Forbidden("Changes are not accepted from pages of other origins")


def _authority(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def _host_name(host: str) -> str:
    """`[::1]:9901` as `::1`."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def _digest(token: str) -> bytes:
    """A hash of fixed length, so that comparing does not reveal the token's length."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _correlation_id(request: web.Request) -> str:
    given = request.headers.getall(_HEADER, [])
    if len(given) == 1 and is_correlation_id(given[0].encode("utf-8", "surrogateescape")):
        return given[0]
    return new_correlation_id()


def _facts(request: web.Request) -> dict[str, object]:
    return {
        "correlation_id": request[CORRELATION],
        "method": request.method,
        "path": request.path,
        "client": request.remote,
    }
