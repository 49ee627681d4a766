"""A finished exchange, made by hand."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Facts:
    """An ordinary answered request; a test changes what it is about."""

    listener: str = "ingress"
    route: str = "job-status"
    method: str = "GET"
    path: str = "/jobs/mv_1"
    correlation_id: str = "c-1"
    client_correlation_id: str | None = None
    trace_id: str | None = None
    trace_sampled: bool = False
    client: str = "127.0.0.1:50000"
    started_at: float = 1_795_450_757.0
    duration: float = 0.25
    status: int = 200
    code: str | None = None
    reason: str | None = None
    detail: str | None = None
    upstream: str | None = "make-video"
    target: str | None = "http://127.0.0.1:8005"
    connect_time: float | None = None
    upstream_time: float | None = 0.125
    attempts: int = 1
    bytes_in: int = 3
    bytes_out: int = 512
    extra: dict[str, object] | None = None
    silence: float | None = None
    unfinished: float | None = None
    gone_in: str | None = None
    head_after: float | None = None
