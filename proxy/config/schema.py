"""Every key of the config file, its type, its default and the reason for it.

The models are frozen and complete: what compiles a config never asks whether a key was given.
Durations are seconds (float), sizes bytes (int), shares 0..1. The text under a key is its
description in the JSON Schema; `model_dump(mode="json")` gives what a person would write, with
secrets masked. The loader hands every scalar over as text, so each type here must read text.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    WithJsonSchema,
    model_validator,
)

from proxy.config import patterns, units

# In the JSON Schema each of these also admits a `${NAME}` reference, see json_schema.py.
Duration = Annotated[
    float,
    BeforeValidator(units.parse_duration),
    PlainSerializer(units.format_duration, str, when_used="json"),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^([0-9.]+\s*(ms|s|m|h|d)|0)$"}),
]
Size = Annotated[
    int,
    BeforeValidator(units.parse_size),
    PlainSerializer(units.format_size, str, when_used="json"),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^[0-9.]+\s*([KMG]i?)?B?$"}),
]
Share = Annotated[
    float,
    BeforeValidator(units.parse_ratio),
    PlainSerializer(units.format_ratio, str, when_used="json"),
    WithJsonSchema({"type": ["string", "number"], "pattern": r"^[0-9.]+\s*%?$"}),
]
TimeOfDay = Annotated[
    tuple[int, int],
    BeforeValidator(units.parse_time_of_day),
    PlainSerializer(units.format_time_of_day, str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^([01][0-9]|2[0-3]):[0-5][0-9]$"}),
]
Bind = Annotated[
    units.Bind,
    BeforeValidator(units.parse_bind),
    PlainSerializer(str, str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r":[0-9]{1,5}$"}),
]
Target = Annotated[
    units.TargetAddress,
    BeforeValidator(units.parse_target),
    PlainSerializer(str, str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^([Hh][Tt][Tt][Pp][Ss]?://|unix:/)"}),
]
Secret = Annotated[
    SecretStr,
    PlainSerializer(lambda secret: units.mask(secret.get_secret_value()), str, when_used="json"),
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
Method = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9!#$%&'*+.^_`|~-]{0,31}$")]


def _check_pattern(path: str) -> str:
    patterns.parse_pattern(path)
    return path


PathPattern = Annotated[
    str, AfterValidator(_check_pattern), WithJsonSchema({"type": "string", "pattern": "^/"})
]
Level = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    BeforeValidator(lambda level: level.upper() if isinstance(level, str) else level),
]


class Model(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        arbitrary_types_allowed=True,
        validate_default=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


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
    for a family of formats (docs/uploads.md), never for what a client or libmagic calls it."""

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
    open_for: Annotated[Duration, Field(gt=0)] = 60.0
    half_open_max_calls: Annotated[int, Field(ge=1)] = 3


class Retry(Model):
    """When to try again. `budget` is the share of extra load that retries may cause."""

    attempts: Annotated[int, Field(ge=1, le=10)] = 3
    on: tuple[
        Literal["connect", "reset", "timeout"] | Annotated[int, Field(ge=400, le=599)], ...
    ] = (
        "connect",
        502,
        503,
        504,
    )
    backoff: Duration = 0.2
    max_backoff: Duration = 5.0
    budget: Share = 0.2


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


# --- the rest -----------------------------------------------------------------------------------


class Redis(Model):
    """Where shared state lives. Absent: breakers are local to the process, the mirror is off."""

    url: Secret


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


class Mirror(Model):
    """One family of job keys, kept in SQLite as well.

    `key` holds `{job_id}` once, behind a fixed beginning. `keep_for`: how long an expired job and a
    tombstone stay known. `max_value`: longer values are left to Redis alone. `app_breaker`: how
    long the app's own Redis breaker may stay open after Redis is back (60 s, read in the app).
    `hold_deletes`: a key that a worker writes again after a DELETE is removed again.
    `stranded_after`: an unfinished job without a change for this long is reported.
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

    @model_validator(mode="after")
    def _key_has_one_hole(self) -> Mirror:
        head, hole, tail = self.key.partition("{job_id}")
        if not hole or "{job_id}" in tail or not head:
            raise ValueError(
                f"key: expected a name with {{job_id}} once, as in app:job:{{job_id}}, "
                f"found {self.key!r}"
            )
        return self


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
    admin: Admin = Admin()
    """The operator's door."""
    metrics: Metrics | None = None
    """A read-only door for Prometheus and probes."""
    logging: Logging = Logging()
    """The JSON log."""
    drain_timeout: Duration = 30.0
    """After SIGTERM, how long requests in flight may take."""
