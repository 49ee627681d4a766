"""Writes dashboards/reliability-proxy.json: `python deploy/grafana/generate.py`.

What is shown stands in panels.py; what Grafana wants besides (positions, ids, data source, colours)
is made here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from panels import ROWS, Panel

TARGET = Path(__file__).parent / "dashboards" / "reliability-proxy.json"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24

SHORTHANDS = {
    "$i": 'instance=~"$instance"',
    "$r": 'endpoint=~"$route"',
    "$s": 'service=~"$service"',
    "$w": "$__rate_interval",
}


def expanded(query: str) -> str:
    """The query with its shorthands written out."""
    for short, long in SHORTHANDS.items():
        for end in ("}", ",", "]"):
            query = query.replace(short + end, long + end)
    return query


def field_config(panel: Panel) -> dict[str, Any]:
    """Unit, limits and colours."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
    }
    if panel.unit == "percentunit":
        defaults["min"] = 0
        defaults["decimals"] = 2
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.names:
        options = {
            value: {"text": text, "color": colour, "index": position}
            for position, (value, (text, colour)) in enumerate(panel.names.items())
        }
        defaults["mappings"] = [{"type": "value", "options": options}]
        defaults["color"] = {"mode": "thresholds"}
        defaults["custom"] = {"fillOpacity": 80, "lineWidth": 0}
    elif panel.kind == "timeseries":
        defaults["custom"] = {
            "drawStyle": "line",
            "fillOpacity": 30 if panel.stacked else 5,
            "lineWidth": 1,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if panel.limit is None else "dashed"},
        }
    return {"defaults": defaults, "overrides": []}


def options(panel: Panel) -> dict[str, Any]:
    """How the kind of panel shows its values."""
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True}
    if panel.kind == "stat":
        return {
            "colorMode": "value",
            "graphMode": "area",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        }
    if panel.kind == "state-timeline":
        return {"legend": legend, "mergeValues": True, "rowHeight": 0.8, "showValue": "auto"}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def panel_json(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    """The panel as Grafana reads it."""
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": field_config(panel),
        "options": options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + position),
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": expanded(query),
                "legendFormat": legend,
                "range": panel.kind != "stat",
                "instant": panel.kind == "stat",
                "exemplar": "_bucket{" in query and panel.kind == "timeseries",
            }
            for position, (legend, query) in enumerate(panel.queries.items())
        ],
    }


def placed() -> list[dict[str, Any]]:
    """Rows and panels, from left to right and top to bottom."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": title,
                "collapsed": False,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        y += 1
        x = tallest = 0
        for panel in row:
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            panels.append(panel_json(panel, len(panels) + 1, x, y))
            x += panel.width
            tallest = max(tallest, panel.height)
        y += tallest
    return panels


def choice(name: str, label: str, query: str) -> dict[str, Any]:
    """A variable whose values Prometheus knows; at first all of them."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    """The whole of it."""
    return {
        "uid": "reliability-proxy",
        "title": "Reliability proxy",
        "description": "Callers, microservices, pipeline, jobs. Generated: see generate.py.",
        "tags": ["reliability-proxy"],
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "schemaVersion": 39,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {
                    "name": "datasource",
                    "label": "Data source",
                    "type": "datasource",
                    "query": "prometheus",
                    "current": {"text": "Prometheus", "value": "prometheus"},
                },
                choice("instance", "Instance", "label_values(proxy_build_info, instance)"),
                choice("route", "Route", "label_values(proxy_requests_in_flight, endpoint)"),
                choice(
                    "service", "Microservice", "label_values(external_api_calls_total, service)"
                ),
            ]
        },
        "annotations": {
            "list": [
                {
                    "name": "Alerts",
                    "datasource": SOURCE,
                    "enable": True,
                    "iconColor": "red",
                    "expr": 'ALERTS{alertstate="firing", severity="critical"}',
                    "titleFormat": "{{alertname}}",
                    "step": "30s",
                },
                {
                    "name": "Restarts",
                    "datasource": SOURCE,
                    "enable": True,
                    "iconColor": "blue",
                    "expr": 'changes(process_start_time_seconds{job="reliability-proxy"}[1m]) > 0',
                    "titleFormat": "{{instance}} restarted",
                    "step": "30s",
                },
            ]
        },
        "panels": placed(),
    }


def text() -> str:
    """The file's content."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
