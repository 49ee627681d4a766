"""The facts about a finished exchange that logs and metrics may use."""

from __future__ import annotations

from typing import Protocol


class ExchangeFacts(Protocol):
    """One finished exchange, as the access log and the metrics receive it.

    Durations are seconds. `upstream_time` runs from the request head sent to the response head
    seen; it is None when no response head came.
    """

    listener: str
    route: str  #: "-" where no route matched
    method: str
    path: str  #: the raw request target, query included
    correlation_id: str
    client_correlation_id: str | None  #: what the client sent, raw, if it was refused
    client: str  #: "ip:port" or "unix"
    started_at: float  #: Unix seconds
    duration: float
    status: int  #: 499 when the client left
    trace_id: str | None  #: of the distributed trace, where spans are sent
    code: str | None  #: machine code of an error of ours
    reason: str | None
    detail: str | None
    upstream: str | None
    target: str | None
    connect_time: float | None
    upstream_time: float | None
    attempts: int
    silence: float | None  #: seconds that the upstream had been silent when the client left
    unfinished: (
        float | None
    )  #: seconds since the response head, if the upstream was still sending then
    gone_in: str | None  #: what was in progress when the client left, one of `counters.PHASES`
    head_after: float | None  #: seconds to the head of a WebSocket or event stream; None for others
    bytes_in: int  #: content, not framing
    bytes_out: int
    extra: dict[str, object] | None  #: facts that stages add

    @property
    def trace_sampled(self) -> bool:
        """Whether a collector gets its spans; read only if there is a `trace_id`."""
        ...
