"""A streaming forwarder with FastAPI and httpx under uvicorn: the same work; nothing clever."""

from __future__ import annotations

import re
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from prometheus_client import Counter, Histogram, generate_latest

from tests.bench.apps.common import HOP_BY_HOP, access_logger, facts

REQUESTS = Counter("http_requests", "Requests.", ["method", "endpoint", "status"])
SECONDS = Histogram("http_request_duration_seconds", "Duration.", ["method", "endpoint"])
USABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def build(upstream: str) -> FastAPI:
    """The application in front of `upstream`, a base URL."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with httpx.AsyncClient(
            base_url=upstream,
            limits=httpx.Limits(max_connections=512, max_keepalive_connections=512),
            timeout=httpx.Timeout(60, connect=2),
        ) as client:
            app.state.client = client
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type="text/plain")

    @app.api_route("/{rest:path}", methods=METHODS)
    async def forward(request: Request, rest: str) -> StreamingResponse:
        began = time.perf_counter()
        given = request.headers.get("X-Correlation-ID", "")
        correlation_id = given if USABLE_ID.fullmatch(given) else str(uuid.uuid4())
        headers = [(n, v) for n, v in request.headers.items() if n not in HOP_BY_HOP]
        headers = [(n, v) for n, v in headers if n != "x-correlation-id"]
        headers.append(("x-correlation-id", correlation_id))
        client_host = request.client.host if request.client else ""
        headers.append(("x-forwarded-for", client_host))
        has_body = "content-length" in request.headers or "transfer-encoding" in request.headers
        client: httpx.AsyncClient = request.app.state.client
        url = httpx.URL(path=request.url.path, query=request.url.query.encode())
        outgoing = client.build_request(
            request.method, url, headers=headers, content=request.stream() if has_body else None
        )
        answer = await client.send(outgoing, stream=True)

        async def body() -> AsyncIterator[bytes]:
            sent = 0
            try:
                async for piece in answer.aiter_raw():
                    yield piece
                    sent += len(piece)
            finally:
                await answer.aclose()
                duration = time.perf_counter() - began
                REQUESTS.labels(request.method, "all", answer.status_code).inc()
                SECONDS.labels(request.method, "all").observe(duration)
                access_logger().info(
                    "access",
                    extra=facts(
                        correlation_id,
                        request.method,
                        request.url.path,
                        answer.status_code,
                        duration,
                        sent,
                        client_host,
                    ),
                )

        response = StreamingResponse(body(), status_code=answer.status_code)
        for name, value in answer.headers.multi_items():
            if name.lower() not in HOP_BY_HOP:
                response.headers.append(name, value)
        response.headers["X-Correlation-ID"] = correlation_id
        return response

    return app


if __name__ == "__main__":
    access_logger(sys.argv[3])
    uvicorn.run(
        build(f"http://127.0.0.1:{sys.argv[2]}"),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=False,
        log_level="warning",
        backlog=1024,
        timeout_graceful_shutdown=1,
    )
