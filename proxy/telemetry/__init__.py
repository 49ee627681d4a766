"""What leaves the process for people and machines: `logs/`, `metrics/` and `otel/`."""
