"""What deploy/ says about metrics and alerts, read for the tests."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "rules"
SCENARIOS = DEPLOY / "prometheus" / "tests"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "reliability-proxy.json"
RUNBOOKS = ROOT / "docs" / "how-to" / "runbooks.md"
OBJECTIVES = ROOT / "docs" / "explanation" / "slo.md"

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_LABELS = re.compile(r"\{[^}]*\}|\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)")
_WINDOW = re.compile(r"\[[^\]]*\]|\boffset\s+\w+")
_WORD = re.compile(r"\b[a-zA-Z_][a-zA-Z0-9_:]*\b(?!\s*\()")
_OPERATORS = {"and", "or", "unless", "bool", "by", "on", "group_left"}


def rules() -> Iterator[dict[str, Any]]:
    """Every rule of every group."""
    for file in sorted(RULES.glob("*.yaml")):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def alerts() -> list[dict[str, Any]]:
    """The rules that alert."""
    return [rule for rule in rules() if "alert" in rule]


def panels() -> list[dict[str, Any]]:
    """The dashboard's panels, without the rows' titles."""
    content = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return [panel for panel in content["panels"] if panel["type"] != "row"]


def metric_names(expression: str) -> set[str]:
    """The names of the metrics in a PromQL expression."""
    bare = expression
    for pattern in (_STRING, _LABELS, _WINDOW):
        bare = pattern.sub(" ", bare)
    return {word for word in _WORD.findall(bare) if word not in _OPERATORS}


def runbooks() -> dict[str, str]:
    """The paragraphs of the runbooks by the names of their alerts."""
    page = RUNBOOKS.read_text(encoding="utf-8")
    parts = re.split(r"^### (\w+)\n", page, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def commands(name: str) -> list[list[str]]:
    """The words of the runbooks' lines that begin with `rp`, `logs` or `prom`, without pipes."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", RUNBOOKS.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(f"{name} ")]
