"""A streaming forwarder with aiohttp: access log, correlation ID, metrics; nothing clever."""

from __future__ import annotations

import re
import sys
import time
import uuid
from collections.abc import AsyncIterator

from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from multidict import CIMultiDict
from prometheus_client import Counter, Histogram, generate_latest

from tests.bench.apps.common import HOP_BY_HOP, access_logger, facts

UPSTREAM = web.AppKey("upstream", str)
SESSION = web.AppKey("session", ClientSession)
REQUESTS = Counter("http_requests", "Requests.", ["method", "endpoint", "status"])
SECONDS = Histogram("http_request_duration_seconds", "Duration.", ["method", "endpoint"])
USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


async def forward(request: web.Request) -> web.StreamResponse:
    """Send the request on, stream the answer back."""
    began = time.perf_counter()
    given = request.headers.get("X-Correlation-ID", "")
    correlation_id = given if USABLE_ID.fullmatch(given) else str(uuid.uuid4())
    headers = CIMultiDict(
        (name, value) for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP
    )
    headers["X-Correlation-ID"] = correlation_id
    headers["X-Forwarded-For"] = request.remote or ""
    async with request.app[SESSION].request(
        request.method,
        request.app[UPSTREAM] + request.path_qs,
        headers=headers,
        data=request.content if request.can_read_body else None,
        allow_redirects=False,
    ) as answer:
        response = web.StreamResponse(status=answer.status, reason=answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in HOP_BY_HOP:
                response.headers.add(name, value)
        response.headers["X-Correlation-ID"] = correlation_id
        await response.prepare(request)
        sent = 0
        async for piece in answer.content.iter_any():
            await response.write(piece)
            sent += len(piece)
        await response.write_eof()
    duration = time.perf_counter() - began
    REQUESTS.labels(request.method, "all", answer.status).inc()
    SECONDS.labels(request.method, "all").observe(duration)
    access_logger().info(
        "access",
        extra=facts(
            correlation_id, request.method, request.path, answer.status, duration, sent,
            request.remote,
        ),
    )  # fmt: skip
    return response


async def metrics(request: web.Request) -> web.Response:
    """For Prometheus."""
    return web.Response(body=generate_latest(), content_type="text/plain")


async def client_session(app: web.Application) -> AsyncIterator[None]:
    """One session for the life of the application."""
    app[SESSION] = ClientSession(
        connector=TCPConnector(limit=512),
        timeout=ClientTimeout(total=None, sock_connect=2, sock_read=60),
        cookie_jar=DummyCookieJar(),
        auto_decompress=False,
    )
    yield
    await app[SESSION].close()


def main(port: int, upstream_port: int, access_log: str) -> None:
    """Serve until SIGTERM."""
    access_logger(access_log)
    app = web.Application(client_max_size=0)
    app[UPSTREAM] = f"http://127.0.0.1:{upstream_port}"
    app.cleanup_ctx.append(client_session)
    app.router.add_get("/metrics", metrics)
    app.router.add_route("*", "/{rest:.*}", forward)
    web.run_app(
        app,
        host="127.0.0.1",
        port=port,
        access_log=None,
        print=None,
        backlog=1024,
        shutdown_timeout=1,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
