"""What `check` says about `statsd`, `app_metrics` and `resources`."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config.load import load_config
from proxy.config.metric_names import claims
from proxy.config.problems import ConfigError
from proxy.config.redact import redacted
from proxy.config.schema import Config

MINIMAL = """\
listeners: {in: {bind: "127.0.0.1:8000", routes: [{name: all, path: "/{rest:*}", upstream: app}]}}
upstreams: {app: {targets: ["http://127.0.0.1:8005"]}}
"""


STATSD = "statsd: {socket: /tmp/s, metrics: {%s}}"


def read(tmp_path: Path, text: str, **environ: str) -> Config:
    """Load a minimal config with `text` behind it."""
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL + text)
    return load_config(file, environ)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("statsd: {}", "3: statsd: expected bind or socket, found neither"),
        ("statsd: {bind: 8125}", "statsd.bind: expected an IP address and port"),
        (
            'statsd: {bind: "0.0.0.0:8125"}',
            "statsd.bind: expected a loopback address, or allow_remote: true, found 0.0.0.0",
        ),
        (
            f"statsd: {{socket: /tmp/{'x' * 100}}}",
            "statsd.socket: expected a path of at most 100 bytes",
        ),
        (
            "statsd: {socket: /tmp/s, socket_mode: rw}",
            "statsd.socket_mode: expected octal permissions such as 0660, found 'rw'",
        ),
        (
            STATSD % "x: {type: timer}",
            "x.type: expected 'counter', 'gauge' or 'histogram', found 'timer'",
        ),
        (STATSD % "x: {type: counter}", "x: expected a name that ends in _total for a counter"),
        (
            STATSD % "x_total: {type: gauge}",
            "expected a name that ends in _total for a counter, and only",
        ),
        (
            STATSD % "x_bucket: {type: gauge}",
            "expected a name without a suffix of Prometheus's own",
        ),
        (
            STATSD % "proxy_x: {type: gauge}",
            "expected a name of your own, found 'proxy_x', which the proxy fills itself",
        ),
        (STATSD % "pipeline_jobs_active: {type: gauge}", "which the proxy fills itself"),
        (
            STATSD % "a-b: {type: gauge}",
            "expected a metric name of letters, digits, _ and :, found",
        ),
        (
            STATSD % "x: {type: gauge}, x_total: {type: counter}",
            "x_total: expected names apart from those of x, found x in both",
        ),
        (
            STATSD % "x: {type: histogram}, x_sum: {type: gauge}",
            "expected names apart from those of x, found x_sum in both",
        ),
        (
            STATSD % "x: {type: gauge, names: [a]}, y: {type: gauge, names: [a]}",
            "y.names: expected names used once, found 'a', also in x",
        ),
        (STATSD % "x: {type: gauge, names: [ocr.confidence]}", "also in ocr_confidence_score"),
        (
            STATSD % "x: {type: gauge, names: ['a b']}",
            "x.names[0]: expected a statsd name, such as video.processing",
        ),
        (
            STATSD % "x: {type: gauge, names: ['a.{b}']}",
            "x.names[0]: expected one of the labels (there is none), found 'b'",
        ),
        (
            STATSD % "x: {type: gauge, labels: {a-b: {}}}",
            "expected a label name of letters, digits and _",
        ),
        (
            STATSD % "x: {type: histogram, labels: {le: {}}}",
            "x.labels: expected names free to use, found 'le'",
        ),
        (
            STATSD % "x: {type: gauge, labels: {a: {values: ['{}']}}}",
            "expected a label value of at most 64 ordinary characters",
        ),
        (
            STATSD % "x: {type: histogram, buckets: [2, 1]}",
            "x.buckets: expected finite numbers that ascend, found others",
        ),
        (
            STATSD % "x: {type: histogram, buckets: [1, inf]}",
            "x.buckets: expected finite numbers that ascend",
        ),
        ("app_metrics: {}", "app_metrics.url: expected this key, found nothing"),
        (
            "app_metrics: {url: 'ftp://x/metrics'}",
            "app_metrics.url: expected http://HOST:PORT/PATH without a user",
        ),
        (
            "app_metrics: {url: 'http://me:pw@x/metrics'}",
            "app_metrics.url: expected http://HOST:PORT/PATH without a user",
        ),
        ("app_metrics: {url: 'http://x:0/'}", "app_metrics.url: expected http://HOST:PORT/PATH"),
        (
            "app_metrics: {url: 'http://x:99999/'}",
            "app_metrics.url: expected http://HOST:PORT/PATH",
        ),
        ("app_metrics: {url: 'http://[::1/'}", "app_metrics.url: expected http://HOST:PORT/PATH"),
        ("app_metrics: {url: 'http://x/', every: 500ms}", "app_metrics.every: expected at least 1"),
        (
            'app_metrics: {url: "http://x/", headers: {X-Key: "a\\r\\nb"}}',
            "app_metrics.headers: expected printable ASCII",
        ),
        ("app_metrics: {url: 'http://x/', prefix: 'a-'}", "app_metrics.prefix: expected"),
        (
            "resources: {processes: {total: [x]}}",
            "processes.total: expected a name of your own, found 'total', which is ours",
        ),
        ("resources: {directories: {'a b': /tmp}}", "expected a name of letters, digits, - and _"),
        ("resources: {processes: {x: []}}", "expected at least 1 of them"),
        ("resources: {temp: {}}", "resources.temp.directories: expected this key"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Each mistake is reported at its key, in words; nothing else is."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    problems = [str(problem) for problem in caught.value.problems]
    assert len(problems) == 1, problems
    assert message in problems[0]


def test_a_default_can_be_replaced(tmp_path: Path) -> None:
    """A family of the config takes the place of the default of its name."""
    text = "statsd: {bind: '127.0.0.1:0', metrics: {ocr_confidence_score: {type: gauge}}}"
    statsd = read(tmp_path, text).statsd
    assert statsd is not None
    assert statsd.families["ocr_confidence_score"].type == "gauge"
    assert len(statsd.families) == 4


def test_remote_senders_need_a_word(tmp_path: Path) -> None:
    """`allow_remote`, which the environment may say."""
    text = "statsd: {bind: ':8125', allow_remote: ${REMOTE:-false}}"
    statsd = read(tmp_path, text, REMOTE="true").statsd
    assert statsd is not None
    assert statsd.allow_remote


def test_keys_of_the_app_are_not_shown(tmp_path: Path) -> None:
    """Neither in a problem nor in the admin API's config; an empty one is not sent."""
    text = "app_metrics: {url: 'http://x/', headers: {X-API-Key: s3cret, X-Empty: ${NONE:-}}}"
    config = read(tmp_path, text)
    assert "s3cret" not in str(redacted(config))
    assert config.app_metrics is not None
    assert config.app_metrics.headers["X-Empty"] is None
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text.replace("s3cret", '"s3cr\\net"'))
    assert "s3cr" not in "".join(map(str, caught.value.problems))


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("gauge", {"x"}),
        ("unknown", {"x"}),
        ("counter", {"x", "x_total", "x_created"}),
        ("summary", {"x", "x_count", "x_sum", "x_created"}),
        ("histogram", {"x", "x_bucket", "x_count", "x_sum", "x_created"}),
        ("info", {"x", "x_info"}),
    ],
)
def test_the_names_that_a_family_takes(kind: str, names: set[str]) -> None:
    """As OpenMetrics reserves them."""
    assert claims("x", kind) == names
