"""The whole config file: every key, its type, its default and the reason for it.

The large sections have files of their own; the small ones are here. The models are frozen and
complete, so the code that compiles a config never has to check whether a key was given. Durations
are seconds (float), sizes bytes (int), shares 0..1. The text under a key is its description in the
JSON Schema. `model_dump(mode="json")` returns what a person would write, with secrets masked. The
loader passes every scalar as text, so each type must accept text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from proxy.config import units
from proxy.config.listeners import Listener
from proxy.config.mirrors import Mirror
from proxy.config.telemetry import AppMetrics, Resources, Statsd, Telemetry
from proxy.config.upstreams import Upstream
from proxy.config.values import Bind, Duration, FilePath, Level, Model, Name, Secret, Share, Size
from proxy.core.redis.url import parse_redis_url


class RedisTls(Model):
    """TLS towards `rediss://` servers; `cert` and `key` where they want a client certificate."""

    ca: FilePath | None = None
    """PEM file of the authorities to trust; absent: those of the system."""
    cert: FilePath | None = None
    """PEM file with our certificate and its chain."""
    key: FilePath | None = None
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


#: The stages of a job in which the worker calls a service, or, in the older document, its statuses.
#: `processing` is a running job that is in no stage, such as a download.
_CALLED_IN = {
    "youtube-search": ("processing", "fetching_shorts", "downloading_shorts"),
    "video-downloader": ("processing", "fetching_shorts", "downloading_shorts"),
    "audio-transcriber": ("generate_subtitles", "generating_subtitles"),
}


class Trace(Model):
    """A record of what happened, for `reliability-proxy trace ID`. Every error, every slow exchange
    and what creates or deletes a job is kept, and a sample of the rest."""

    sqlite: FilePath
    """The database file, relative to the current directory; made if absent."""
    keep_for: Annotated[Duration, Field(ge=60)] = 7 * 86400.0
    """How long an event is kept."""
    max_size: Annotated[Size, Field(ge=1024 * 1024)] = 256 * 1024 * 1024
    """Largest size of the file; beyond it the oldest events of the most frequent kind are
    deleted."""
    sample: Share = 0.01
    """Share of all other exchanges that is kept."""
    slow: Annotated[Duration, Field(gt=0)] = 2.0
    """An exchange that takes longer is slow and therefore kept."""
    polls_every: Annotated[Duration, Field(ge=0)] = 10.0
    """Of successful reads of one job, or calls on one egress route, one per this time is kept."""
    stuck_after: Annotated[Duration, Field(gt=0)] = 300.0
    """A job that has not changed for this long is suspected to be stuck."""
    called_in: dict[Name, tuple[Annotated[str, Field(max_length=64)], ...]] = _CALLED_IN
    """For each upstream that workers call: the stages and statuses of a job that does so."""


class Admin(Model):
    """The admin API. Off loopback it needs a token. On loopback `Host` is checked, because a web
    page may point a name of its own at 127.0.0.1."""

    bind: Bind = units.Bind("127.0.0.1", 9901)
    """Where operators and `reliability-proxy jobs` connect."""
    token: Annotated[Secret, Field(min_length=1)] | None = None
    """Bearer token; needed off loopback."""
    hosts: tuple[str, ...] = ()
    """Names that `Host` may have besides addresses and `localhost`, while bound to loopback."""


class Metrics(Model):
    """A read-only port for Prometheus and probes: /metrics, /livez, /readyz."""

    bind: Bind
    """Where Prometheus and probes connect."""


class Logging(Model):
    """One JSON object per line, on `stdout` or in a file."""

    level: Level = "INFO"
    """The least severe level written."""
    output: Annotated[str, Field(min_length=1)] = "stdout"
    """`stdout`, or a file, relative to the current directory."""


class ProcessLimits(Model):
    """What the process as a whole may use."""

    memory: Annotated[Size, Field(ge=16 * 1024 * 1024)] | None = None
    """What all buffers together may hold; near it, connections that hold most are slowed, then
    ended. Absent: half of what the cgroup allows, else 256 MiB."""


class Spool(Model):
    """Where bodies that are too large for memory are kept: unnamed files that vanish with the
    process. 2 GiB: forty uploads of 50 MiB, thirty-two of them from one client."""

    dir: FilePath = Path("/tmp")  # noqa: S108 (the files have no names)
    """A directory for unnamed files; on a `tmpfs` they take up memory."""
    max_size: Annotated[Size, Field(ge=1024 * 1024)] = 2 * 1024 * 1024 * 1024
    """What all of them together may hold. Beyond it bodies are streamed."""


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
    """The admin API."""
    metrics: Metrics | None = None
    """A read-only port for Prometheus and probes."""
    statsd: Statsd | None = None
    """A listener for metrics that only the app knows."""
    app_metrics: AppMetrics | None = None
    """The app's own metrics page, shown as part of ours."""
    resources: Resources | None = None
    """Disk, temporary files and memory of the app."""
    telemetry: Telemetry = Telemetry()
    """What goes to an OpenTelemetry collector."""
    logging: Logging = Logging()
    """The JSON log."""
    limits: ProcessLimits = ProcessLimits()
    """What the process as a whole may use."""
    spool: Spool = Spool()
    """Where large bodies are kept."""
    drain_timeout: Duration = 30.0
    """After SIGTERM, how long requests in flight may take."""
