"""Alerts, recording rules and dashboard: complete, documented, and about metrics that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import yaml

from proxy.cli.main import _parser
from tests.deployment import (
    DASHBOARD,
    DEPLOY,
    OBJECTIVES,
    ROOT,
    SCENARIOS,
    alerts,
    commands,
    metric_names,
    panels,
    rules,
    runbooks,
)

#: Not the proxy's: made by Prometheus itself.
PROMETHEUS_OWN = {"up", "ALERTS", "prometheus_sd_discovered_targets"}


def documented() -> set[str]:
    """The metrics of docs/reference/metrics.md; another test keeps it equal to the code."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([a-z_:]+)` \| (?:counter|gauge|histogram)", page, re.MULTILINE))


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('sum by (job) (rate(a_total{status!~"4..", x="{b}"}[5m]))', {"a_total"}),
        ("a / on (slo) group_left () c:d:rate5m > 2", {"a", "c:d:rate5m"}),
        ('label_replace(b_count, "service", "$1", "upstream", "(.+)") offset 1h', {"b_count"}),
        ("sum(max by (service) (state{}) > bool 0) or vector(0)", {"state"}),
    ],
)
def test_names_in_an_expression(expression: str, names: set[str]) -> None:
    """Labels, functions, windows and strings are none."""
    assert metric_names(expression) == names


def test_every_metric_in_the_rules_exists() -> None:
    """It is documented, or recorded by another rule."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = documented() | recorded | PROMETHEUS_OWN
    for rule in rules():
        assert unknown(rule["expr"], known) == set(), rule


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_metric_on_the_dashboard_exists(panel: dict[str, Any]) -> None:
    """It is documented, or recorded by a rule."""
    known = documented() | {rule["record"] for rule in rules() if "record" in rule}
    for target in panel["targets"]:
        assert metric_names(target["expr"])
        assert unknown(target["expr"], known | PROMETHEUS_OWN) == set()


def test_every_recorded_series_is_used() -> None:
    """By an alert, another rule or a panel."""
    used = {name for rule in rules() for name in metric_names(rule["expr"])}
    used |= {name for p in panels() for t in p["targets"] for name in metric_names(t["expr"])}
    assert {rule["record"] for rule in rules() if "record" in rule} <= used


def unknown(expression: str, families: set[str]) -> set[str]:
    """The metrics in it that are none of these, nor a part of one of these histograms."""
    names = metric_names(expression)
    return {n for n in names if {n, re.sub(r"_(bucket|count|sum)$", "", n)}.isdisjoint(families)}


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    """Severity, summary, description, and the address of its own runbook."""
    assert rule["labels"]["severity"] in ("critical", "warning")
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert annotations["runbook_url"] == f"docs/how-to/runbooks.md#{rule['alert'].lower()}"
    assert len(annotations["summary"]) < 100


def test_every_alert_has_its_runbook_and_no_other_has() -> None:
    """Each with what it means, what users see, what to look at first, and what to do."""
    assert set(runbooks()) == {rule["alert"] for rule in alerts()}
    for name, text in runbooks().items():
        for part in ("**Means:**", "**Users see:**", "**Look:**", "**Do:**"):
            assert part in text, (name, part)
        assert len(re.findall(r"^```sh\n((?:.+\n){3})```$", text, re.MULTILINE)) == 1, name


def test_the_page_on_objectives_has_the_numbers_of_the_rules() -> None:
    """Targets and budgets, speeds and windows."""
    page = OBJECTIVES.read_text(encoding="utf-8")
    targets = dict(re.findall(r"^\| `([a-z-]+)`.*\| ([\d.]+)% \|", page, re.MULTILINE))
    budgets = {
        rule["labels"]["slo"]: float(rule["expr"].removeprefix("vector(").removesuffix(")"))
        for rule in rules()
        if rule.get("record") == "slo:budget:ratio"
    }
    assert {name: round(1 - float(share) / 100, 4) for name, share in targets.items()} == budgets
    rows = re.findall(
        r"^\| `(\w+)` \| (.+) and (.+) \| ([\d.]+) \|.*\| (\w+) \|$", page, re.MULTILINE
    )
    assert len(rows) == 3
    for burn, long, short, speed, severity in rows:
        mine = [rule for rule in alerts() if rule["labels"].get("burn") == burn]
        assert len(mine) == len(budgets)
        for rule in mine:
            assert rule["labels"]["severity"] == severity
            for window in (long, short):
                name = "slo:burn:rate" + window.replace(" ", "").replace("min", "m")
                assert re.search(rf"{name}\{{[^}}]+\}} > {re.escape(speed)}\n", rule["expr"])


@pytest.mark.parametrize("words", commands("rp"), ids=" ".join)
def test_every_command_of_the_runbooks_exists(words: list[str]) -> None:
    """The command line knows it and its options."""
    assert _parser().parse_args(words[1:]).command


@pytest.mark.parametrize("words", commands("prom"), ids=" ".join)
def test_every_query_of_the_runbooks_is_about_metrics_that_exist(words: list[str]) -> None:
    """One query a line, of documented metrics."""
    (query,) = words[1:]
    assert unknown(query, documented() | PROMETHEUS_OWN) == set()


def test_every_alert_is_tried_both_ways() -> None:
    """A scenario in which it fires, and one in which it does not."""
    fires: Counter[str] = Counter()
    rests: Counter[str] = Counter()
    for file in SCENARIOS.glob("*.yaml"):
        for scenario in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            for check in scenario["alert_rule_test"]:
                (fires if check["exp_alerts"] else rests)[check["alertname"]] += 1
    names = {rule["alert"] for rule in alerts()}
    assert set(fires) == names
    assert set(rests) == names


def test_the_dashboard_is_what_the_script_writes() -> None:
    """The committed JSON is its output; nobody edited it by hand."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import generate; print(generate.text(), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", script, DEPLOY / "grafana"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert DASHBOARD.read_text(encoding="utf-8") == done.stdout


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_panel_explains_itself(panel: dict[str, Any]) -> None:
    """Title, description, unit, the chosen data source; exemplars where there are histograms."""
    assert panel["description"].endswith((".", "%"))
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"]["uid"] == "${datasource}"
    for target in panel["targets"]:
        quantile = "histogram_quantile" in target["expr"] and panel["type"] == "timeseries"
        assert target["exemplar"] == quantile


def test_panels_do_not_lie_on_one_another() -> None:
    """Every cell of the grid has at most one panel, and none is beyond the edge."""
    taken: Counter[tuple[int, int]] = Counter()
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                taken[x, y] += 1
    assert set(taken.values()) == {1}
