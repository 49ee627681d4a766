"""The config's sections about the app's metrics: statsd, the app's own page, resources; and
spans."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from proxy.config.values import (
    Bind,
    Duration,
    FilePath,
    HeaderName,
    Model,
    Name,
    Secret,
    Share,
)

MetricName = Annotated[str, Field(pattern=r"^[A-Za-z_:][A-Za-z0-9_:]{0,127}$")]
LabelName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
StatsdName = Annotated[
    str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,127}(\.\{[A-Za-z][A-Za-z0-9_]{0,63}\})?$")
]
LabelText = Annotated[str, Field(pattern=r"^[A-Za-z0-9_./:@+ -]{1,64}$")]


class StatsdLabel(Model):
    """Which values a tag may give to a label."""

    values: tuple[LabelText, ...] = ()
    """The only values; any other counts as `other`. Absent: the first 32 that arrive."""
    default: LabelText = "unknown"
    """The value where the tag is missing."""


class StatsdMetric(Model):
    """One metric family that statsd clients fill."""

    type: Literal["counter", "gauge", "histogram"]
    """`counter` takes `c`, `gauge` takes `g`, `histogram` takes `ms`, `h` and `d`."""
    help: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    """What it measures, for people."""
    names: tuple[StatsdName, ...] = ()
    """Names that clients use; `video.{operation}` takes a label from the last part. Absent: the
    family's own name."""
    labels: dict[LabelName, StatsdLabel] = {}
    """Labels, by the tag that fills them. Other tags are ignored."""
    buckets: Annotated[tuple[float, ...], Field(min_length=1, max_length=50)] = (
        *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
    )
    """Upper bounds of a histogram, ascending, in the family's unit."""
    unit: Literal["milliseconds", "seconds", "percent", "none"] | None = None
    """What values are sent in; milliseconds become seconds, percents shares. Absent: milliseconds
    for `ms`, everything else as it is."""
    signed: Literal["delta", "value"] = "delta"
    """Whether a gauge's `+2` and `-2` change it (statsd) or are its value (DogStatsD)."""

    @model_validator(mode="after")
    def _sound(self) -> StatsdMetric:
        finite = all(abs(bound) < 1e15 for bound in self.buckets)
        if not finite or any(low >= high for low, high in pairwise(self.buckets)):
            raise ValueError("buckets: expected finite numbers that ascend, found others")
        if taken := {"le", "quantile"} & self.labels.keys():
            raise ValueError(f"labels: expected names free to use, found {min(taken)!r}")
        return self


class Statsd(Model):
    """A listener for statsd and DogStatsD packets. Only declared names are counted."""

    bind: Bind | None = None
    """UDP address; absent: no UDP."""
    socket: FilePath | None = None
    """Path of a unix datagram socket; absent: none."""
    socket_mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = "0660"
    """Its permissions, octal."""
    allow_remote: bool = False
    """Needed for a `bind` off loopback: senders of UDP cannot be told from one another."""
    metrics: dict[MetricName, StatsdMetric] = {}
    """Families beside those that only the app knows (docs/reference/metrics.md); one of the same
    name replaces it."""

    @model_validator(mode="after")
    def _somewhere(self) -> Statsd:
        if self.bind is None and self.socket is None:
            raise ValueError("expected bind or socket, found neither")
        if self.socket is not None and len(str(self.socket).encode()) > 100:
            raise ValueError("socket: expected a path of at most 100 bytes, found a longer one")
        return self

    @property
    def families(self) -> dict[str, StatsdMetric]:
        """Every declared family by name."""
        return {**APP_FAMILIES, **self.metrics}


#: What the sprint document wants measured and only the app's worker can know.
APP_FAMILIES = {
    "ocr_frames_processed_total": StatsdMetric(
        type="counter",
        help="Video frames that were searched for text",
        names=("ocr.frames_processed", "ocr_frames_processed_total"),
    ),
    "ocr_processing_duration_seconds": StatsdMetric(
        type="histogram",
        help="Time to search one video, or one frame, for text",
        names=("ocr.processing", "ocr_processing_duration_seconds"),
        buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
    ),
    "ocr_confidence_score": StatsdMetric(
        type="histogram",
        help="How sure the text search was, 0 to 1",
        names=("ocr.confidence", "ocr_confidence_score"),
        buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0),
    ),
    "video_processing_duration_seconds": StatsdMetric(
        type="histogram",
        help="Time that an operation on video took (ffmpeg)",
        names=(
            *("video.processing", "video.processing.{operation}"),
            "video_processing_duration_seconds",
        ),
        labels={"operation": StatsdLabel()},
        buckets=(0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0),
    ),
}


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts[1]
        sound = sound and (parts.port is None or parts.port > 0)
    except ValueError:
        sound = False
    if not sound or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"expected http://HOST:PORT/PATH without a user, found {url[:80]!r}")
    return url


class AppMetrics(Model):
    """Show the app's own metrics page as part of ours. It is fetched on its own schedule,
    never while Prometheus waits."""

    url: Annotated[str, AfterValidator(_check_url)]
    """The page, in the Prometheus text format."""
    headers: dict[HeaderName, Secret | None] = {}
    """Sent with the request, for example `X-API-Key`, unless empty; never shown."""
    every: Annotated[Duration, Field(ge=1)] = 30.0
    """From one fetch to the next. After four that failed, the last page is no longer shown."""
    timeout: Annotated[Duration, Field(gt=0, le=60)] = 5.0
    """For the whole answer."""
    prefix: Annotated[str, Field(pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,31})?$")] = ""
    """Before every name of the app's. Families whose names are taken are left out and counted."""

    @model_validator(mode="after")
    def _sendable(self) -> AppMetrics:
        for name, value in self.headers.items():
            sent = "" if value is None else value.get_secret_value()
            if not sent.isprintable() or not sent.isascii():
                raise ValueError(f"headers: expected printable ASCII, found something else: {name}")
        return self


class TempFiles(Model):
    """Files that should not stay."""

    directories: Annotated[tuple[FilePath, ...], Field(min_length=1)]
    """Where they are made; all of them together are one number."""


class Resources(Model):
    """Disk, temporary files and memory of the app, measured by separate threads."""

    every: Annotated[Duration, Field(ge=1)] = 15.0
    """From the end of one measurement to the next."""
    directories: dict[Name, FilePath] = {}
    """Directories whose usage and free space are reported, by the label `directory`."""
    temp: TempFiles | None = None
    """Files that should not stay, counted."""
    processes: dict[Name, Annotated[tuple[str, ...], Field(min_length=1)]] = {
        "ffmpeg": ("ffmpeg", "ffprobe"),
        "celery": ("celery", "celeryd"),
        "redis": ("redis-server",),
    }
    """Processes by component: names of programs, as in `ps`; `proxy` and `total` are ours."""


def _check_endpoint(text: str) -> str:
    parts = urlsplit(text)
    try:
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(
            f"expected a collector's address, as in http://collector:4318, found {text[:200]!r}"
        )
    return text


class Otlp(Model):
    """Spans of exchanges, upload checks and jobs, sent by OTLP over HTTP. Needs the extra
    `otel`."""

    endpoint: Annotated[str, AfterValidator(_check_endpoint)] | None = None
    """The collector's address, as in http://collector:4318. Without a path, `/v1/traces` is
    added. Absent: no spans are made."""
    headers: dict[HeaderName, Secret] = {}
    """Fields sent along, for collectors that want a key."""
    sample: Share = 0.1
    """Share of the traces begun here that is sent; for others the caller's decision holds."""
    service: Annotated[str, Field(min_length=1, max_length=100)] = "reliability-proxy"
    """`service.name` of the spans."""


class Telemetry(Model):
    """What goes to an OpenTelemetry collector."""

    otlp: Otlp | None = None
    """Spans by OTLP over HTTP; absent: none are made."""
