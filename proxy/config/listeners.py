"""The config's `listeners`: addresses that callers connect to, their routes, and what a route can
be asked to do."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Literal

from pydantic import Field, model_validator

from proxy.config.extensions import Use
from proxy.config.values import (
    ByteRate,
    Duration,
    FilePath,
    HeaderName,
    ListenerBind,
    Method,
    Model,
    Name,
    PathPattern,
    Rate,
    Size,
)


class ListenerTls(Model):
    """TLS on a listener: PEM files. The certificate file holds the chain, leaf first."""

    cert: FilePath
    """PEM file, relative to the current directory: the certificate and its chain."""
    key: FilePath
    """PEM file with the certificate's private key, without a passphrase."""


class PerClient(Model):
    """Limits for each client, so that no client can stop the service for all. A client is an
    address (of IPv6 the /64), or the one that a trusted proxy names in `X-Forwarded-For`; callers
    over a unix socket are not limited. Beyond a limit 429 `too_many_requests`. An absent limit is
    none."""

    connections: Annotated[int, Field(ge=1)] | None = None
    """Most connections at a time. Trusted proxies may have more."""
    requests: Rate | None = None
    """Most requests: `50/s`, `600/m`, `1000/h`."""
    burst: Annotated[int, Field(ge=1)] | None = None
    """Most requests at once; absent: as many as `requests` names."""
    uploads: Annotated[int, Field(ge=1)] | None = None
    """Most requests at a time on routes with `upload`."""

    @model_validator(mode="after")
    def _burst_of_something(self) -> PerClient:
        if self.burst is not None and self.requests is None:
            raise ValueError("expected requests beside burst, found none")
        return self


class ClientLimits(Model):
    """What one client may send. Defaults are those of nginx and aiohttp, where they agree."""

    request_line: Annotated[Size, Field(ge=64)] = 8 * 1024
    """Longest request line; beyond it 414."""
    header: Annotated[Size, Field(ge=256)] = 32 * 1024
    """Largest header section; beyond it, or with more than 128 fields, 431."""
    body: Size | None = 100 * 1024 * 1024
    """Longest request body; beyond it 413 `body_too_large`. `null`: any. Routes with `upload` in
    force have bounds of their own."""
    connections: Annotated[int, Field(ge=1)] = 10_000
    """Most client connections at a time; the oldest without a request gives way, else 503."""
    per_client: PerClient | None = None
    """Limits for each client."""


class RouteLimits(Model):
    """What one route takes. `null` sets no limit."""

    body: Size | None = 100 * 1024 * 1024
    """Longest request body; beyond it 413."""


class FieldRules(Model):
    """Changes to the header fields of a message; values are fixed texts."""

    set: dict[HeaderName, Annotated[str, Field(pattern=r"^[\t\x20-\x7e\x80-\xff]*$")]] = {}
    """Fields to set, each in place of all of that name."""
    remove: tuple[HeaderName, ...] = ()
    """Fields to remove."""


class RouteHeaders(Model):
    """Header fields that a route changes."""

    request: FieldRules = FieldRules()
    """Fields of requests, before they go to the upstream."""
    response: FieldRules = FieldRules()
    """Fields of responses, before they go to the client; `set` also applies to the proxy's own."""


class RouteTimeouts(Model):
    """Timeouts of one route, in place of the listener's and the upstream's. Absent: theirs."""

    body: Annotated[Duration, Field(gt=0)] | None = None
    """Between two pieces of a request or response body, to or from the client."""
    response: Annotated[Duration, Field(gt=0)] | None = None
    """From the request sent to the response head; then 504."""
    idle: Annotated[Duration, Field(gt=0)] | None = None
    """Between two pieces of a body, to or from the upstream."""
    tunnel: Annotated[Duration, Field(gt=0)] | None = None
    """Silence in both directions after an upgrade (WebSocket)."""


class ClientTimeouts(Model):
    """How long a client may take: for a whole header section, between two pieces of a body (in
    either direction), and between two requests on a kept-alive connection."""

    header: Annotated[Duration, Field(gt=0)] = 10.0
    """From the first byte of a request to the end of its header section; then 408."""
    body: Annotated[Duration, Field(gt=0)] = 30.0
    """Between two pieces of a request or response body."""
    idle: Annotated[Duration, Field(gt=0)] = 75.0
    """Between two requests on one connection, which is then closed."""
    min_rate: ByteRate | None = None
    """The least that a client must send of a head or body, or take of an answer, on average, once
    it has had ten seconds; time in which we wait for somebody else does not count. Slower: 408, or
    an answer cut short. Absent: any."""


FormField = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\[\]-]{1,100}$")]

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


AlsoType = Literal[
    "image/jpeg",
    "image/png",
    "image/gif",
    "image/webp",
    "image/avif",
    "image/heic",
    "application/pdf",
    "application/json",
    "application/x-subrip",
    "text/vtt",
    "text/plain",
]


class AlsoFile(Model):
    """A further file that a form may contain: its bytes must be of one of `types`, `max_size` at
    most, and it may occur up to `max_count` times. It is not decoded. 5 MiB: a cover."""

    field: FormField
    types: Annotated[tuple[AlsoType, ...], Field(min_length=1)]
    max_size: Annotated[Size, Field(ge=1, le=1024**3)] = 5 * 1024 * 1024
    max_count: Annotated[int, Field(ge=1, le=100)] = 1


class Upload(Model):
    """What an upload must be. `field` names the one file part of the form; `null` means that the
    request body is the file itself. `max_duration: null` sets no limit, but the file must still
    play from end to end. 50 MiB, ten minutes and the six types: the sprint document. A type stands
    for a family of formats (docs/reference/uploads.md), never for what a client or libmagic
    calls it."""

    field: FormField | None = "audio_file"
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
    also: Annotated[tuple[AlsoFile, ...], Field(max_length=20)] = ()
    """Files in other fields that are accepted with the audio; all others are refused."""
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


class Idempotency(Model):
    """One job per creation, however often it is sent (draft-ietf-httpapi-idempotency-key-header).

    `keep`: how long the first response to an `Idempotency-Key` is repeated; 24 h, as long as a job
    lives. `same_upload_within`: an identical upload of the same caller within this time is a
    repetition even without a key; 0 turns that off.
    """

    keep: Annotated[Duration, Field(ge=60, le=30 * 86400)] = 86400.0
    same_upload_within: Annotated[Duration, Field(ge=0, le=86400)] = 0.0


class StaticAnswer(Model):
    """An answer from the config instead of the upstream's."""

    status: Annotated[int, Field(ge=200, le=599)] = 200
    """The status."""
    headers: dict[
        HeaderName,
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
    """`/exact`, `/jobs/{job_id}` (one segment) or `/{rest:*}` (the rest, which may be empty)."""
    upstream: Name
    """The upstream that requests go to."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] | None = None
    """Upper-case methods; absent: every method."""
    upload: Upload | None = None
    """Check uploads before they reach the upstream."""
    job: JobRole | None = None
    """What this route does with the jobs of a mirror."""
    repeatable: bool = False
    """Its requests may be repeated whatever their method, such as queries sent by POST. They are
    retried like a GET."""
    idempotency: Idempotency | None = None
    """One job per creation, however often it is sent."""
    fallback: Fallback | None = None
    """What to answer while the upstream cannot."""
    limits: RouteLimits | None = None
    """What this route takes, instead of the listener's limit."""
    timeouts: RouteTimeouts = RouteTimeouts()
    """How long things may take on this route, instead of the listener's and upstream's times."""
    headers: RouteHeaders | None = None
    """Header fields to set and to remove."""
    use: tuple[Use, ...] = ()
    """Custom stages: names of installed ones or `MODULE:CLASS`, alone or with settings."""
    trace: bool = True
    """Whether exchanges on this route may be kept in the trace."""

    @property
    def guards(self) -> bool:
        """Whether the route checks what others do not: no spelling of its path gets around it."""
        return bool(self.upload or self.job or self.limits or self.use)


class Listener(Model):
    """One address that callers connect to."""

    bind: ListenerBind
    """`127.0.0.1:8000`, `[::1]:8000`, `:8000` for every address, or `fd:NAME`: a socket given by
    systemd."""
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
