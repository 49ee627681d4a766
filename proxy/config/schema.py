"""Every key of the config file, its type, its default and the reason for it.

The models are frozen and complete: what compiles a config never asks whether a key was given.
Durations are seconds (float), sizes bytes (int), shares 0..1.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    WithJsonSchema,
    model_validator,
)

from proxy.config import units

Duration = Annotated[
    float,
    BeforeValidator(units.parse_duration),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?\s*(ms|s|m|h|d)$"}),
]
Size = Annotated[
    int,
    BeforeValidator(units.parse_size),
    WithJsonSchema({"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?\s*([KMG]i?)?B?$"}),
]
Share = Annotated[
    float,
    BeforeValidator(units.parse_ratio),
    WithJsonSchema({"type": ["string", "number"]}),
]
TimeOfDay = Annotated[
    tuple[int, int],
    BeforeValidator(units.parse_time_of_day),
    WithJsonSchema({"type": "string", "pattern": r"^([01]\d|2[0-3]):[0-5]\d$"}),
]
Bind = Annotated[units.Bind, BeforeValidator(units.parse_bind), WithJsonSchema({"type": "string"})]
Target = Annotated[
    units.TargetAddress, BeforeValidator(units.parse_target), WithJsonSchema({"type": "string"})
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


class Model(BaseModel):
    """Frozen; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, validate_default=False
    )


# --- listeners and routes -----------------------------------------------------------------------


class ListenerTls(Model):
    """TLS on a listener: PEM files. The certificate file holds the chain, leaf first."""

    cert: Path
    key: Path


class ClientLimits(Model):
    """What one client may send. Defaults are those of nginx and aiohttp, where they agree."""

    request_line: Annotated[Size, Field(ge=64)] = 8 * 1024
    header: Annotated[Size, Field(ge=256)] = 32 * 1024
    header_count: Annotated[int, Field(ge=1)] = 128
    connections: Annotated[int, Field(ge=1)] = 10_000


class ClientTimeouts(Model):
    """How long a client may take: for a whole header section, between two pieces of a body (in
    either direction), and between two requests on a kept-alive connection."""

    header: Annotated[Duration, Field(gt=0)] = 10.0
    body: Annotated[Duration, Field(gt=0)] = 30.0
    idle: Annotated[Duration, Field(gt=0)] = 75.0


class Upload(Model):
    """What an upload must be (issue: upload validation)."""

    field: str | None = "audio_file"
    max_size: Size = 50 * 1024 * 1024
    max_duration: Duration | None = 600.0
    types: tuple[str, ...] = ("audio/mpeg", "audio/wav", "audio/mp4", "audio/ogg")
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

    @model_validator(mode="after")
    def _one_role(self) -> JobRole:
        roles = (self.creates, self.reads is not None, self.deletes is not None, self.lists)
        if sum(roles) != 1:
            raise ValueError(
                f"expected exactly one of creates, reads, deletes and lists, found {sum(roles)}"
            )
        return self


class Route(Model):
    """One line of the routing table; `name` is also the metric label `endpoint`."""

    name: Name
    path: str
    upstream: Name
    methods: tuple[str, ...] | None = None
    upload: Upload | None = None
    job: JobRole | None = None


class Listener(Model):
    """One address that callers connect to."""

    bind: Bind
    direction: Literal["ingress", "egress"] = "ingress"
    routes: Annotated[tuple[Route, ...], Field(min_length=1)]
    tls: ListenerTls | None = None
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    limits: ClientLimits = ClientLimits()
    timeouts: ClientTimeouts = ClientTimeouts()
    reuse_port: bool = False


# --- upstreams ----------------------------------------------------------------------------------


class UpstreamTimeouts(Model):
    """`connect`: to an open connection, TLS included. `response`: request sent to response head.
    `idle`: between two pieces of a body, in either direction. `tunnel`: silence in both directions
    after an upgrade (WebSocket); 1 h as HAProxy's documentation advises."""

    connect: Annotated[Duration, Field(gt=0)] = 2.0
    response: Annotated[Duration, Field(gt=0)] = 60.0
    idle: Annotated[Duration, Field(gt=0)] = 60.0
    tunnel: Annotated[Duration, Field(gt=0)] = 3600.0


class Pool(Model):
    """Connections to each target. `keepalive` must be shorter than the upstream's own: uvicorn
    closes after 5 s, hence 4 s."""

    max_connections: Annotated[int, Field(ge=1)] = 64
    keepalive: Duration = 4.0
    queue: Annotated[int, Field(ge=0)] = 100
    queue_timeout: Annotated[Duration, Field(gt=0)] = 10.0


class UpstreamTls(Model):
    """TLS towards `https://` targets. Verification is on; `server_name` replaces the target's host
    in SNI and in verification."""

    ca: Path | None = None
    verify: bool = True
    server_name: str | None = None


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
    timeouts: UpstreamTimeouts = UpstreamTimeouts()
    pool: Pool = Pool()
    connect_patience: Duration = 0.0
    host: Literal["preserve", "upstream"] = "preserve"
    tls: UpstreamTls = UpstreamTls()
    breaker: Breaker | None = None
    retry: Retry | None = None


# --- the rest -----------------------------------------------------------------------------------


class Redis(Model):
    """Where shared state lives. Absent: breakers are local to the process, the mirror is off."""

    url: SecretStr


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
    """The operator's door. Off loopback only with a token."""

    bind: Bind = units.Bind("127.0.0.1", 9901)
    token: SecretStr | None = None


class Metrics(Model):
    """A read-only door for Prometheus and probes: /metrics, /livez, /readyz."""

    bind: Bind


class Logging(Model):
    """One JSON object per line, on `stdout` or in a file."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    output: str = "stdout"


class Config(Model):
    """The whole file."""

    listeners: Annotated[dict[Name, Listener], Field(min_length=1)]
    upstreams: Annotated[dict[Name, Upstream], Field(min_length=1)]
    redis: Redis | None = None
    mirrors: dict[Name, Mirror] = {}
    admin: Admin = Admin()
    metrics: Metrics | None = None
    logging: Logging = Logging()
    drain_timeout: Duration = 30.0
