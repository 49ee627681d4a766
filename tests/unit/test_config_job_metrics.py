"""`mirrors.NAME.job_metrics` in the config: what is taken, and what is said about what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config.load import load_config
from proxy.config.mirrors import JobFields
from proxy.config.problems import ConfigError

BEGINNING = """\
listeners:
  in:
    bind: 127.0.0.1:8000
    routes:
      - {name: all, path: "/{rest:*}", upstream: app}
upstreams:
  app:
    targets: [http://127.0.0.1:8005]
redis: {url: redis://127.0.0.1}
mirrors:
  m:
    key: "a:{job_id}"
    sqlite: jobs.db
"""


def fields(tmp_path: Path, text: str) -> JobFields | None:
    """The section as loaded; `text` is line 14 and on."""
    file = tmp_path / "c.yaml"
    file.write_text(BEGINNING + text)
    return load_config(file, {}).mirrors["m"].job_metrics


def test_on_by_default_and_off_by_null(tmp_path: Path) -> None:
    """Nothing needs to be said for the service's own documents."""
    assert fields(tmp_path, "") == JobFields()
    assert fields(tmp_path, "    job_metrics: null\n") is None


def test_what_is_given_replaces_the_default_of_that_key_alone(tmp_path: Path) -> None:
    """Paths with names, numbers, `-` and `_`."""
    text = "    job_metrics: {shorts_count: [result.clips, a-b.0.c_d], stages: [cut]}\n"
    taken = fields(tmp_path, text)
    assert taken is not None
    assert taken.shorts_count == ("result.clips", "a-b.0.c_d")
    assert taken.stages == ("cut",)
    assert taken.input_duration == JobFields().input_duration


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("shorts_count: ['result..x']", "shorts_count[0]", "joined by dots"),
        ("shorts_count: ['']", "shorts_count[0]", "expected"),
        ("sync_drift: [a.b, '$.a']", "sync_drift[1]", "joined by dots"),
        ("error_code: [a.b.c.d.e.f.g.h.i]", "error_code[0]", "up to eight names"),
        (f"error_code: [{'x' * 65}]", "error_code[0]", "expected"),
        ("stages: ['a b']", "stages[0]", "expected"),
        ("stages: [9lives]", "stages[0]", "expected"),
        ("validation_counts: {ok: ['..']}", "validation_counts.ok[0]", "joined by dots"),
        ("validation_counts: {'a b': [x]}", "validation_counts", "expected"),
        ("shorts: [x]", "shorts", "did you mean"),
    ],
)
def test_mistakes_are_reported_with_file_line_and_key(
    tmp_path: Path, text: str, key: str, message: str
) -> None:
    """As everywhere in the config."""
    with pytest.raises(ConfigError) as caught:
        fields(tmp_path, f"    job_metrics:\n      {text}\n")
    (problem,) = (str(one) for one in caught.value.problems)
    assert "c.yaml:15: " in problem
    assert f"mirrors.m.job_metrics.{key}" in problem
    assert message in problem
