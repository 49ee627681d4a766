"""Logs, metrics and spans of the proxy itself: `logs/`, `metrics/` and `otel/`."""
