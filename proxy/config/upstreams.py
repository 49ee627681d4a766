"""The config's `upstreams`: services behind the proxy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from proxy.config.values import Duration, FilePath, Model, Share, Size, Target


class UpstreamTimeouts(Model):
    """`connect`: to an open connection, TLS included. `response`: request sent to response head.
    `idle`: between two pieces of a body, in either direction. `tunnel`: silence in both directions
    after an upgrade (WebSocket); 1 h as HAProxy's documentation advises."""

    connect: Annotated[Duration, Field(gt=0)] = 2.0
    """To an open connection, TLS included."""
    response: Annotated[Duration, Field(gt=0)] = 60.0
    """From the request sent to the response head; then 504."""
    idle: Annotated[Duration, Field(gt=0)] = 60.0
    """Between two pieces of a body, in either direction."""
    tunnel: Annotated[Duration, Field(gt=0)] = 3600.0
    """Silence in both directions after an upgrade (WebSocket)."""


class Pool(Model):
    """Connections to each target. `keepalive` must be shorter than the upstream's own: uvicorn
    closes after 5 s, hence 4 s. 1024 and 1024 are Envoy's defaults."""

    max_connections: Annotated[int, Field(ge=1)] = 1024
    """Most connections to one target."""
    keepalive: Duration = 4.0
    """How long an idle connection is kept; shorter than the upstream keeps it."""
    queue: Annotated[int, Field(ge=0)] = 1024
    """Most requests that wait for a connection; beyond it 503 `overloaded`."""
    queue_timeout: Annotated[Duration, Field(gt=0)] = 10.0
    """Longest wait for a connection; then 503 `overloaded`."""
    reuse: Literal["always", "idempotent"] = "always"
    """Which requests go on a kept connection. `idempotent`: only those that may be repeated, so
    that a POST never meets a connection that the upstream has closed at this very moment."""
    keep_abandoned: bool = False
    """A request whose client has left keeps its connection until the response begins, or
    `timeouts.response` is over: for an upstream that continues although its caller is gone, as
    ASGI servers do."""


class OverloadAnswer(Model):
    """The response of a server that is full and has not processed the request. The request waits
    and is sent again, whatever its method. The response counts as neither success nor failure."""

    status: Annotated[int, Field(ge=400, le=599)] = 503
    """Its status."""
    content_type: str = "text/plain"
    """Its media type, without parameters."""
    body: Annotated[str, Field(min_length=1, max_length=256)]
    """Its body, exactly. It must also close the connection, as uvicorn's `limit_concurrency` does:
    an application that says the same words keeps it open."""
    patience: Annotated[Duration, Field(gt=0)] = 10.0
    """How long a request is sent again; after that the answer is passed on."""


class Buffering(Model):
    """Bodies that are spooled, so that slow callers do not occupy the upstream's connections."""

    request: bool = False
    """Read a request's body to its end before a connection is taken; send it with its length."""
    response: bool = False
    """Read a response at the upstream's pace, and send it at the caller's."""


class UpstreamTls(Model):
    """TLS towards `https://` targets. Verification is on; `server_name` replaces the target's host
    in SNI and in verification."""

    ca: FilePath | None = None
    """PEM file of certificate authorities; absent: those of the system."""
    verify: bool = True
    """Verify certificate and name. Off only for experiments."""
    server_name: str | None = None
    """Name for SNI and verification, instead of the target's host."""


class Breaker(Model):
    """When to stop calling a failing upstream. 5 failures, 60 s, 3 probes: the sprint document."""

    failure_threshold: Annotated[int, Field(ge=1)] = 5
    """Consecutive failures that open it: here, or summed over the fleet."""
    open_for: Annotated[Duration, Field(gt=0)] = 60.0
    """How long it refuses before the first probe."""
    half_open_max_calls: Annotated[int, Field(ge=1, le=100)] = 3
    """Probes at one time in the whole fleet, and as many successes close it."""
    max_open_for: Annotated[Duration, Field(gt=0)] | None = None
    """Each failed probe doubles the open time up to this, plus at most a tenth at random; absent:
    it stays `open_for`."""
    failure_on: tuple[Literal["abandoned"] | Annotated[int, Field(ge=400, le=599)], ...] = (
        500,
        502,
        503,
        504,
    )
    """Statuses that count as failures, besides connect errors, resets and time-outs; `abandoned`: a
    client left after the upstream had said nothing for `slow_call`."""
    failure_ratio: Annotated[Share, Field(gt=0)] | None = None
    """Also open when this share of the calls in `window` failed."""
    slow_call: Annotated[Duration, Field(gt=0)] | None = None
    """A call that takes longer than this is slow."""
    slow_ratio: Annotated[Share, Field(gt=0)] | None = None
    """Also open when this share of the calls in `window` was slow."""
    window: Annotated[Duration, Field(gt=0)] = 30.0
    """What the ratios look back over, in each process by itself."""
    minimum_calls: Annotated[int, Field(ge=1)] = 20
    """Fewer calls than this in `window` say nothing."""
    hold: Duration = 0.0
    """A call that meets an open circuit waits up to this long, counted from when the request came,
    and only then gets its 503; 0: it is refused at once."""
    hold_queue: Annotated[int, Field(ge=1)] = 50
    """At most this many calls wait at one time; the next is refused at once."""

    @model_validator(mode="after")
    def _consistent(self) -> Breaker:
        if self.max_open_for is not None and self.max_open_for < self.open_for:
            raise ValueError("expected max_open_for of at least open_for, found a shorter one")
        if "abandoned" in self.failure_on:
            if self.slow_call is None:
                raise ValueError("expected slow_call beside failure_on: [abandoned], found none")
        elif self.slow_call is not None and self.slow_ratio is None:
            raise ValueError("expected slow_call and slow_ratio together, found one of them")
        if self.slow_ratio is not None and self.slow_call is None:
            raise ValueError("expected slow_call and slow_ratio together, found one of them")
        return self


class Retry(Model):
    """When to retry, and how many retries an upstream gets."""

    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    """At most this many in all, the first included."""
    on: tuple[
        Literal["connect", "reset", "timeout"] | Annotated[int, Field(ge=400, le=599)], ...
    ] = (
        "connect",
        502,
        503,
        504,
    )
    """What is retried: `connect` (nothing was sent), `reset`, `timeout`, or a status."""
    backoff: Annotated[Duration, Field(gt=0)] = 0.2
    """The first wait is random between 0 and this; each further one has twice the range."""
    max_backoff: Annotated[Duration, Field(gt=0)] = 5.0
    """The range of waits ends here. A longer `Retry-After` means no retry."""
    budget: Share = 0.2
    """Retries may add this share of the upstream's calls of the last 10 s ..."""
    min_per_second: Annotated[int, Field(ge=0)] = 3
    """... or this many a second, where that is more."""
    deadline: Annotated[Duration, Field(gt=0)] = 60.0
    """All attempts and waits together, from the request to the response head; an attempt in
    progress then ends with 504. A body that is still being received from the client is bounded by
    its own time-outs."""
    idempotency_key: bool = False
    """Also repeat a POST or PATCH that carries `Idempotency-Key`: only if the upstream supports
    it."""
    buffer: Size = 64 * 1024
    """Request bodies up to this are kept for replay; with a longer one there is no retry, unless
    `buffering.request` keeps all of it."""


class Bulkhead(Model):
    """How much of the proxy one upstream may occupy."""

    max_concurrent: Annotated[int, Field(ge=1)]
    """Requests in progress at one time."""
    queue: Annotated[int, Field(ge=0)] = 10
    """More wait here, first come first served; beyond: 503 `overloaded` at once."""
    queue_timeout: Annotated[Duration, Field(gt=0)] = 1.0
    """The longest wait; then 503 `overloaded`."""


class Ejection(Model):
    """Leave out failing targets, if there are several: at most half of them at one time."""

    failures: Annotated[int, Field(ge=1)] = 5
    """Consecutive failures of one target; 5 as Envoy."""
    eject_for: Annotated[Duration, Field(gt=0)] = 30.0
    """How long it is left out: this times the number of ejections in a row, as Envoy; no longer
    than five minutes, or than this where it is more."""


class Health(Model):
    """Check the health of each target. Defaults are HAProxy's."""

    path: Annotated[str, Field(pattern=r"^/[!-~]*$")]
    """Requested with GET; any 2xx or 3xx is healthy."""
    every: Annotated[Duration, Field(gt=0)] = 5.0
    """From one check to the next."""
    timeout: Annotated[Duration, Field(gt=0)] = 2.0
    """For the whole response."""
    rise: Annotated[int, Field(ge=1)] = 2
    """Successful checks in a row that bring a target back."""
    fall: Annotated[int, Field(ge=1)] = 3
    """Failed checks in a row that take it out."""


class Upstream(Model):
    """One service behind the proxy, with one or several targets."""

    targets: Annotated[tuple[Target, ...], Field(min_length=1)]
    """`http://HOST:PORT`, `https://HOST`, `unix:/PATH`, or `aiohttp:PACKAGE.MODULE:NAME` for an
    application that runs in the proxy's process; the least busy of two is chosen."""
    timeouts: UpstreamTimeouts = UpstreamTimeouts()
    """How long the upstream may take."""
    pool: Pool = Pool()
    """Connections kept to each target."""
    buffering: Buffering = Buffering()
    """Spool bodies, so that slow callers do not occupy the upstream's connections."""
    connect_patience: Duration = 0.0
    """How long refused connections are retried before 502."""
    overload_answer: OverloadAnswer | None = None
    """A response that means "full, not executed": wait and send again."""
    resend_unread: bool = False
    """Send a request again, whatever its method, when its connection is reset before any answer:
    then the server had not read it to its end (RFC 9293 §3.6.1). For servers that act on complete
    requests only, such as make-video, which restarts itself."""
    host: Literal["preserve", "upstream"] = "preserve"
    """The `Host` sent: the client's own, or the target's."""
    tls: UpstreamTls = UpstreamTls()
    """TLS towards `https://` targets."""
    breaker: Breaker | None = None
    """Stop calling the upstream while it fails."""
    retry: Retry | None = None
    """Retry what is safe to repeat."""
    bulkhead: Bulkhead | None = None
    """Limit the requests in progress."""
    ejection: Ejection | None = None
    """Leave out targets that fail."""
    health: Health | None = None
    """Check the health of targets."""
