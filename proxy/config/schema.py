"""Every key of the config file, its type, its default and the reason for it.

The models are frozen and complete: what compiles a config never asks whether a key was given.
Durations are seconds (float), sizes bytes (int), shares 0..1. The text under a key is its
description in the JSON Schema; `model_dump(mode="json")` gives what a person would write, with
secrets masked. The loader hands every scalar over as text, so each type here must read text.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, SecretStr, WithJsonSchema, model_validator

from proxy.config import units
from proxy.config.telemetry import AppMetrics, Resources, Statsd
from proxy.config.values import (
    Bind,
    Duration,
    Level,
    Method,
    Model,
    Name,
    PathPattern,
    Secret,
    Share,
    Size,
    Target,
    TimeOfDay,
)
from proxy.redis_url import parse_redis_url

# --- listeners and routes -----------------------------------------------------------------------


class ListenerTls(Model):
    """TLS on a listener: PEM files. The certificate file holds the chain, leaf first."""

    cert: Path
    """PEM file, relative to the current directory: the certificate and its chain."""
    key: Path
    """PEM file with the certificate's private key, without a passphrase."""


class ClientLimits(Model):
    """What one client may send. Defaults are those of nginx and aiohttp, where they agree."""

    request_line: Annotated[Size, Field(ge=64)] = 8 * 1024
    """Longest request line; beyond it 414."""
    header: Annotated[Size, Field(ge=256)] = 32 * 1024
    """Largest header section; beyond it 431."""
    header_count: Annotated[int, Field(ge=1)] = 128
    """Most header fields; beyond it 431."""
    connections: Annotated[int, Field(ge=1)] = 10_000
    """Most client connections at a time; further ones wait to be accepted."""


class ClientTimeouts(Model):
    """How long a client may take: for a whole header section, between two pieces of a body (in
    either direction), and between two requests on a kept-alive connection."""

    header: Annotated[Duration, Field(gt=0)] = 10.0
    """From the first byte of a request to the end of its header section; then 408."""
    body: Annotated[Duration, Field(gt=0)] = 30.0
    """Between two pieces of a request or response body."""
    idle: Annotated[Duration, Field(gt=0)] = 75.0
    """Between two requests on one connection, which is then closed."""


AudioType = Literal[
    "audio/mpeg",
    "audio/wav",
    "audio/x-wav",
    "audio/mp4",
    "audio/m4a",
    "audio/ogg",
    "audio/flac",
    "audio/webm",
    "audio/aac",
]


class Upload(Model):
    """What an upload must be. `field` names the one file part of the form; `null` means that the
    request body is the file itself. `max_duration: null` sets no limit, but the file must still
    play from end to end. 50 MiB, ten minutes and the six types: the sprint document. A type stands
    for a family of formats (docs/uploads.md), never for what a client or libmagic calls it. The
    upstream gets a connection when `buffer` bytes are there, or all of the body: 1 MiB, as Envoy
    buffers for a connection."""

    field: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\[\]-]{1,100}$")] | None = "audio_file"
    max_size: Annotated[Size, Field(ge=1)] = 50 * 1024 * 1024
    max_duration: Annotated[Duration, Field(gt=0)] | None = 600.0
    types: Annotated[tuple[AudioType, ...], Field(min_length=1)] = (
        "audio/mpeg",
        "audio/wav",
        "audio/x-wav",
        "audio/mp4",
        "audio/m4a",
        "audio/ogg",
    )
    mode: Literal["enforce", "report"] = "enforce"
    buffer: Annotated[Size, Field(ge=0, le=64 * 1024 * 1024)] = 1024 * 1024


class JobRole(Model):
    """What a route does with the jobs of a mirror: exactly one of the four is set.

    `reads` and `deletes` name the path parameter that holds the job id. `require_redis`: refuse a
    creation while Redis cannot store it. `fallback_after`: how long a read may wait for the app
    before the mirror answers; 2 s, as a hung Redis freezes the app for 20 s and more.
    """

    mirror: Name
    creates: bool = False
    reads: str | None = None
    deletes: str | None = None
    lists: bool = False
    require_redis: bool = True
    fallback_after: Annotated[Duration, Field(gt=0)] = 2.0


class StaticAnswer(Model):
    """An answer from the config instead of the upstream's."""

    status: Annotated[int, Field(ge=200, le=599)] = 200
    """The status."""
    headers: dict[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")],
        Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*$")],
    ] = {}
    """Fields, for example `Content-Type`; not those that the proxy sets itself."""
    body: str = ""
    """The body, sent as UTF-8."""

    @model_validator(mode="after")
    def _framed_by_us(self) -> StaticAnswer:
        ours = {"connection", "content-length", "date", "keep-alive", "trailer"}
        ours |= {"transfer-encoding", "upgrade", "x-correlation-id"}
        if found := sorted(name for name in self.headers if name.lower() in ours):
            raise ValueError(f"expected only fields that the proxy does not set, found {found[0]}")
        return self


class Fallback(Model):
    """What the caller gets while the circuit is open or the upstream fails, instead of the error.
    With both, `stale` comes first."""

    answer: StaticAnswer | None = None
    """This answer."""
    stale: Annotated[Duration, Field(gt=0)] | None = None
    """The last good (200) answer to the same GET, no older than this, with `X-Stale: true`."""
    stale_memory: Size = 16 * 1024 * 1024
    """What stale answers of this route may take up in memory."""
    stale_max_body: Size = 1024 * 1024
    """Longer answers are not kept."""

    @model_validator(mode="after")
    def _something(self) -> Fallback:
        if self.answer is None and self.stale is None:
            raise ValueError("expected answer or stale, found neither")
        return self


class Route(Model):
    """One line of the routing table; `name` is also the metric label `endpoint`."""

    name: Name
    """Unique in its listener; also the metric label `endpoint`."""
    path: PathPattern
    """`/exact`, `/jobs/{job_id}` (one segment) or `/{rest:*}` (everything, also nothing)."""
    upstream: Name
    """The upstream that requests go to."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] | None = None
    """Upper-case methods; absent: every method."""
    upload: Upload | None = None
    """Check uploads before they reach the upstream."""
    job: JobRole | None = None
    """What this route does with the jobs of a mirror."""
    fallback: Fallback | None = None
    """What to answer while the upstream cannot."""
    trace: bool = True
    """Whether exchanges on this route may be kept in the trace."""


class Listener(Model):
    """One address that callers connect to."""

    bind: Bind
    """`127.0.0.1:8000`, `[::1]:8000`, or `:8000` for every address."""
    direction: Literal["ingress", "egress"] = "ingress"
    """`ingress` counts in http_requests_*, `egress` in external_api_*."""
    routes: Annotated[tuple[Route, ...], Field(min_length=1)]
    """In file order: the first that matches wins."""
    tls: ListenerTls | None = None
    """Serve HTTPS."""
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    """Networks whose X-Forwarded-* fields are kept."""
    limits: ClientLimits = ClientLimits()
    """What one client may send."""
    timeouts: ClientTimeouts = ClientTimeouts()
    """How long a client may take."""
    reuse_port: bool = False
    """Share the port with other processes (SO_REUSEPORT)."""


# --- upstreams ----------------------------------------------------------------------------------


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


class UpstreamTls(Model):
    """TLS towards `https://` targets. Verification is on; `server_name` replaces the target's host
    in SNI and in verification."""

    ca: Path | None = None
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
    """Each failed probe doubles the open time up to this; absent: it stays `open_for`."""
    jitter: Share = 0.1
    """At most this share is added to a grown open time, so that fleets do not probe in step."""
    failure_on: tuple[Annotated[int, Field(ge=400, le=599)], ...] = (500, 502, 503, 504)
    """Statuses that count as failures, besides connect errors, resets and time-outs."""
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
    probe_lease: Annotated[Duration, Field(gt=0)] | None = None
    """A probe without an outcome is given back after this; absent: `connect_patience` plus
    connect and response time-outs."""

    @model_validator(mode="after")
    def _consistent(self) -> Breaker:
        if self.max_open_for is not None and self.max_open_for < self.open_for:
            raise ValueError("expected max_open_for of at least open_for, found a shorter one")
        if (self.slow_ratio is None) != (self.slow_call is None):
            raise ValueError("expected slow_call and slow_ratio together, found one of them")
        return self


class Retry(Model):
    """When to try again, and how much of that the upstream must bear."""

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
    """What is tried again: `connect` (nothing was sent), `reset`, `timeout`, or a status."""
    backoff: Annotated[Duration, Field(gt=0)] = 0.2
    """The first wait is random between 0 and this; each further one has twice the range."""
    max_backoff: Annotated[Duration, Field(gt=0)] = 5.0
    """The range of waits ends here. A longer `Retry-After` means no retry."""
    budget: Share = 0.2
    """Retries may add this share of the upstream's calls of the last 10 s ..."""
    min_per_second: Annotated[int, Field(ge=0)] = 3
    """... or this many a second, where that is more."""
    deadline: Annotated[Duration, Field(gt=0)] = 60.0
    """No attempt begins later than this after the request came."""
    idempotency_key: bool = False
    """Also repeat a POST or PATCH that carries `Idempotency-Key`: only if the upstream heeds it."""
    buffer: Size = 64 * 1024
    """Request bodies up to this are kept for replay; with a longer one there is no retry."""


class Bulkhead(Model):
    """How much of the proxy one upstream may occupy."""

    max_concurrent: Annotated[int, Field(ge=1)]
    """Requests under way at one time."""
    queue: Annotated[int, Field(ge=0)] = 10
    """More wait here, first come first served; beyond: 503 `overloaded` at once."""
    queue_timeout: Annotated[Duration, Field(gt=0)] = 1.0
    """How long one waits at most; then 503 `overloaded`."""


class Ejection(Model):
    """Leave out single targets that fail, where there are several. Never all of them."""

    failures: Annotated[int, Field(ge=1)] = 5
    """Consecutive failures of one target; 5 as Envoy."""
    eject_for: Annotated[Duration, Field(gt=0)] = 30.0
    """How long it is left out: this times the number of ejections in a row, as Envoy."""
    max_eject_for: Annotated[Duration, Field(gt=0)] = 300.0
    """No longer than this."""
    max_ejected: Annotated[Share, Field(gt=0)] = 0.5
    """At most this share of the targets at one time."""


class Health(Model):
    """Ask each target by itself whether it is well. Defaults are HAProxy's."""

    path: Annotated[str, Field(pattern=r"^/[!-~]*$")]
    """Asked with GET; any 2xx or 3xx is well."""
    every: Annotated[Duration, Field(gt=0)] = 5.0
    """From one question to the next."""
    timeout: Annotated[Duration, Field(gt=0)] = 2.0
    """For the whole answer."""
    rise: Annotated[int, Field(ge=1)] = 2
    """Good answers in a row that bring a target back."""
    fall: Annotated[int, Field(ge=1)] = 3
    """Bad ones in a row that take it out."""


class Upstream(Model):
    """One service behind the proxy, with one or several targets."""

    targets: Annotated[tuple[Target, ...], Field(min_length=1)]
    """`http://HOST:PORT`, `https://HOST` or `unix:/PATH`; the least busy of two is chosen."""
    timeouts: UpstreamTimeouts = UpstreamTimeouts()
    """How long the upstream may take."""
    pool: Pool = Pool()
    """Connections kept to each target."""
    connect_patience: Duration = 0.0
    """How long refused connections are retried before 502."""
    host: Literal["preserve", "upstream"] = "preserve"
    """The `Host` sent: the client's own, or the target's."""
    tls: UpstreamTls = UpstreamTls()
    """TLS towards `https://` targets."""
    breaker: Breaker | None = None
    """Stop calling the upstream while it fails."""
    retry: Retry | None = None
    """Try again what is safe to repeat."""
    bulkhead: Bulkhead | None = None
    """Bound how many requests are under way."""
    ejection: Ejection | None = None
    """Leave out targets that fail."""
    health: Health | None = None
    """Ask targets whether they are well."""


# --- the rest -----------------------------------------------------------------------------------


class RedisTls(Model):
    """TLS towards `rediss://` servers; `cert` and `key` where they want a client certificate."""

    ca: Path | None = None
    """PEM file of the authorities to trust; absent: those of the system."""
    cert: Path | None = None
    """PEM file with our certificate and its chain."""
    key: Path | None = None
    """PEM file with our private key, without a passphrase."""
    verify: bool = True
    """Check the server's certificate and name."""


def _check_redis_url(url: SecretStr) -> SecretStr:
    parse_redis_url(url.get_secret_value())
    return url


class Redis(Model):
    """Where shared state lives. Absent: breakers are local to the process, the mirror is off."""

    url: Annotated[Secret, AfterValidator(_check_redis_url)]
    """`redis://`, `rediss://`, `unix://`, `redis+sentinel://HOST,HOST/MASTER/DB` or
    `redis+cluster://HOST,HOST`."""
    username: str | None = None
    """Instead of one in the URL."""
    password: Secret | None = None
    """Instead of one in the URL."""
    tls: RedisTls = RedisTls()
    """Certificates for `rediss://`."""
    key_prefix: Annotated[str, Field(max_length=64, pattern=r"^[^{}\s]*$")] = ""
    """Before every key and channel of our own (not before those of the app)."""
    connect_timeout: Annotated[Duration, Field(gt=0)] = 1.0
    """To an open connection. No request ever waits for it."""
    command_timeout: Annotated[Duration, Field(gt=0)] = 1.0
    """From a command to its answer; beyond it Redis counts as away."""


class Rescue(Model):
    """Celery's own keys, kept and put back: a Redis restart also empties the broker.

    `queues` are the lists that workers pop from; their binding sets and the `unacked` hash are
    found by kombu's naming. `unacked_after`: a message that a worker had already taken is put back
    only when its job is still queued this long after the loss, as that worker may be alive.
    """

    queues: Annotated[tuple[str, ...], Field(min_length=1)] = ("make_video_queue",)
    unacked: str = "unacked"
    unacked_after: Duration = 60.0
    max_messages: Annotated[int, Field(ge=1, le=100_000)] = 10_000


def _check_job_path(path: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64}){0,7}", path):
        raise ValueError(
            "expected up to eight names of a job document's members, joined by dots, as in "
            f"result.shorts_used, found {path[:80]!r}"
        )
    return path


JobPaths = tuple[
    Annotated[
        str,
        AfterValidator(_check_job_path),
        WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$"}),
    ],
    ...,
]
Token = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]


class JobFields(Model):
    """Which members of a job document feed which metric.

    Each is a list of dotted paths; the first one under which the document has a value that will do
    is used. The defaults know both shapes of the service's documents.
    """

    stages: Annotated[tuple[Token, ...], Field(max_length=64)] = (
        "analyze_audio",
        "load_approved",
        "select_shorts",
        "assemble_video",
        "generate_subtitles",
        "final_composition",
        "trim_video",
        "validate_av_sync",
        "download_pipeline",
    )
    error_type: JobPaths = ("error.type", "error_type")
    error_code: JobPaths = ("error.code", "error_code")
    input_duration: JobPaths = ("audio_duration", "stages.analyze_audio.metadata.audio_duration")
    shorts_count: JobPaths = ("result.shorts_used", "result.shorts_list")
    subtitle_segments: JobPaths = ("result.subtitle_segments",)
    sync_drift: JobPaths = (
        "result.sync_drift",
        "result.sync_drift_ms",
        "stages.validate_av_sync.metadata.drift",
        "stages.validate_av_sync.metadata.drift_seconds",
        "stages.validate_av_sync.metadata.drift_ms",
    )
    validation: JobPaths = ("stages.validate_av_sync.status",)
    validation_counts: Annotated[dict[Token, JobPaths], Field(max_length=16)] = {
        "approved": (
            "result.approved_count",
            "stages.download_pipeline.metadata.stats.approved",
        ),
        "rejected": (
            "result.rejected_count",
            "stages.download_pipeline.metadata.stats.rejected",
        ),
    }


class Mirror(Model):
    """One family of job keys, kept in SQLite as well.

    `key` holds `{job_id}` once, behind a fixed beginning. `keep_for`: how long an expired job and a
    tombstone stay known. `max_value`: longer values are left to Redis alone. `app_breaker`: how
    long the app's own Redis breaker may stay open after Redis is back (60 s, read in the app).
    `hold_deletes`: a key that a worker writes again after a DELETE is removed again.
    `stranded_after`: an unfinished job without a change for this long is reported. `job_metrics`:
    where the pipeline's metrics are read from; null turns them off. `api_key`: what the app wants
    as `X-API-Key`; the mirror then answers for the app only who sends it.
    """

    key: str
    index: str | None = None
    sqlite: Path
    sync_every: Annotated[Duration, Field(ge=1)] = 900.0
    cleanup_at: TimeOfDay = (3, 0)
    keep_for: Annotated[Duration, Field(ge=60)] = 7 * 86400.0
    keep_versions: Annotated[int, Field(ge=1, le=1000)] = 50
    max_value: Annotated[Size, Field(ge=1024, le=16 * 1024 * 1024)] = 1024 * 1024
    app_breaker: Duration = 60.0
    hold_deletes: bool = True
    stranded_after: Annotated[Duration, Field(gt=0)] = 1800.0
    rescue: Rescue | None = None
    job_metrics: JobFields | None = JobFields()
    api_key: Annotated[Secret, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _key_has_one_hole(self) -> Mirror:
        head, hole, tail = self.key.partition("{job_id}")
        if not hole or "{job_id}" in tail or not head:
            raise ValueError(
                f"key: expected a name with {{job_id}} once, as in app:job:{{job_id}}, "
                f"found {self.key!r}"
            )
        return self


#: What a job is doing while the worker calls a service: stages of the current document, statuses of
#: the older one. `processing` is a job that works without being in any stage, as downloads do.
_CALLED_IN = {
    "youtube-search": ("processing", "fetching_shorts", "downloading_shorts"),
    "video-downloader": ("processing", "fetching_shorts", "downloading_shorts"),
    "audio-transcriber": ("generate_subtitles", "generating_subtitles"),
}


class Trace(Model):
    """A record of what happened, for `reliability-proxy trace ID`. Every error, every slow exchange
    and what creates or deletes a job is kept, and a sample of the rest."""

    sqlite: Path
    """The database file, relative to the current directory; made if absent."""
    keep_for: Annotated[Duration, Field(ge=60)] = 7 * 86400.0
    """How long an event is kept."""
    max_size: Annotated[Size, Field(ge=1024 * 1024)] = 256 * 1024 * 1024
    """Largest size of the file; beyond it the oldest events go."""
    sample: Share = 0.01
    """Share kept of the exchanges that nothing else speaks for."""
    slow: Annotated[Duration, Field(gt=0)] = 2.0
    """An exchange that takes longer is slow, and kept."""
    polls_every: Annotated[Duration, Field(ge=0)] = 10.0
    """Of good reads of one job, and of good calls on one egress route, one is kept in this time."""
    max_rate: Annotated[int, Field(ge=1)] = 10
    """Exchanges kept a second of one route; ten times as many in a burst."""
    stuck_after: Annotated[Duration, Field(gt=0)] = 300.0
    """A job that has not changed for so long is suspected to be stuck."""
    called_in: dict[Name, tuple[Annotated[str, Field(max_length=64)], ...]] = _CALLED_IN
    """For each upstream that workers call: the stages and statuses of a job that does so."""


class Admin(Model):
    """The operator's door. Off loopback only with a token. On loopback `Host` is checked: a page on
    the web may point a name of its own at 127.0.0.1."""

    bind: Bind = units.Bind("127.0.0.1", 9901)
    """Where operators and `reliability-proxy jobs` connect."""
    token: Annotated[Secret, Field(min_length=1)] | None = None
    """Bearer token; needed off loopback."""
    hosts: tuple[str, ...] = ()
    """Names that `Host` may have besides addresses and `localhost`, while bound to loopback."""


class Metrics(Model):
    """A read-only door for Prometheus and probes: /metrics, /livez, /readyz."""

    bind: Bind
    """Where Prometheus and probes connect."""


class Logging(Model):
    """One JSON object per line, on `stdout` or in a file."""

    level: Level = "INFO"
    """The least severe level written."""
    output: Annotated[str, Field(min_length=1)] = "stdout"
    """`stdout`, or a file, relative to the current directory."""


class Config(Model):
    """The whole file."""

    listeners: Annotated[dict[Name, Listener], Field(min_length=1)]
    """Addresses that callers connect to, by name."""
    upstreams: Annotated[dict[Name, Upstream], Field(min_length=1)]
    """Services behind the proxy, by name."""
    redis: Redis | None = None
    """Where breaker state and jobs live; absent: local breakers, no mirror."""
    mirrors: dict[Name, Mirror] = {}
    """Families of job keys kept in SQLite as well, by name."""
    trace: Trace | None = None
    """A record of what happened."""
    admin: Admin = Admin()
    """The operator's door."""
    metrics: Metrics | None = None
    """A read-only door for Prometheus and probes."""
    statsd: Statsd | None = None
    """A listener for metrics that only the app knows."""
    app_metrics: AppMetrics | None = None
    """The app's own metrics page, shown as part of ours."""
    resources: Resources | None = None
    """Disk, temporary files and memory of the app."""
    logging: Logging = Logging()
    """The JSON log."""
    drain_timeout: Duration = 30.0
    """After SIGTERM, how long requests in flight may take."""
