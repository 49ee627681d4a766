"""Writes what the manifests take from elsewhere: `python deploy/kubernetes/generate.py`.

base/proxy-app.yaml is the ready config (kustomize reads no file outside its own directory), and
operator/prometheus-rule.yaml has the rules of deploy/prometheus. A test keeps them equal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NOTE = "# Written by deploy/kubernetes/generate.py from {}: change it there.\n"


def config() -> str:
    """The ready config, under a note."""
    source = "config/make-video.yaml"
    ready = (ROOT / source).read_text(encoding="utf-8")
    return NOTE.format(source) + ready.removeprefix(
        "# yaml-language-server: $schema=./schema.json\n"
    )


def rule() -> str:
    """All groups of rules as one object of the Prometheus operator."""
    groups: list[Any] = []
    for file in sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yaml")):
        groups += yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    document = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {
            "name": "reliability-proxy",
            # What your Prometheus selects by `ruleSelector`.
            "labels": {"release": "prometheus"},
        },
        "spec": {"groups": groups},
    }
    text = yaml.safe_dump(document, sort_keys=False, width=100, allow_unicode=True)
    return NOTE.format("deploy/prometheus/rules") + text


FILES = {
    HERE / "base" / "proxy-app.yaml": config,
    HERE / "operator" / "prometheus-rule.yaml": rule,
}

if __name__ == "__main__":
    for path, content in FILES.items():
        path.write_text(content(), encoding="utf-8")
